"""Nothing is timed before it was found right: the judgement of a peer against its formula in float64.

EM attention passes when its error is at most twice (gradients: three times) that of the plain formula run in the same
precision on the same input. The accuracy of other attentions is not ours to judge, only that they compute what they
should: there it is ten times. Errors at the rounding of the dtype count as none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Case, Inputs
from .formulas import Formula

FACTORS = {"y": 2.0, "grad_x": 3.0}
FACTOR_OF_OTHERS = 10.0
# operations of the formula's forward pass that the check may cost; at least one image is always checked
CHECK_OPERATIONS = {"cpu": 1e11, "cuda": 2e13}


@dataclass(frozen=True)
class Truth:
    """Float64 results [images, N, C] of the last images of the batch (host memory), and the errors they allow.

    `allowed` maps "y" and "grad_x" to a pair: relative L2 error, and largest error over the largest element.
    """

    images: int
    exact: dict[str, Tensor]
    allowed: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Verdict:
    """Errors of a result and what was allowed, by "y" and "grad_x": pairs as in `Truth`."""

    images: int
    errors: dict[str, tuple[float, float]]
    allowed: dict[str, tuple[float, float]]

    @property
    def wrong(self) -> str | None:
        """What is wrong, or None. NaN is wrong."""
        for name, errors in self.errors.items():
            for kind, error, allowed in zip(("relative", "largest"), errors, self.allowed[name], strict=True):
                if not error <= allowed:
                    return f"{kind} error of {name} is {error:.2e}: expected at most {allowed:.2e}"
        return None


def checked_images(formula: Formula, case: Case, device: torch.device) -> int:
    """How many images of the batch the float64 check can afford; the last ones are taken, where an index that
    overflows would show."""
    affordable = int(CHECK_OPERATIONS[device.type] / formula.operations(case))
    return max(1, min(case.batch, affordable))


def find_truth(formula: Formula, case: Case, inputs: Inputs, with_gradient: bool) -> Truth:
    """Run the formula in float64 and, for the allowed errors, in the arithmetic of the case, image by image."""
    images = checked_images(formula, case, inputs.x.device)
    exact = _last_images(formula, case, inputs, images, torch.float64, with_gradient)
    plain = _last_images(formula, case, inputs, images, case.arithmetic, with_gradient)
    allowed = {}
    for name, truth in exact.items():
        factor = FACTORS[name] if formula.strict else FACTOR_OF_OTHERS
        relative, largest = (max(factor * error, rounding(case)) for error in _errors(plain[name], truth))
        allowed[name] = (relative, largest)
    return Truth(images, exact, allowed)


def rounding(case: Case) -> float:
    """The relative error that counts as none: one rounding of a 16-bit result, eight of a longer one."""
    unit = torch.finfo(case.arithmetic).eps / 2
    return unit if case.arithmetic.itemsize == 2 else 8 * unit


def judge(y: Tensor, grad_x: Tensor | None, truth: Truth) -> Verdict:
    """Compare y and grad_x [B, N, C] (None: has no gradient) with the truth about the last images."""
    results = {"y": y} if grad_x is None else {"y": y, "grad_x": grad_x}
    errors = {name: _errors(result[-truth.images :], truth.exact[name]) for name, result in results.items()}
    return Verdict(truth.images, errors, {name: truth.allowed[name] for name in results})


def _last_images(formula, case, inputs, images, dtype, with_gradient) -> dict[str, Tensor]:
    """Results of the last `images` images, each run alone in `dtype`."""
    outputs, gradients = [], []
    for index in range(case.batch - images, case.batch):
        one = inputs.image(index, dtype)
        if with_gradient:
            one = one.requiring_grad()
        y = formula.apply(case, one)
        outputs.append(y.detach().cpu())
        if with_gradient:
            gradients.append(torch.autograd.grad(y, one.x, one.grad_y)[0].cpu())
    results = {"y": torch.cat(outputs)}
    return {**results, "grad_x": torch.cat(gradients)} if with_gradient else results


def _errors(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative L2 error, and largest element error over the largest element."""
    if result.shape != exact.shape:
        raise ValueError(f"result has shape {list(result.shape)}: expected {list(exact.shape)}")
    exact = exact.to(result.device)
    difference = result.detach().double() - exact
    relative = difference.norm() / exact.norm()
    return float(relative), float(difference.abs().max() / exact.abs().max())
