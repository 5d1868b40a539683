"""Features of 8 bits that csrc/hopper reads as they are: the bits of the same call on them in bfloat16."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from backend_checks import assert_same_bits, check_forward, make_bases, make_features, normal, uniform
from emulated import EmulatedBackend, installed

import ema_ops

em_attention = partial(ema_ops.em_attention, backend="cuda")
FLOAT8 = torch.float8_e4m3fn
NAN = 0x7F


@pytest.fixture
def served(core):
    """The backend of a device with two multiprocessors; csrc/hopper must serve any call, and 8 bits as they are."""
    backend = EmulatedBackend(core, 2, hopper=True)
    backend.plans = []
    backend.change_plan = backend.plans.append
    with installed(backend):
        yield backend
    assert all(plan.iteration.hopper for plan in backend.plans)
    assert any(plan.eight_bits for plan in backend.plans)


def placed(x, offset=0, gap=0):
    """`x` in 8 bits from `offset` on in memory that is NaN but for them, rows with a `gap` between them."""
    order = x.stride().index(1)
    rows = x.transpose(-1, order)
    sizes = (*rows.shape[:-1], rows.shape[-1] + gap)
    memory = torch.full((offset + torch.Size(sizes).numel() + 16,), NAN, dtype=torch.uint8).view(FLOAT8)
    inside = memory[offset : offset + torch.Size(sizes).numel()].view(sizes)[..., : rows.shape[-1]]
    return inside.copy_(rows).transpose(-1, order)


def widened(x):
    """`x` in bfloat16 with rows of which boxes can be copied."""
    order = x.stride().index(1)
    rows = x.to(torch.bfloat16).transpose(-1, order)
    memory = rows.new_zeros(*rows.shape[:-1], -(-rows.shape[-1] // 8) * 8)
    return memory[..., : rows.shape[-1]].copy_(rows).transpose(-1, order)


@pytest.mark.parametrize("layout", ["rows", "image"])
@pytest.mark.parametrize(
    ("shape", "num_bases", "num_iters", "offset", "gap"),
    [
        ((2, 40, 72), 9, 1, 0, 0),
        ((2, 5, 7), 3, 2, 1, 0),
        ((2, 97, 70), 33, 3, 3, 5),
        ((1, 65, 130), 64, 2, 9, 0),
        ((1, 290, 512), 20, 2, 8, 3),
    ],
    ids=str,
)
def test_the_same_bits_as_bfloat16(served, shape, num_bases, num_iters, offset, gap, layout):
    x = placed(make_features(shape, torch.float32, layout), offset, gap)
    bases, options = make_bases(shape[-1], num_bases), {"num_iters": num_iters, "scale": 0.3}
    assert_same_bits(check_forward(x, bases, "cuda", **options), em_attention(widened(x), bases, **options))


@pytest.mark.parametrize("layout", ["rows", "image", "heads inside", "slice"])
def test_heads_and_weights(served, layout):
    x = make_features((2, 2, 70, 72), torch.float32, layout).to(FLOAT8)
    bases, options = make_bases(2, 72, 33), {"weight": uniform(2, 2, 70, seed=4), "num_iters": 2}
    y, last = check_forward(x, bases, "cuda", **options)
    assert_same_bits((y, last), em_attention(x.to(torch.bfloat16), bases, **options))


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_expanded_features(served, layout):
    x = make_features((1, 43, 72), torch.float32, layout).to(FLOAT8).expand(3, 43, 72)
    bases = make_bases(72, 9)
    assert_same_bits(em_attention(x, bases), em_attention(x.to(torch.bfloat16).contiguous(), bases))
    one = make_features((1, 1, 72), torch.float32).to(FLOAT8).expand(2, 43, 72)
    assert_same_bits(em_attention(one, bases), em_attention(one.to(torch.bfloat16).contiguous(), bases))


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_nan_stays_in_its_image(served, layout):
    x, bases = placed(make_features((3, 43, 70), torch.float32, layout), 5), make_bases(70, 9)
    clean = em_attention(x, bases)
    x[1] = torch.nan
    y, last = em_attention(x, bases)
    assert y[1].isnan().all()
    assert last[1].isnan().all()
    for image in (0, 2):
        assert_same_bits((y, last), clean, slice(image, image + 1))


def test_every_number_of_8_bits(served):
    """One base has all the responsibility, and the M-step of one position gives its numbers over their length."""
    x = torch.arange(256, dtype=torch.uint8)[(torch.arange(256) & 0x7F) != NAN].view(FLOAT8).view(1, 1, 254)
    y, _ = em_attention(x, normal(254, 1, seed=1), num_iters=1, eps=0.0)
    expected = torch.nn.functional.normalize(x.double(), dim=-1)
    assert torch.equal(y, expected.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("changed", "reads"),
    [
        ({}, True),
        ({"num_bases": 65}, False),
        ({"channels": 513}, False),
        ({"positions_fastest": True, "positions": 1, "channels": 1}, True),
        ({"one_launch": True}, True),
        ({"hopper": False}, False),
        ({"hopper": False, "one_launch": True}, False),
        ({"dtype": "float16"}, False),
    ],
    ids=str,
)
def test_what_is_read_as_it_is(core, changed, reads):
    device = core.Device(
        132, 227 << 10, hopper=changed.get("hopper", True), one_launch=changed.get("one_launch", False)
    )
    problem = core.Problem()
    problem.eight_bits, problem.dtype = True, getattr(core.Dtype, changed.get("dtype", "bfloat16"))
    for name in ("positions", "channels", "num_bases", "positions_fastest"):
        setattr(problem, name, changed.get(name, 64))
    plan = core.plan(problem, device)
    assert plan.eight_bits == reads
    assert not any((plan.loop.one_launch, plan.copies, plan.any_rows))


def test_what_cannot_read_8_bits_refuses_them(core):
    problem = core.Problem()
    problem.eight_bits, problem.dtype = True, core.Dtype.bfloat16
    nothing, place = (0, 0, 0, 0, 0, 1), (0, 0, 0)
    plan, served = (core.plan(problem, core.Device(2, 227 << 10, hopper=hopper)) for hopper in (False, True))
    with pytest.raises(
        ValueError, match=r"x has 8 bits: expected .* em_forward or em_attend and a plan with eight_bits"
    ):
        core.em_forward(problem, plan, place, nothing, (0,) * 4, (0,) * 5, nothing, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="x has 8 bits: expected 16 or 32"):
        core.em_step(problem, served, place, nothing, (0,) * 4, (0,) * 5, 0, 0, 0)


def test_what_has_no_kernel_for_8_bits_widens_them(core):
    x, bases = make_features((1, 40, 72), torch.float32).to(FLOAT8), make_bases(72, 65)
    with installed(EmulatedBackend(core, 2, hopper=True)):
        assert_same_bits(em_attention(x, bases), em_attention(x.to(torch.bfloat16), bases))
