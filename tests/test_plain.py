"""When the dispatcher is skipped in front of an operator, and that nobody who listens to it misses a call."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ema_ops
from ema_ops import ops, reference
from ema_ops.plain import is_plain

X, BASES = torch.randn(2, 10, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Passing(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Named(torch.Tensor):
    """A subclass without a dispatch key of its own."""


def test_plain_calls():
    leaf = X.clone().requires_grad_()
    assert is_plain((X, BASES, None, False, "BNC", 3, 1.0))
    assert is_plain((leaf, torch.nn.Parameter(BASES)))
    with torch.no_grad():
        assert is_plain((leaf,))
    with torch.autocast("cpu"):
        assert is_plain((X,))
    with torch.inference_mode():
        assert is_plain((X, torch.zeros(2)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.imag(torch.randn(3, dtype=torch.complex64).conj()),
        torch._efficientzerotensor(3),
        torch.zeros(3, device="meta"),
        torch.zeros(3).as_subclass(Named),
    ],
    ids=["negated", "zero", "meta", "subclass"],
)
def test_tensors_that_are_not_plain(tensor):
    assert not is_plain((X, tensor))


@pytest.mark.parametrize(
    "listening", [Seen, Passing, torch.profiler.profile, torch.autograd.profiler.profile, lambda: torch.device("cpu")]
)
def test_whoever_listens_is_not_passed_by(listening):
    with listening():
        assert not is_plain((X,))
    assert is_plain((X,))


def test_transforms_are_not_passed_by():
    seen = []
    torch.func.vmap(lambda x: seen.append(is_plain((x,))) or x)(X)
    torch.func.grad(lambda x: seen.append(is_plain((x,))) or x.sum())(X)
    torch.func.grad(lambda x: seen.append(is_plain((BASES,))) or x.sum())(X)
    assert seen == [False, False, False]


@pytest.mark.parametrize("wanted", [False, True], ids=["no derivative", "derivative"])
def test_modes_and_the_profiler_see_the_operators(wanted):
    leaf = X.clone().requires_grad_(wanted)
    with Seen() as seen:
        y, _ = ema_ops.em_attention(leaf, BASES)
    forward = "em_forward" if wanted else "em_attend"
    assert f"ema_ops.{forward}.default" in seen.names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        again, _ = ema_ops.em_attention(leaf, BASES)
        if wanted:
            again.sum().backward()
    names = {event.name for event in profile.events()}
    assert f"ema_ops::{forward}" in names
    assert ("ema_ops::em_backward" in names) == wanted
    torch.testing.assert_close(again, ema_ops.em_attention(leaf, BASES)[0], rtol=0, atol=0)
    assert y.shape == again.shape


def test_negated_features_are_read_with_their_sign():
    negated = torch.imag(torch.complex(X, X).conj())
    assert negated.is_neg()
    for got, wanted in zip(ema_ops.em_attention(negated, BASES), ema_ops.em_attention(-X, BASES), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_results_are_nobodys_view():
    for x in (X, X.mT.contiguous().mT, X.unsqueeze(1)):
        y, last = ops.em_step(x, BASES.unsqueeze(0), None, None, "BNC" if x.dim() == 3 else "BHNC", 1.0, None)
        assert not y._is_view()
        assert not last._is_view()
    y, _ = ema_ops.em_attention(X, BASES)
    assert not y._is_view()
    assert y.add_(1).shape == X.shape


def test_calls_of_the_same_sizes_are_calls_of_their_own():
    """What is remembered of a call are its sizes, not where its memory starts nor what is in it."""
    whole = torch.randn(2, 20, 6, dtype=torch.float64)
    parts = whole[:, :10], whole[:, 10:]
    assert parts[0].stride() == parts[1].stride()
    for part in parts:
        torch.testing.assert_close(ema_ops.em_attention(part, BASES), reference.em_attention(part, BASES))
    weight = torch.ones(2, 10)
    ema_ops.em_attention(X, BASES, weight=weight)
    with pytest.raises(ValueError, match="weight has the value -1"):
        ema_ops.em_attention(X, BASES, weight=-weight)
