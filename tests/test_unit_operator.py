"""The operator `ema_ops::em_unit`: the formula, opcheck, who serves it, and what it refuses."""

import pytest
import torch
from backend_checks import DTYPES, make_bases, make_features, normal, uniform
from examples import features, unit_bases
from judge import assert_close_to_reference
from torch.library import opcheck

import ema_ops
from ema_ops import backends, reference
from ema_ops.backends.eager import EagerBackend

EM_UNIT = torch.ops.ema_ops.em_unit
LOOP = (3, 1.0, 1e-6, "add")


class LoopOnly(EagerBackend):
    """A backend without the unit."""

    name = "loop only"
    em_unit = backends.Backend.em_unit


def unit(x, bases, weight, weight1, bias1, weight2, bias2, **options):
    """The formula on rows [B, N, C] and bases [C, K]."""
    rebuilt, last = reference.em_attention(x @ weight1.mT + bias1, bases, weight=weight, **options)
    return (x + rebuilt.relu() @ weight2.mT + bias2).relu(), last.unsqueeze(1)


def parameters(channels, dtype=torch.float32):
    """Weights and biases of both convolutions."""
    scale = channels**-0.5
    return [
        scale * normal(channels, channels, seed=5, dtype=dtype),
        normal(channels, seed=6),
        scale * normal(channels, channels, seed=7, dtype=dtype),
        normal(channels, seed=8),
    ]


def in_layout(x, layout):
    """Rows [B, N, C] as what `layout` names."""
    return {"BNC": x, "BCN": x.mT, "BHNC": x.unsqueeze(1)}[layout]


def as_rows(y, layout):
    return {"BNC": y, "BCN": y.mT, "BHNC": y.squeeze(1)}[layout]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ["rows", "image", "slice"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_that_of_the_plain_formula(dtype, order, weighted):
    batch, positions, channels, num_bases = 2, 97, 35, 7
    x, bases = make_features((batch, positions, channels), DTYPES[dtype], order), make_bases(channels, num_bases)
    weight = uniform(batch, positions, seed=4) if weighted else None
    given = parameters(channels, DTYPES[dtype])
    y, last = EM_UNIT(x, bases.unsqueeze(0), weight, *given, "BNC", 3, 1.5, 1e-6, "add", "torch")
    options = {"scale": 1.5}
    exact, plain = (
        unit(*(t if t is None else t.to(d) for t in (x, bases, weight, *given)), **options)
        for d in (torch.float64, x.dtype)
    )
    assert (y.dtype, last.dtype) == (x.dtype, torch.float32)
    assert_close_to_reference(y, exact[0], plain[0], name="y")
    assert_close_to_reference(last, exact[1], plain[1], name="bases")


@pytest.mark.parametrize("layout", ["BNC", "BCN", "BHNC"])
@pytest.mark.parametrize("positions", [1, 10, 4500])
def test_float64_to_the_last_digits(layout, positions):
    x, bases, weight = features(2, positions, 33), unit_bases(33, 5), torch.rand(2, positions, dtype=torch.float64)
    given = [p.double() for p in parameters(33)]
    expected, expected_last = unit(x, bases, weight, *given, num_iters=2, eps=1e-3, eps_mode="max")
    y, last = EM_UNIT(in_layout(x, layout), bases[None], weight, *given, layout, 2, 1.0, 1e-3, "max", None)
    torch.testing.assert_close(as_rows(y, layout), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["own", "other"])
@pytest.mark.parametrize("layout", ["BNC", "BCN", "BHNC"])
def test_opcheck(layout, order):
    x = torch.randn({"BNC": (2, 10, 6), "BCN": (2, 6, 5, 2), "BHNC": (2, 1, 10, 6)}[layout])
    if order == "other":
        x = x.to(memory_format=torch.channels_last) if layout == "BCN" else x.mT.contiguous().mT
    bases, weight = unit_bases(1, 6, 4, dtype=torch.float32), torch.rand(2, 10)
    opcheck(EM_UNIT.default, (x, bases, weight, *parameters(6), layout, *LOOP, None))


def test_one_image_does_not_reach_another():
    x, bases, given = torch.randn(2, 40, 6), unit_bases(1, 6, 4, dtype=torch.float32), parameters(6)
    clean, _ = EM_UNIT(x, bases, None, *given, "BNC", *LOOP, None)
    x[1, 3] = torch.nan
    y, last = EM_UNIT(x, bases, None, *given, "BNC", *LOOP, None)
    assert torch.equal(y[0], clean[0])
    assert last[0].isfinite().all()
    assert y[1].isnan().any()


@pytest.mark.parametrize("shape", [(0, 10, 6), (2, 0, 6)])
def test_nothing_to_work_on(shape):
    y, last = EM_UNIT(torch.randn(shape), torch.randn(1, 6, 4), None, *parameters(6), "BNC", *LOOP, None)
    assert y.shape == shape
    assert last.shape == (shape[0], 1, 6, 4)
    assert last.count_nonzero() == 0


def test_vmap_folds_images_and_repeats_the_call_for_parameters():
    x, bases, given = torch.randn(3, 2, 10, 6), torch.randn(1, 6, 4), parameters(6)

    def call(x, weight1):
        return EM_UNIT(x, bases, None, weight1, *given[1:], "BNC", *LOOP, None)[0]

    torch.testing.assert_close(torch.vmap(call, (0, None))(x, given[0])[1], call(x[1], given[0]))
    several = torch.randn(3, 6, 6)
    torch.testing.assert_close(torch.vmap(call, (None, 0))(x[0], several)[1], call(x[0], several[1]))
    torch.testing.assert_close(torch.vmap(call)(x, several)[2], call(x[2], several[2]))


def test_compiles_once_for_all_sizes():
    def call(x):
        return EM_UNIT(x, bases, None, *given, "BCN", *LOOP, None)

    bases, given = torch.randn(1, 6, 4), parameters(6)
    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 6, 5, 7), (3, 6, 6, 9)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), call(x))


