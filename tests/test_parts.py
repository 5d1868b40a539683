"""em_step, em_reconstruct and responsibilities, and what is built from them."""

import pytest
import torch
from examples import features, unit_bases
from torch.autograd import gradcheck

import ema_ops
from ema_ops import reference


def loop_from_parts(x, bases, num_iters, step):
    """The whole loop with anything between its iterations: `step` returns sums and mass of all positions."""
    for _ in range(num_iters):
        before = bases
        bases = reference.normalize(*step(x, bases))
    return ema_ops.em_reconstruct(x, before, bases), bases


@pytest.mark.parametrize("heads", [None, 2])
def test_parts_equal_reference_with_bias_and_weight(heads):
    outer = (2,) if heads is None else (2, heads)
    x, bases, values = features(*outer, 23, 6), unit_bases(*outer, 6, 4), features(*outer, 9, 4, seed=3)
    bias, weight = features(2, 4, seed=4), torch.rand(*outer, 23, dtype=torch.float64)
    full_bias = bias if heads is None else bias[:, None].expand(2, heads, 4)

    sums, mass = ema_ops.em_step(x, bases, logit_bias=bias, weight=weight, scale=1.4)
    z = reference.e_step(x, bases, 1.4, full_bias)
    expected_sums, expected_mass = reference.weighted_sums(x, z, weight)
    torch.testing.assert_close(sums, expected_sums)
    torch.testing.assert_close(mass, expected_mass)

    y = ema_ops.em_reconstruct(x, bases, values, logit_bias=bias, scale=1.4)
    torch.testing.assert_close(y, z @ values.transpose(-1, -2))
    assert y.shape == (*outer, 23, 9)
    torch.testing.assert_close(ema_ops.responsibilities(x, bases, logit_bias=bias, scale=1.4), z)


@pytest.mark.parametrize("bias_rank", [None, 1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck_of_the_parts(bias_rank, shared):
    x = features(2, 5, 4).requires_grad_()
    bases = unit_bases(*(() if shared else (2,)), 4, 3).requires_grad_()
    values = features(*(() if shared else (2,)), 6, 3, seed=3).requires_grad_()
    bias = None if bias_rank is None else features(*(2, 3)[-bias_rank:], seed=4).requires_grad_()
    weight = torch.rand(2, 5, dtype=torch.float64)

    def step(x, bases, bias):
        return ema_ops.em_step(x, bases, logit_bias=bias, weight=weight, scale=1.2)

    def reconstruct(x, bases, values, bias):
        return ema_ops.em_reconstruct(x, bases, values, logit_bias=bias, scale=1.2)

    assert gradcheck(step, (x, bases, bias))
    assert gradcheck(reconstruct, (x, bases, values, bias))


def test_loop_from_parts():
    x, bases = features(2, 31, 6).requires_grad_(), unit_bases(2, 6, 4).requires_grad_()
    y, last = loop_from_parts(x, bases, 3, ema_ops.em_step)
    whole_y, whole_last = ema_ops.em_attention(x, bases, num_iters=3)
    torch.testing.assert_close(y, whole_y)
    torch.testing.assert_close(last, whole_last)
    grads = [torch.autograd.grad(out.sin().sum(), (x, bases), retain_graph=True) for out in (y, whole_y)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_two_shards_of_the_positions():
    x, bases = features(2, 30, 6).requires_grad_(), unit_bases(6, 4)

    def step(x, bases):
        left, right = (ema_ops.em_step(shard, bases) for shard in x.split([13, 17], dim=1))
        return left[0] + right[0], left[1] + right[1]

    y, last = loop_from_parts(x, bases, 3, step)
    whole_y, whole_last = ema_ops.em_attention(x, bases, num_iters=3)
    torch.testing.assert_close(y, whole_y)
    torch.testing.assert_close(last, whole_last)
    grads = [torch.autograd.grad(out.sin().sum(), x, retain_graph=True) for out in (y, whole_y)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_folded_convolution():
    """With X = x W^T + b, the logits are x (W^T M) + b M and the M-step is W (x^T Z) + b s^T."""
    x, bases = features(2, 31, 5).requires_grad_(), unit_bases(2, 6, 4)
    w, b = features(6, 5, seed=3).requires_grad_(), features(6, seed=4).requires_grad_()

    m = bases
    for _ in range(3):
        before = m
        sums, mass = ema_ops.em_step(x, w.t() @ m, logit_bias=b @ m)
        m = reference.normalize(w @ sums + b[:, None] * mass[:, None, :], mass)
    y = ema_ops.em_reconstruct(x, w.t() @ before, m, logit_bias=b @ before)

    plain_y, plain_m = ema_ops.em_attention(x @ w.t() + b, bases, num_iters=3)
    torch.testing.assert_close(y, plain_y)
    torch.testing.assert_close(m, plain_m)
    grads = [torch.autograd.grad(out.sin().sum(), (x, w, b), retain_graph=True) for out in (y, plain_y)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4)])
def test_empty_parts(shape):
    x, bases = torch.zeros(shape), torch.randn(4, 3)
    sums, mass = ema_ops.em_step(x, bases)
    assert sums.shape == (shape[0], 4, 3)
    assert sums.count_nonzero() == 0
    assert mass.count_nonzero() == 0
    assert ema_ops.em_reconstruct(x, bases, torch.randn(7, 3)).shape == (*shape[:2], 7)
