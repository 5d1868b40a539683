"""The operators as PyTorch sees them: opcheck, function transforms, autocast, memory order."""

import pytest
import torch
from examples import features, unit_bases
from torch.library import opcheck

import ema_ops

OPS = torch.ops.ema_ops
LAYOUTS = {
    "BNC": (2, 10, 6),
    "BCN": (2, 6, 5, 2),
    "BHNC": (2, 3, 10, 2),
}


def arguments(layout, requires_grad, order, shared=True):
    """x, bases [(B,) 3, 2, 4], weight and logit bias of a call with three heads, in what opcheck compares well."""
    x = torch.randn(LAYOUTS[layout], dtype=torch.float64)
    if order == "other":
        x = x.to(memory_format=torch.channels_last) if layout == "BCN" else x.mT.contiguous().mT
    bases = unit_bases(*(() if shared else (2,)), 3, 2, 4, dtype=torch.float64)
    weight = torch.rand(2, 1, 10) if layout == "BHNC" else torch.rand(2, 10)
    bias = torch.randn(2, 4, dtype=torch.float64)
    return *(t.requires_grad_(requires_grad) for t in (x, bases)), weight, bias.requires_grad_(requires_grad)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("order", ["own", "other"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, order, requires_grad):
    x, bases, weight, bias = arguments(layout, requires_grad, order, shared=order == "own")
    opcheck(OPS.em_forward.default, (x, bases, weight, False, layout, 3, 3, 1.0, 1e-6, "add", None))
    if not requires_grad:
        opcheck(OPS.em_attend.default, (x, bases, weight, False, layout, 3, 3, 1.0, 1e-6, "add", None))
    opcheck(OPS.em_step.default, (x, bases, weight, bias, layout, 1.0, None))
    opcheck(OPS.em_reconstruct.default, (x, bases, bases, bias, layout, 1.0, None))


@pytest.mark.parametrize("need_bases", [False, True])
@pytest.mark.parametrize("order", ["own", "other"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_backward(layout, order, need_bases):
    x, bases, weight, bias = arguments(layout, False, order)
    loop = (layout, 3, 3, 1.0, 1e-6, "add", None)
    y, *saved = OPS.em_forward(x, bases, weight, False, *loop)
    opcheck(OPS.em_backward.default, (torch.randn_like(y), None, x, weight, *saved, need_bases, *loop))
    sums, mass = OPS.em_step(x, bases, weight, bias, layout, 1.0, None)
    opcheck(OPS.em_step_backward.default, (sums, mass, x, bases, weight, bias, layout, 1.0, None))
    opcheck(OPS.em_reconstruct_backward.default, (torch.randn_like(y), x, bases, bases, bias, layout, 1.0, None))


def loss(x, bases, bias):
    y, last = ema_ops.em_attention(x, bases)
    sums, mass = ema_ops.em_step(x, bases, logit_bias=bias)
    z = ema_ops.responsibilities(x, bases, logit_bias=bias)
    return y.sin().sum() + last.cos().sum() + sums.sin().sum() + mass.cos().sum() + z.square().sum()


def test_func_grad():
    x, bases, bias = features(2, 10, 6), unit_bases(6, 4), features(4)
    leaves = [t.clone().requires_grad_() for t in (x, bases, bias)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1, 2))(x, bases, bias), expected)


@pytest.mark.parametrize("in_dims", [(0, None, None), (1, 0, 0), (None, 0, None), (None, None, 1)], ids=str)
def test_vmap_of_grad(in_dims):
    whole = (features(2, 10, 6), unit_bases(6, 4), features(4))
    batched = [
        t if dim is None else torch.stack([t + 0.1 * i for i in range(3)], dim)
        for t, dim in zip(whole, in_dims, strict=True)
    ]
    grad = torch.func.grad(loss, argnums=(0, 1, 2))
    got = torch.vmap(grad, in_dims=in_dims)(*batched)
    single = [
        grad(*(t if dim is None else t.select(dim, i) for t, dim in zip(batched, in_dims, strict=True)))
        for i in range(3)
    ]
    expected = tuple(torch.stack(grads) for grads in zip(*single, strict=True))
    torch.testing.assert_close(got, expected)


def test_an_operator_without_a_gradient_says_so():
    x, bases = features(2, 10, 6).requires_grad_(), unit_bases(1, 6, 4)
    y, _ = OPS.em_attend(x, bases, None, False, "BNC", 3, 3, 1.0, 1e-6, "add", None)
    with pytest.raises(NotImplementedError, match=r"em_attend has no gradient: .* ema_ops\.em_attention instead"):
        y.sum().backward()


def test_vmap_over_the_weight():
    x, bases, weights = features(2, 10, 6), unit_bases(6, 4), torch.rand(3, 2, 10, dtype=torch.float64)
    got = torch.vmap(lambda w: ema_ops.em_attention(x, bases, weight=w)[0])(weights)
    torch.testing.assert_close(got, torch.stack([ema_ops.em_attention(x, bases, weight=w)[0] for w in weights]))
    shared = torch.vmap(lambda x: ema_ops.em_attention(x, bases, weight=weights[0])[0])(x.expand(3, 2, 10, 6))
    torch.testing.assert_close(shared[1], got[0])


def test_autocast_casts_x_like_a_matrix_product():
    x, bases = features(2, 10, 6, dtype=torch.float32).requires_grad_(), unit_bases(6, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, last = ema_ops.em_attention(x, bases)
        z = ema_ops.responsibilities(x, bases)
        double, _ = ema_ops.em_attention(x.double(), bases)
    assert y.dtype == z.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert double.dtype == torch.float64
    expected, expected_last = ema_ops.em_attention(x.bfloat16(), bases)
    assert torch.equal(y, expected)
    assert torch.equal(last, expected_last)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)])
