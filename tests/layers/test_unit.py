"""EMAUnit: the formula around the loop, its options and errors."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ema_ops
from ema_ops import EMAUnit


def test_formula():
    unit, x = EMAUnit(8, 5).double().eval(), torch.randn(2, 8, 6, 5, dtype=torch.float64)
    nn.init.normal_(unit.norm.weight)
    nn.init.normal_(unit.conv1.bias)
    inner, bases = unit.attention(unit.conv1(x), return_bases=True)
    expected = F.relu(x + unit.norm(F.conv2d(F.relu(inner), unit.conv2.weight)))
    y, last = unit(x, return_bases=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, bases)
    assert unit.conv2.bias is None


def test_options_reach_the_layer():
    unit = EMAUnit(8, 6, 2, num_heads=2, scale=0.5, grad_iters=1, norm_layer=partial(nn.GroupNorm, 4))
    assert isinstance(unit.norm, nn.GroupNorm)
    assert unit.attention.bases.shape == (2, 4, 6)
    assert (unit.attention.scale, unit.attention.grad_iters, unit.attention.num_iters) == (0.5, 1, 2)
    with pytest.raises(TypeError, match="num_head"):
        EMAUnit(8, num_head=2)
    with pytest.raises(ValueError, match="channel_dim is -1: EMAUnit expects images"):
        EMAUnit(8, channel_dim=-1)


def test_detached_unit_trains_its_second_half_only():
    unit = EMAUnit(8, 5, grad_iters=0)
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    unit(x).square().sum().backward()
    assert unit.conv1.weight.grad is None
    assert unit.conv2.weight.grad.count_nonzero() > 0
    assert x.grad.count_nonzero() > 0


def test_weight_iterations_and_averaging():
    unit, x = EMAUnit(8, 5), torch.randn(2, 8, 6, 5)
    before = unit.attention.bases.clone()
    unit(x, weight=torch.ones(2, 6, 5), num_iters=1, update_bases=False)
    assert torch.equal(unit.attention.bases, before)
    unit(x)
    assert not torch.equal(unit.attention.bases, before)
    assert torch.equal(copy.deepcopy(unit).eval()(x), unit.eval()(x))


def test_channels_last_in_gives_channels_last_out():
    unit = EMAUnit(8, 5).to(memory_format=torch.channels_last)
    y = unit(torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("x", [torch.randn(2, 8, 5), torch.randn(2, 7, 5, 5)])
def test_shape_errors(x):
    with pytest.raises(ValueError, match=r"expected \[B, 8, H, W\]"):
        EMAUnit(8, 5)(x)
    with pytest.raises(TypeError, match="x is int"):
        ema_ops.EMAUnit(8, 5)(3)
    with pytest.raises(TypeError, match=r"x has dtype torch.int32"):
        ema_ops.EMAUnit(8, 5)(torch.ones(2, 8, 3, 3, dtype=torch.int32))
