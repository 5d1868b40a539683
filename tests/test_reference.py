"""The reference against automatic differentiation and against itself in other words."""

import pytest
import torch
from examples import features, unit_bases
from torch.autograd import gradcheck

from ema_ops import reference

SETTINGS = [
    {"eps": 1e-6, "eps_mode": "add", "scale": 1.0},
    {"eps": 0.3, "eps_mode": "add", "scale": 1.7},
    {"eps": 3.0, "eps_mode": "add", "scale": 10.0},
    {"eps": 0.0, "eps_mode": "add", "scale": 1.0},
    {"eps": 1e-12, "eps_mode": "max", "scale": 1.0},
    {"eps": 0.5, "eps_mode": "max", "scale": 1.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("num_iters", "grad_iters"), [(1, None), (3, None), (5, None), (3, 1), (4, 2), (3, 0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_written_gradient_equals_automatic_one(settings, num_iters, grad_iters, weighted):
    x, bases = features(2, 37, 12).requires_grad_(), unit_bases(2, 12, 5).requires_grad_()
    weight = torch.rand(2, 37, dtype=torch.float64) if weighted else None
    options = {**settings, "num_iters": num_iters, "grad_iters": grad_iters, "weight": weight}
    y, last = reference.em_attention(x, bases, **options)
    grad_y, grad_last = features(2, 37, 12, seed=2), features(2, 12, 5, seed=3)

    grad_x, grad_bases = reference.em_attention_backward(x, bases, grad_y, grad_last, **options)

    if grad_iters == 0:
        assert not y.requires_grad
        assert grad_x.count_nonzero() == 0
        assert grad_bases is None
        return
    loss = (y * grad_y).sum() + (last * grad_last).sum()
    expected_x, expected_bases = torch.autograd.grad(loss, (x, bases), allow_unused=True)
    torch.testing.assert_close(grad_x, expected_x, rtol=1e-10, atol=1e-12)
    if grad_iters is None:
        torch.testing.assert_close(grad_bases, expected_bases, rtol=1e-10, atol=1e-12)
    else:
        assert grad_bases is None
        assert expected_bases is None


@pytest.mark.parametrize("heads", [(), (2,)])
def test_gradcheck(heads):
    x, bases = features(2, *heads, 7, 4).requires_grad_(), unit_bases(2, *heads, 4, 3).requires_grad_()
    weight = torch.rand(2, *heads, 7, dtype=torch.float64)

    def loop(x, bases):
        return reference.em_attention(x, bases, scale=1.3, eps=1e-2, weight=weight)

    assert gradcheck(loop, (x, bases))


def test_one_iteration_by_hand():
    """Two positions, two bases, worked out on paper: logits 0 and log 3."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    log3 = torch.log(torch.tensor(3.0, dtype=torch.float64))
    bases = torch.tensor([[[0.0, log3], [log3, 0.0]]], dtype=torch.float64)
    z = torch.tensor([[[0.25, 0.75], [0.75, 0.25]]], dtype=torch.float64)
    expected = torch.tensor([[[0.25, 0.75], [0.75, 0.25]]], dtype=torch.float64) / (0.0625 + 0.5625) ** 0.5
    y, last = reference.em_attention(x, bases, num_iters=1, eps=0)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(y, z @ expected.transpose(1, 2))


@pytest.mark.parametrize("eps_mode", ["add", "max"])
@pytest.mark.parametrize("case", ["zero x", "zero weight", "dead base", "no eps"])
def test_degenerate_inputs_stay_finite(case, eps_mode):
    x, bases, eps = features(2, 9, 4), unit_bases(2, 4, 3), 1e-6
    weight = torch.ones(2, 9, dtype=torch.float64)
    if case == "zero x":
        x = torch.zeros_like(x)
    if case == "zero weight":
        weight = torch.zeros_like(weight)
    if case == "dead base":
        x, bases = x.abs() * 1e3, torch.cat([bases.abs(), -bases.abs()], -1)
    if case == "no eps":
        weight, eps = torch.zeros_like(weight), 0.0
    x, bases = x.requires_grad_(), bases.requires_grad_()
    y, last = reference.em_attention(x, bases, weight=weight, eps=eps, eps_mode=eps_mode)
    (y.sum() + last.sum()).backward()
    for tensor in (y, last, x.grad, bases.grad):
        assert tensor.isfinite().all()


def test_weight_zero_equals_leaving_the_position_out():
    x, bases = features(1, 20, 6), unit_bases(1, 6, 4)
    weight = torch.ones(1, 20, dtype=torch.float64)
    weight[:, 13:] = 0
    y, last = reference.em_attention(x, bases, weight=weight)
    y_short, last_short = reference.em_attention(x[:, :13], bases)
    torch.testing.assert_close(last, last_short)
    torch.testing.assert_close(y[:, :13], y_short)
    assert y[:, 13:].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_iters": 0}, "num_iters is 0: expected at least 1"), ({"grad_iters": 4}, "grad_iters is 4: expected 0 to")],
)
def test_iterations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        reference.em_attention(torch.ones(1, 2, 3), torch.ones(3, 2), **options)
