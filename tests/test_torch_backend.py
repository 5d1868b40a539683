"""The torch backend behind the public functions, against the reference in float64."""

import pytest
import torch
from examples import features, unit_bases
from judge import assert_close_to_reference
from torch.autograd import gradcheck

import ema_ops
from ema_ops import reference

LOOPS = [(1, None), (3, None), (3, 1), (4, 2)]


def both(x, bases, **options):
    """Results and gradients of ours and of the reference for the same random incoming gradients."""
    results = []
    for function in (lambda *a, **o: ema_ops.em_attention(*a, backend="torch", **o), reference.em_attention):
        leaf_x, leaf_bases = x.detach().requires_grad_(), bases.detach().requires_grad_()
        y, last = function(leaf_x, leaf_bases, **options)
        loss = (y * features(*y.shape, seed=5)).sum() + (last * features(*last.shape, seed=6)).sum()
        grads = torch.autograd.grad(loss, (leaf_x, leaf_bases), allow_unused=True)
        results.append((y, last, *grads))
    return results


@pytest.mark.parametrize(("num_iters", "grad_iters"), LOOPS)
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("eps", "eps_mode"), [(1e-6, "add"), (0.4, "add"), (0.0, "add"), (1e-12, "max"), (0.6, "max")])
def test_equals_reference(num_iters, grad_iters, order, heads, weighted, eps, eps_mode):
    outer = (2,) if heads is None else (2, heads)
    x, bases = features(*outer, 37, 12, order=order), unit_bases(*outer[1:], 12, 5)
    weight = torch.rand(*outer, 37, dtype=torch.float64) if weighted else None
    options = {"num_iters": num_iters, "grad_iters": grad_iters, "weight": weight, "scale": 1.7}
    ours, expected = both(x, bases, eps=eps, eps_mode=eps_mode, **options)
    for a, b in zip(ours, expected, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert ours[0].stride() == x.stride()


@pytest.mark.parametrize("grad_iters", [1, 2, 3])
@pytest.mark.parametrize("heads", [None, 2])
def test_gradcheck_of_the_loop(grad_iters, heads):
    outer = (2,) if heads is None else (2, heads)
    x, bases = features(*outer, 6, 4).requires_grad_(), unit_bases(*outer, 4, 3).requires_grad_()
    weight = torch.rand(*outer, 6, dtype=torch.float64)

    def last_iterations(x, bases):
        # finite differences see the whole loop, so what comes before the gradient is made a constant
        with torch.no_grad():
            for _ in range(3 - grad_iters):
                bases = ema_ops.em_attention(x0, bases, num_iters=1, weight=weight, backend="torch")[1]
        return ema_ops.em_attention(x, bases, num_iters=grad_iters, weight=weight, scale=1.3, backend="torch")

    x0 = x.detach().clone()
    assert gradcheck(last_iterations, (x, bases) if grad_iters == 3 else (x, bases.detach()))


def test_truncated_gradient_is_the_gradient_of_the_last_iterations():
    x, bases = features(2, 11, 4).requires_grad_(), unit_bases(4, 3)
    y, _ = ema_ops.em_attention(x, bases, num_iters=4, grad_iters=2, backend="torch")
    with torch.no_grad():
        _, before = ema_ops.em_attention(x, bases, num_iters=2, backend="torch")
    y_last, _ = ema_ops.em_attention(x, before, num_iters=2, backend="torch")
    (grad,), (grad_last,) = torch.autograd.grad(y.sin().sum(), x), torch.autograd.grad(y_last.sin().sum(), x)
    torch.testing.assert_close(y, y_last)
    torch.testing.assert_close(grad, grad_last)


def test_no_gradient_iterations_give_constants():
    x, bases = features(2, 11, 4).requires_grad_(), unit_bases(4, 3).requires_grad_()
    y, last = ema_ops.em_attention(x, bases, grad_iters=0)
    assert not y.requires_grad
    assert not last.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_low_precision_by_the_error_rule(dtype, order):
    x, bases = features(2, 97, 19, dtype=dtype, order=order), unit_bases(19, 7, dtype=torch.float32)
    grad_y = features(2, 97, 19, dtype=dtype, seed=4)
    results = []
    for function, kind in ((ema_ops.em_attention, dtype), (reference.em_attention, dtype), (None, torch.float64)):
        leaf_x = x.to(kind).requires_grad_()
        leaf_bases = bases.to(torch.float32 if function is ema_ops.em_attention else kind).requires_grad_()
        y, last = (function or reference.em_attention)(leaf_x, leaf_bases)
        grads = torch.autograd.grad(y, (leaf_x, leaf_bases), grad_y.to(kind))
        results.append((y, last, *grads))
    ours, plain, exact = results
    assert ours[0].dtype == dtype
    assert ours[1].dtype == torch.float32
    names = ("y", "bases", "grad_x", "grad_bases")
    for a, b, c, name, factor in zip(ours, exact, plain, names, (2, 2, 3, 3), strict=True):
        assert_close_to_reference(a, b, c, factor=factor, name=name)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 3, 0, 4)])
