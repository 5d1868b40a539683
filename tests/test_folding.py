"""`folded_em_attention`: the same results and gradients as a 1x1 convolution and the loop behind it."""

import pytest
import torch
from backend_checks import DTYPES, make_features, normal, uniform
from examples import features, unit_bases
from folding_checks import check_folding, plain, results_and_gradients
from torch.library import opcheck

import ema_ops
from ema_ops import reference
from ema_ops.folding import folded_em_attention, normalize

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


@pytest.mark.parametrize("eps_mode", ["add", "max"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_normalize_is_that_of_the_reference_and_a_dead_base_has_a_gradient(eps, eps_mode):
    sums, mass = features(2, 6, 4), torch.rand(2, 4, dtype=torch.float64)
    results = []
    for function in (normalize, reference.normalize):
        inputs = [t.clone().requires_grad_() for t in (sums, mass)]
        m = function(*inputs, eps, eps_mode)
        results.append((m, *torch.autograd.grad(m.sin().sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    dead = torch.zeros(1, 6, 2, requires_grad=True)
    normalize(dead, torch.zeros(1, 2), eps, eps_mode).sum().backward()
    assert dead.grad.isfinite().all()


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


@pytest.mark.parametrize("moves_bases", [False, True])
def test_opcheck_of_the_initial_bases(moves_bases):
    opcheck(torch.ops.ema_ops.initial_bases.default, (torch.randn(1, 6, 4, requires_grad=True), moves_bases))


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
