"""EMAttention: shapes, moving average, state, options and errors."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import ema_ops
from ema_ops import EMAttention, reference


def expected(layer, x, weight=None):
    """The layer's formula on an image [B, C, *spatial] by the reference; returns y and the last bases."""
    rows = x.flatten(2).unflatten(1, (layer.num_heads, -1)).transpose(-1, -2)
    weight = None if weight is None else weight.flatten(1)[:, None]
    y, bases = reference.em_attention(rows, layer.bases, num_iters=layer.num_iters, weight=weight)
    return y.transpose(-1, -2).reshape(x.shape), bases


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (2, 8, 30), (2, 8, 2, 3, 5), (1, 8, 1, 1)])
def test_images_of_any_rank(shape, num_heads):
    layer, x = EMAttention(8, 5, num_heads=num_heads).double().eval(), torch.randn(shape, dtype=torch.float64)
    y, bases = layer(x, return_bases=True)
    expected_y, expected_bases = expected(layer, x)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(bases, expected_bases)
    assert bases.shape == (shape[0], num_heads, 8 // num_heads, 5)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_tokens_equal_images(num_heads):
    layer = EMAttention(8, 5, num_heads=num_heads).double().eval()
    tokens = EMAttention(8, 5, num_heads=num_heads, channel_dim=-1).double().eval()
    tokens.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(tokens(x.movedim(1, -1)), y.movedim(1, -1))
    torch.testing.assert_close(tokens(x.flatten(2).mT), y.flatten(2).mT)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_memory_format_is_kept(memory_format, num_heads):
    layer = EMAttention(8, 5, num_heads=num_heads)
    x = torch.randn(2, 8, 6, 5).to(memory_format=memory_format).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.stride() == x.stride()
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_slices_of_an_image(memory_format):
    layer, whole = EMAttention(8, 5).eval(), torch.randn(4, 10, 9, 11).to(memory_format=memory_format)
    x = whole[::2, 1:9, 2:, ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    assert layer(x).is_contiguous(memory_format=memory_format)


def test_weight_per_pixel_and_per_position():
    layer, x = EMAttention(8, 5).double().eval(), torch.randn(2, 8, 6, 5, dtype=torch.float64)
    mask = torch.rand(2, 6, 5) > 0.4
    y = layer(x, weight=mask)
    torch.testing.assert_close(y, expected(layer, x, mask.double())[0])
    assert torch.equal(layer(x, weight=mask.flatten(1)), y)


def test_training_moves_the_bases_and_evaluation_leaves_them():
    layer, x = EMAttention(8, 5, momentum=0.25).double(), torch.randn(3, 8, 6, 5, dtype=torch.float64)
    before = layer.bases.clone()
    layer.eval()(x)
    layer.train()(x, update_bases=False)
    assert torch.equal(layer.bases, before)
    _, bases = layer(x, return_bases=True)
    mixed = 0.75 * before + 0.25 * bases.mean(0)
    torch.testing.assert_close(layer.bases, mixed / (mixed.norm(dim=-2, keepdim=True) + 1e-6))
    moved = layer.bases.clone()
    layer.eval()(x, update_bases=True)
    assert not torch.equal(layer.bases, moved)


def test_gradient_in_training_is_that_of_the_bases_before_they_moved():
    layer, x = EMAttention(8, 5).double(), torch.randn(3, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    (expected_grad,) = torch.autograd.grad(expected(layer, x)[0].sin().sum(), x)
    (grad,) = torch.autograd.grad(layer(x).sin().sum(), x)
    torch.testing.assert_close(grad, expected_grad)


def test_learnable_bases_learn():
    layer, x = EMAttention(8, 5, learnable_bases=True).double(), torch.randn(3, 8, 6, 5, dtype=torch.float64)
    layer(x).sin().sum().backward()
    leaf = layer.bases.detach().clone().requires_grad_()
    rows = x.flatten(2).mT[:, None]
    reference.em_attention(rows, leaf)[0].sin().sum().backward()
    torch.testing.assert_close(layer.bases.grad, leaf.grad)
    assert [name for name, _ in layer.named_parameters()] == ["bases"]


def test_learnable_bases_learn_with_more_iterations_too():
    layer = EMAttention(8, 5, 2, learnable_bases=True, grad_iters=2)
    layer(torch.randn(2, 8, 6, 5), num_iters=4).sin().sum().backward()
    assert layer.bases.grad.count_nonzero() > 0


def test_moving_the_bases_by_hand():
    layer, x = EMAttention(8, 5, num_heads=2), torch.randn(2, 8, 6, 5)
    other = copy.deepcopy(layer)
    _, bases = layer(x, return_bases=True, update_bases=False)
    layer.update_running_bases(bases)
    other(x)
    assert torch.equal(layer.bases, other.bases)
    with pytest.raises(ValueError, match=r"bases has shape \[2, 1, 4, 5\]: expected \[B, 2, 4, 5\]"):
        layer.update_running_bases(bases[:, :1])


def test_another_number_of_iterations():
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    layer = EMAttention(8, 5, 3, grad_iters=3).double().eval()
    one = EMAttention(8, 5, 1).double().eval()
    one.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x, num_iters=1), one(x))
    assert layer(x, num_iters=7).requires_grad


def test_state_dict_deepcopy_and_pickle():
    layer, x = EMAttention(8, 5, num_heads=2), torch.randn(2, 8, 6, 5)
    layer(x)
    y = layer.eval()(x)
    assert list(layer.state_dict()) == ["bases"]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = EMAttention(8, 5, num_heads=2).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_in_half_precision(dtype):
    layer = EMAttention(8, 5).to(dtype)
    before = layer.bases.clone()
    x = torch.randn(2, 8, 6, 5, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == layer.bases.dtype == dtype
    assert layer.bases.isfinite().all()
    assert not torch.equal(layer.bases, before)


def test_autocast():
    layer, x = EMAttention(8, 5), torch.randn(2, 8, 6, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.bases.dtype == torch.float32
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 8, 6, 5), (2, 8, 0, 5)])
def test_empty_batches_in_training_leave_the_bases(shape):
    layer, x = EMAttention(8, 5), torch.randn(shape, requires_grad=True)
    before = layer.bases.clone()
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape
    assert torch.equal(layer.bases, before)