def test_empty_inputs_give_empty_results(shape):
    x = torch.zeros(shape).requires_grad_()
    bases = torch.randn(*shape[1:-2], 4, 3).requires_grad_()
    y, last = ema_ops.em_attention(x, bases)
    assert y.shape == x.shape
    assert last.shape == (*shape[:-2], 4, 3)
    (y.sum() + last.sum()).backward()
    assert x.grad.shape == x.shape
    assert bases.grad.count_nonzero() == 0


def test_nan_in_one_image_leaves_the_others_alone():
    x, bases = features(3, 50, 8, dtype=torch.float32), unit_bases(8, 4, dtype=torch.float32)
    clean = x.clone().requires_grad_()
    dirty = x.clone()
    dirty[1, 7, 3] = float("nan")
    dirty.requires_grad_()
    results = []
    for leaf in (clean, dirty):
        y, last = ema_ops.em_attention(leaf, bases, backend="torch")
        y.square().sum().backward()
        results.append((y[[0, 2]], last[[0, 2]], leaf.grad[[0, 2]]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", ["zero x", "zero weight", "dead base"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_degenerate_inputs_stay_finite(case, dtype):
    x, bases = features(2, 30, 8, dtype=dtype), unit_bases(8, 4, dtype=torch.float32)
    weight = None
    if case == "zero x":
        x = torch.zeros_like(x)
    if case == "zero weight":
        weight = torch.zeros(2, 30)
    if case == "dead base":
        x, bases = x.abs() * 100, torch.cat([bases.abs(), -bases.abs()], -1)
    x, bases = x.requires_grad_(), bases.requires_grad_()
    y, last = ema_ops.em_attention(x, bases, weight=weight, backend="torch")
    y.float().sum().backward()
    for tensor in (y, last, x.grad, bases.grad):
        assert tensor.isfinite().all()


def test_slices_stride_zero_gradients_and_bitwise_repeat():
    whole = features(4, 60, 40, dtype=torch.float32)
    x = whole[::2, 3:40:2, 5:17].requires_grad_()
    bases = unit_bases(12, 5, dtype=torch.float32)
    first = ema_ops.em_attention(x, bases, backend="torch")
    again = ema_ops.em_attention(x.detach().contiguous(), bases, backend="torch")
    torch.testing.assert_close(first[0], again[0])
    grads = [torch.autograd.grad(ema_ops.em_attention(x, bases)[0].sum(), x)[0] for _ in range(2)]
    assert torch.equal(*grads)
    expanded = torch.ones(()).expand_as(first[0])
    dense = torch.autograd.grad(first[0], x, expanded.contiguous())[0]
    torch.testing.assert_close(grads[0], dense)


def test_bool_mask_equals_zero_one_weight_and_broadcasts():
    x, bases = features(3, 21, 6), unit_bases(6, 4)
    mask = torch.arange(21) < 15
    expected, _ = ema_ops.em_attention(x, bases, weight=mask.double().expand(3, 21))
    for weight in (mask, mask[None], mask.expand(3, 21)):
        assert torch.equal(ema_ops.em_attention(x, bases, weight=weight)[0], expected)


@pytest.mark.parametrize("grad_iters", [1, 2])
def test_truncated_gradient_reaches_no_initial_bases(grad_iters):
    x, bases = features(2, 11, 4), unit_bases(4, 3).requires_grad_()
    y, last = ema_ops.em_attention(x, bases, grad_iters=grad_iters)
    assert not y.requires_grad
    assert not last.requires_grad
