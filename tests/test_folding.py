"""`folded_em_attention`: the same results and gradients as a 1x1 convolution and the loop behind it."""

import functools

import pytest
import torch
from backend_checks import DTYPES, make_features, normal, uniform
from examples import features, unit_bases
from folding_checks import check_folding, plain, results_and_gradients
from torch.library import opcheck

import ema_ops
from ema_ops.folding import folded_em_attention

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def leaves(batch=2, positions=17, channels=6, num_bases=4, dtype=torch.float64, shared=True):
    """x, weight and bias of the convolution, bases, all with a gradient."""
    tensors = (
        features(batch, positions, channels),
        features(channels, channels, seed=5),
        features(channels, seed=6),
        unit_bases(*(() if shared else (batch,)), 1, channels, num_bases),
    )
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


OPTIONS = {
    "as in the paper": {},
    "one iteration": {"num_iters": 1},
    "five, warm": {"num_iters": 5, "scale": 2.5},
    "max": {"eps": 1e-2, "eps_mode": "max"},
    "large eps": {"eps": 3.0},
    "no eps": {"eps": 0},
    "two of three": {"grad_iters": 2},
    "one of four": {"grad_iters": 1, "num_iters": 4},
    "constant": {"grad_iters": 0},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_float64_agrees_with_the_plain_way(options, shared, weighted):
    tensors = leaves(shared=shared)
    weight = uniform(2, 17, seed=4).double() if weighted else None
    expected = results_and_gradients(plain, tensors, weight=weight, **options)
    got = results_and_gradients(folded_em_attention, tensors, weight=weight, **options)
    assert len(got) == len(expected) == (2 if options.get("grad_iters") == 0 else 6)
    for ours, theirs in zip(got, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_without_a_bias():
    x, conv_weight, _, bases = leaves()
    tensors = (x, conv_weight, None, bases)
    torch.testing.assert_close(
        results_and_gradients(folded_em_attention, tensors), results_and_gradients(plain, tensors), **CLOSE
    )


def test_images_keep_their_shape_and_memory_order():
    x, conv_weight, conv_bias, bases = leaves(2, 15)
    expected, _ = plain(x, conv_weight, conv_bias, bases)
    image = x.detach().mT.unflatten(2, (5, 3))
    for given in (image.contiguous(), image.contiguous(memory_format=torch.channels_last)):
        y, _ = folded_em_attention(given, conv_weight[..., None, None], conv_bias, bases, layout="BCN")
        assert y.stride() == given.stride()
        torch.testing.assert_close(y.flatten(2).mT, expected, **CLOSE)


@pytest.mark.parametrize("grad_iters", [None, 1])
def test_gradcheck(grad_iters):
    tensors = leaves(1, 5, 3, 2)
    if grad_iters is None:
        assert torch.autograd.gradcheck(lambda *t: folded_em_attention(*t, num_iters=2), tensors)
    else:
        # the truncated gradient is exact where there is nothing to truncate
        assert torch.autograd.gradcheck(lambda *t: folded_em_attention(*t, num_iters=1, grad_iters=1), tensors)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("layout", ["rows", "image"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_that_of_the_plain_formula(dtype, layout, scale):
    check_folding(make_features((2, 301, 40), DTYPES[dtype], layout), 9, "torch", scale=scale)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_dead_base_leaves_the_gradient_finite(eps):
    x, conv_weight, conv_bias, bases = (t.detach().float().abs() for t in leaves())
    bases[..., 1] = -1e4
    tensors = [t.requires_grad_() for t in (x, conv_weight, conv_bias, bases)]
    y, last, *got = results_and_gradients(folded_em_attention, tensors, num_iters=1, eps=eps)
    assert not last[..., 1].any()
    assert all(t.isfinite().all() for t in (y, *got))


def test_func_grad_and_vmap():
    def loss(*tensors):
        y, last = folded_em_attention(*tensors)
        return y.sin().sum() + last.cos().sum()

    tensors = [t.detach() for t in leaves()]
    grad = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    torch.testing.assert_close(
        grad(*tensors), torch.autograd.grad(loss(*(t.requires_grad_() for t in tensors)), tensors)
    )
    stacked = torch.stack([tensors[0].detach(), 2 * tensors[0].detach()])
    rest = [t.detach() for t in tensors[1:]]
    got = torch.vmap(grad, in_dims=(0, None, None, None))(stacked, *rest)
    single = [grad(x, *rest) for x in stacked]
    torch.testing.assert_close(got, tuple(torch.stack(g) for g in zip(*single, strict=True)))


def test_the_bases_of_the_caller_may_move_before_backward():
    tensors = leaves()
    bases = tensors[3].detach()
    expected = results_and_gradients(plain, tensors)[2:5]
    y, last = folded_em_attention(*tensors[:3], bases)
    bases.zero_()
    grads = (normal(*y.shape, seed=2).double(), normal(*last.shape, seed=3).double())
    torch.testing.assert_close(torch.autograd.grad((y, last), tensors[:3], grads), expected, **CLOSE)


@pytest.mark.parametrize("order", ["own", "other"])
@pytest.mark.parametrize("layout", ["BNC", "BCN", "BHNC"])
def test_opcheck(layout, order):
    # with float32 the rounding of a warm softmax is more than opcheck allows
    draw = functools.partial(torch.randn, dtype=torch.float64)
    x = draw({"BNC": (2, 10, 6), "BCN": (2, 6, 5, 2), "BHNC": (2, 1, 10, 6)}[layout])
    if order == "other":
        x = x.to(memory_format=torch.channels_last) if layout == "BCN" else x.mT.contiguous().mT
    bases, weight, convolution = draw(1, 6, 4), torch.rand(2, 10), (draw(6, 6), draw(6))
    loop = (layout, 3, 2, 1.0, 1e-6, "add", None)
    operators, tensors = torch.ops.ema_ops, (x, bases, *convolution)
    for requires_grad in (False, True):
        x, bases, *convolution = (t.detach().requires_grad_(requires_grad) for t in tensors)
        opcheck(operators.em_folded_forward.default, (x, bases, weight, *convolution, False, *loop))
    with torch.no_grad():
        y, *saved = operators.em_folded_forward(x, bases, weight, *convolution, False, *loop)
    x, *convolution = (t.detach() for t in (x, *convolution))
    for need_bases in (False, True):
        given = (torch.randn_like(y), draw(2, 1, 6, 4), x, weight, *convolution, *saved, need_bases, *loop)
        opcheck(operators.em_folded_backward.default, given)


@pytest.mark.parametrize("shape", [(0, 10, 6), (2, 0, 6)])
def test_nothing_to_work_on(shape):
    x, convolution = torch.randn(shape, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    y, last = folded_em_attention(x, convolution, None, torch.randn(1, 6, 4))
    (y.sum() + last.sum()).backward()
    assert y.shape == x.grad.shape == shape
    assert last.shape == (shape[0], 1, 6, 4)
    assert convolution.grad.count_nonzero() == 0


def test_one_image_does_not_reach_another():
    tensors = [t.detach().float() for t in leaves()]
    clean, _ = folded_em_attention(*tensors)
    tensors[0][1, 3] = torch.nan
    x = tensors[0].requires_grad_()
    y, last = folded_em_attention(*tensors)
    y[0].sum().backward()
    assert torch.equal(y[0], clean[0])
    assert last[0].isfinite().all()
    assert x.grad[0].isfinite().all()
    assert y[1].isnan().any()


def test_second_derivatives_raise():
    x, *others = leaves()
    (grad,) = torch.autograd.grad(folded_em_attention(x, *others)[0].sin().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative: differentiate ema_ops\.reference"):
        grad.square().sum().backward()
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda x: folded_em_attention(x, *others)[0], (x,), (x,))


@pytest.mark.parametrize(("index", "shape"), [(1, (6, 5)), (1, (5, 6)), (2, (5,))])
def test_convolutions_of_other_shapes(index, shape):
    tensors = [t.detach() for t in leaves()]
    tensors[index] = torch.randn(shape).double()
    name = ("", "conv_weight", "conv_bias")[index]
    with pytest.raises(ValueError, match=rf"{name} has shape \[{str(list(shape))[1:-1]}\]: expected \[6"):
        folded_em_attention(*tensors)


def test_small_products_stay_exact_under_autocast():
    x, conv_weight, conv_bias, bases = (t.detach().float() for t in leaves(2, 30, 16))
    with torch.autocast("cpu", torch.bfloat16):
        y, last = folded_em_attention(x, conv_weight, conv_bias, bases)
    expected, expected_last = folded_em_attention(x.bfloat16(), conv_weight, conv_bias, bases)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    assert torch.equal(last, expected_last)


def test_options_are_checked():
    tensors = leaves()
    with pytest.raises(ValueError, match="grad_iters is 4: expected 0 to num_iters = 3"):
        folded_em_attention(*tensors, grad_iters=4)
    with pytest.raises(ValueError, match="backend is 'cpu'"):
        folded_em_attention(*tensors, backend="cpu")
    with pytest.raises(ValueError, match="num_iters is 0"):
        folded_em_attention(*tensors, num_iters=0)
    assert ema_ops.folding.folded_em_attention is folded_em_attention