def test_presets_are_keyword_arguments():
    for name in ("official", "mmsegmentation"):
        unit = ema_ops.EMAUnit(8, 4, **ema_ops.PRESETS[name])
        assert unit.attention.grad_iters == 0
        assert not any(p.requires_grad for p in unit.conv1.parameters())
        assert all(p.requires_grad for p in unit.conv2.parameters())


OPTIONS = [
    ({"channels": 0}, ValueError, "channels is 0: expected at least 1"),
    ({"num_bases": 0}, ValueError, "num_bases is 0"),
    ({"num_iters": 2.5}, TypeError, "num_iters is 2.5"),
    ({"num_heads": 3}, ValueError, "num_heads is 3: expected a divisor of channels = 8"),
    ({"scale": float("inf")}, ValueError, "scale is inf"),
    ({"momentum": 1.5}, ValueError, "momentum is 1.5: expected 0 to 1"),
    ({"momentum": "0.1"}, TypeError, "momentum is '0.1'"),
    ({"renormalize": True}, ValueError, "renormalize is True: expected one of 'mixed', 'mean', 'none'"),
    ({"eps": -1.0}, ValueError, "eps is -1.0"),
    ({"eps_mode": "sum"}, ValueError, "eps_mode is 'sum'"),
    ({"grad_iters": 4}, ValueError, "grad_iters is 4: expected 0 to num_iters = 3"),
    ({"channel_dim": 2}, ValueError, "channel_dim is 2: expected 1"),
    ({"backend": "fast"}, ValueError, "backend is 'fast'"),
    ({"average_group": "world"}, TypeError, "average_group is 'world'"),
    ({"learnable_bases": "no"}, TypeError, "learnable_bases is 'no'"),
    ({"learnable_bases": True, "grad_iters": 2}, ValueError, "would never get a gradient"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS, ids=[str(o[0]) for o in OPTIONS])
def test_option_errors(options, error, message):
    with pytest.raises(error, match=message):
        EMAttention(**{"channels": 8, **options})


def test_numbers_of_numpy_are_numbers():
    layer = EMAttention(8, np.int64(5), momentum=np.float32(0.5), scale=np.float32(0.5))
    assert (layer.momentum, layer.scale, layer.num_bases) == (0.5, 0.5, 5)


CALLS = [
    ({"x": torch.randn(2, 8)}, ValueError, r"x has shape \[2, 8\]: expected \[B, C, \*spatial\] with C = 8"),
    ({"x": torch.randn(2, 6, 8)}, ValueError, r"x has shape \[2, 6, 8\]"),
    ({"x": None}, TypeError, "x is NoneType: expected a tensor"),
    ({"x": torch.ones(2, 8, 3, dtype=torch.int32)}, TypeError, "x has dtype torch.int32"),
    ({"x": torch.ones(2, 8, 3, device="meta")}, ValueError, "x is on meta: expected cpu, the device of the layer"),
    ({"weight": torch.ones(2, 4, 3)}, ValueError, r"\[2, 4, 3\]: expected .* sizes \[3, 4\] or \[B, 12\]"),
    ({"weight": torch.ones(2, 1, 3, 4)}, ValueError, r"weight has shape \[2, 1, 3, 4\]"),
    ({"weight": torch.ones(2, 11)}, ValueError, r"weight has shape \[2, 11\]"),
    ({"num_iters": 0}, ValueError, "num_iters is 0"),
    ({"update_bases": "no"}, TypeError, "update_bases is 'no'"),
    ({"return_bases": "no"}, TypeError, "return_bases is 'no'"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_call_errors(call, error, message):
    with pytest.raises(error, match=message):
        EMAttention(8, 5)(**{"x": torch.randn(2, 8, 3, 4), **call})


def test_a_double_layer_wants_double_features():
    with pytest.raises(TypeError, match=r"x has dtype torch.float32: expected torch.float64"):
        EMAttention(8, 5).double()(torch.randn(2, 8, 3, 4))


def test_learnable_bases_have_no_average_to_move():
    layer = EMAttention(8, 5, learnable_bases=True)
    with pytest.raises(ValueError, match="update_bases is True with learnable_bases"):
        layer(torch.randn(2, 8, 3, 4), update_bases=True)
    with pytest.raises(ValueError, match="no running average to move"):
        layer.update_running_bases(torch.randn(2, 1, 8, 5))


MOVES = [
    ({"bases": torch.ones(2, 1, 8, 5, device="meta")}, ValueError, "bases is on meta: expected cpu"),
    ({"weight": [1.0]}, TypeError, "weight is list: expected a tensor or None"),
    ({"weight": torch.ones(2)}, ValueError, r"weight has shape \[2\]: expected it to be \[B, N\]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), MOVES)
def test_errors_of_moving_the_running_bases(arguments, error, message):
    with pytest.raises(error, match=message):
        EMAttention(8, 5).update_running_bases(**{"bases": torch.ones(2, 1, 8, 5), **arguments})
