"""Features of 8 bits: the same call on x.to(torch.bfloat16), for inference."""

import pytest
import torch
from examples import features, unit_bases
from judge import assert_close_to_reference
from torch.library import opcheck

import ema_ops
from ema_ops import EMAttention, EMAUnit, reference

FLOAT8 = torch.float8_e4m3fn


def eight_bits(*shape, order="rows", seed=0):
    return features(*shape, dtype=torch.float32, order=order, seed=seed).to(FLOAT8)


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(2, 33, 12), (2, 3, 10, 7), (0, 33, 12), (2, 0, 12)], ids=str)
def test_is_the_call_on_bfloat16(shape, order):
    x = eight_bits(*shape, order=order)
    bases = unit_bases(*shape[1:-2], shape[-1], 5, dtype=torch.float32)
    weight = torch.rand(shape[-2])
    y, last = ema_ops.em_attention(x, bases, weight=weight, scale=0.5)
    expected, expected_last = ema_ops.em_attention(x.to(torch.bfloat16), bases, weight=weight, scale=0.5)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert torch.equal(y, expected)
    assert torch.equal(last, expected_last)
    assert y.stride() == expected.stride()


def test_a_factor_of_the_features_belongs_into_the_scale():
    x, bases = features(2, 200, 16), unit_bases(16, 5)
    large = 1000 * x
    factor = float(large.abs().max()) / 448
    y, _ = ema_ops.em_attention((large / factor).to(FLOAT8), bases.float(), scale=factor / 1000)
    reference64, _ = reference.em_attention((large / factor).to(FLOAT8).double() * factor / 1000, bases)
    plain, _ = reference.em_attention((large / factor).to(FLOAT8).bfloat16() * factor / 1000, bases.bfloat16())
    assert_close_to_reference(y, reference64, plain)


@pytest.mark.parametrize("x", [eight_bits(2, 10, 40)[..., ::2], eight_bits(1, 10, 20).expand(2, 10, 20)], ids=str)
def test_any_strides(x):
    bases = unit_bases(20, 5, dtype=torch.float32)
    y, _ = ema_ops.em_attention(x, bases)
    assert torch.equal(y, ema_ops.em_attention(x.to(torch.bfloat16).contiguous(), bases)[0])
    assert y.is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
def test_layer(memory_format, training):
    layers = [EMAttention(8, 4, num_heads=2).train(training) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = eight_bits(2, 8, 5, 6).to(memory_format=memory_format)
    got, expected = layers[0](x), layers[1](x.to(torch.bfloat16))
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=memory_format)
    assert torch.equal(layers[0].bases, layers[1].bases)


def test_bases_get_their_gradient():
    x, grads = eight_bits(2, 33, 12), []
    for value in (x, x.to(torch.bfloat16)):
        bases = unit_bases(12, 5, dtype=torch.float32).requires_grad_()
        y, last = ema_ops.em_attention(value, bases)
        both = (y.float().sin().sum() + last.sin().sum(), last.sin().sum())
        grads.append([torch.autograd.grad(loss, bases, retain_graph=True)[0] for loss in both])
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)
        assert got.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_dtype(dtype):
    x, bases = eight_bits(2, 33, 12), unit_bases(12, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        y, _ = ema_ops.em_attention(x, bases)
    assert torch.equal(y, ema_ops.em_attention(x.to(dtype), bases)[0])
    assert y.dtype == dtype


@pytest.mark.parametrize("layout", ["BNC", "BCN"])
def test_opcheck(layout):
    x = eight_bits(2, 6, 6) if layout == "BNC" else eight_bits(2, 6, 3, 2)
    arguments = (x, unit_bases(2, 3, 4, dtype=torch.float32), None, False, layout, 3, 3, 1.0, 1e-6, "add", None)
    # its test of the schema multiplies x, which has no such product
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(torch.ops.ema_ops.em_forward.default, arguments, test_utils=tests)


def test_compiled_and_vmapped():
    x, bases = eight_bits(3, 2, 33, 12), unit_bases(12, 5, dtype=torch.float32)
    expected = torch.stack([ema_ops.em_attention(one, bases)[0] for one in x])
    assert torch.equal(torch.vmap(lambda one: ema_ops.em_attention(one, bases)[0])(x), expected)
    compiled = torch.compile(ema_ops.em_attention, fullgraph=True)
    assert torch.equal(torch.stack([compiled(one, bases)[0] for one in x]), expected)


def test_what_does_not_take_8_bits_says_what_it_takes():
    x, bases = eight_bits(2, 10, 6), unit_bases(6, 4, dtype=torch.float32)
    refused = "has dtype torch.float8_e4m3fn: expected one of float32, bfloat16, float16, float64"
    for call in (ema_ops.em_step, ema_ops.responsibilities):
        with pytest.raises(TypeError, match=f"x {refused}"):
            call(x, bases)
    with pytest.raises(TypeError, match=f"x {refused}"):
        EMAUnit(6, 4)(x.mT.unsqueeze(-1))
    with pytest.raises(TypeError, match=f"bases {refused}"):
        ema_ops.em_attention(x, bases.to(FLOAT8))
    with pytest.raises(ValueError, match=r"float8_e4m3fn requires a gradient.* expected x.to\(torch.bfloat16\)"):
        ema_ops.em_attention(x.requires_grad_(), bases)
    with pytest.raises(TypeError, match=r"x has dtype torch.float8_e5m2: expected one of .*float8_e4m3fn"):
        ema_ops.em_attention(x.detach().to(torch.float8_e5m2), bases)