def test_it_has_no_gradient():
    x = torch.randn(2, 10, 6, requires_grad=True)
    y, _ = EM_UNIT(x, torch.randn(1, 6, 4), None, *parameters(6), "BNC", *LOOP, None)
    with pytest.raises(NotImplementedError, match="em_unit has no gradient"):
        y.sum().backward()


def test_a_backend_without_it_is_passed_over(monkeypatch):
    load = backends.load
    monkeypatch.setattr(backends, "MODULES", {"loop only": "", "torch": backends.MODULES["torch"]})
    monkeypatch.setattr(backends, "load", lambda name: LoopOnly() if name == "loop only" else load(name))
    arguments = (torch.randn(2, 10, 6), torch.randn(1, 6, 4), None, *parameters(6), "BNC", *LOOP)
    assert EM_UNIT(*arguments, None)[0].shape == (2, 10, 6)
    with pytest.raises(ValueError, match="backend 'loop only' cannot serve this call: it has the loop only"):
        EM_UNIT(*arguments, "loop only")
    assert ema_ops.em_attention(arguments[0], arguments[1][0], backend="loop only")[0].shape == (2, 10, 6)


@pytest.mark.parametrize(("index", "shape"), [(0, (6, 5)), (1, (6, 1)), (2, (5, 6)), (3, (5,))])
def test_parameters_of_other_shapes(index, shape):
    given = parameters(6)
    given[index] = torch.randn(shape)
    name = ("weight1", "bias1", "weight2", "bias2")[index]
    with pytest.raises(ValueError, match=rf"{name} has shape \[{str(list(shape))[1:-1]}\]: expected \[6"):
        EM_UNIT(torch.randn(2, 10, 6), torch.randn(1, 6, 4), None, *given, "BNC", *LOOP, None)


def test_heads_are_refused():
    with pytest.raises(ValueError, match="bases has 2 heads: expected one"):
        EM_UNIT(torch.randn(2, 10, 6), torch.randn(2, 3, 4), None, *parameters(6), "BNC", *LOOP, None)
