"""The error rule of all tests: a result may be at most a small factor worse than the plain formula.

The judge is float64. The plain PyTorch formula, run in the precision under test on the same input, says what rounding
alone costs there; nobody chooses a tolerance.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assert_close_to_reference(
    actual: Tensor, reference64: Tensor, plain: Tensor, *, factor: float = 2.0, name: str = "result"
) -> None:
    """Fail unless the error of `actual` is at most `factor` (2; 3 for gradients) times that of `plain`.

    Both errors are taken from `reference64` [..] (float64), as relative norm and as largest element over the largest
    element of the reference. Below the floor of `plain.dtype` (see `floor`) no error counts.
    """
    assert reference64.dtype == torch.float64, f"reference is {reference64.dtype}: expected float64"
    assert actual.shape == reference64.shape == plain.shape, (
        f"{name}: shapes {list(actual.shape)}, reference {list(reference64.shape)}, plain {list(plain.shape)}"
    )
    if reference64.numel() == 0:
        return
    assert actual.isfinite().all(), f"{name}: {int((~actual.isfinite()).sum())} of {actual.numel()} not finite"
    assert plain.isfinite().all(), (
        f"{name}: the plain {plain.dtype} formula is not finite here, so it cannot be a yardstick"
    )
    allowed = floor(plain.dtype)
    for measure, error in (("norm", relative_norm), ("largest element", largest_element)):
        ours, theirs = error(actual, reference64), error(plain, reference64)
        limit = max(factor * theirs, allowed)
        assert ours <= limit, (
            f"{name}, {measure}: error {ours:.3g}, plain {plain.dtype} formula {theirs:.3g}, "
            f"ratio {ours / max(theirs, 1e-300):.3g}: expected at most {limit:.3g} "
            f"(factor {factor:g}, floor {allowed:.3g}), shape {list(actual.shape)}"
        )


def floor(dtype: torch.dtype) -> float:
    """The relative error that counts as none: one rounding of a 16-bit result, eight of a longer one."""
    unit_roundoff = torch.finfo(dtype).eps / 2
    return unit_roundoff if dtype.itemsize == 2 else 8 * unit_roundoff


def relative_norm(actual: Tensor, reference64: Tensor) -> float:
    """||actual - reference|| / ||reference||, or the plain norm where the reference is 0."""
    reference64 = reference64.detach()
    difference, size = (actual.detach().double() - reference64).norm(), reference64.norm()
    return float(difference / size if size > 0 else difference)


def largest_element(actual: Tensor, reference64: Tensor) -> float:
    """Largest |actual - reference| over the largest |reference|, or undivided where the reference is 0."""
    reference64 = reference64.detach()
    difference, size = (actual.detach().double() - reference64).abs().max(), reference64.abs().max()
    return float(difference / size if size > 0 else difference)