def test_y_and_grad_x_keep_the_memory_order(dims):
    sizes = (2, 3, 10, 4)
    x = torch.randn([sizes[d] for d in dims]).permute([dims.index(d) for d in range(4)]).requires_grad_()
    y, _ = ema_ops.em_attention(x, torch.randn(3, 4, 5))
    y.sum().backward()
    assert y.stride() == x.stride()
    assert x.grad.stride() == x.stride()


def test_the_bases_of_the_caller_may_move_before_backward():
    x, bases = features(2, 10, 6).requires_grad_(), unit_bases(6, 4)
    (expected,) = torch.autograd.grad(ema_ops.em_attention(x, bases)[0].sin().sum(), x)
    y, _ = ema_ops.em_attention(x, bases)
    bases.zero_()
    (got,) = torch.autograd.grad(y.sin().sum(), x)
    assert torch.equal(got, expected)


def differentiate_twice_by_func(x, bases):
    return torch.func.grad(lambda x: torch.func.grad(lambda x: loss(x, bases, None))(x).sin().sum())(x)


def gradient_penalty(x, bases):
    x.requires_grad_()
    (grad,) = torch.autograd.grad(loss(x, bases, None), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), x)


@pytest.mark.parametrize("twice", [differentiate_twice_by_func, gradient_penalty])
def test_second_derivatives_raise(twice):
    with pytest.raises(NotImplementedError, match=r"no second derivative: differentiate ema_ops\.reference"):
        twice(features(2, 10, 6), unit_bases(6, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, bases: ema_ops.em_attention(x, bases)[0],
        lambda x, bases: ema_ops.em_step(x, bases)[0],
        ema_ops.responsibilities,
    ],
)
def test_forward_mode_raises(function):
    x, bases = features(2, 10, 6), unit_bases(6, 4)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(function, (x, bases), (x, bases))
    with torch.autograd.forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError)):
        function(torch.autograd.forward_ad.make_dual(x, x), bases)


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 6, 4, 4), (2, 6, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_results_may_be_changed_in_place(shape, memory_format):
    layer = ema_ops.EMAttention(6, 4, num_heads=2)
    x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
    expected = torch.autograd.grad((layer(x, update_bases=False) + x).relu().sum(), x)
    y, bases = layer(x, return_bases=True, update_bases=False)
    y += x
    torch.testing.assert_close(torch.autograd.grad(y.relu_().sum(), x), expected)
    bases *= 2
    rows, last = ema_ops.em_attention(torch.randn(2, 10, 6, requires_grad=True), torch.randn(6, 4))
    rows.relu_().sum().backward()
    sums, mass = ema_ops.em_step(torch.randn(2, 10, 6, requires_grad=True), torch.randn(6, 4))
    assert sums.div_(mass.unsqueeze(1)).requires_grad
    assert ema_ops.em_reconstruct(rows.detach().requires_grad_(), last.detach(), last.detach()).mul_(2).requires_grad


def test_meta_tensors():
    x, bases = torch.randn(2, 10, 6, device="meta", requires_grad=True), torch.randn(6, 4, device="meta")
    y, last = ema_ops.em_attention(x, bases)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert last.shape == (2, 6, 4)
    assert ema_ops.EMAttention(6, 4).to("meta")(torch.randn(2, 6, 5, 3, device="meta")).is_meta
