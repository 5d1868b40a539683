"""Which networks are trained on the generated set: the same seeds on every backend, and the paper's ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NUM_ITERS = (1, 2, 3, 4, 6, 8)
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "bases K (T = 3)": {str(k): {"num_bases": k} for k in (8, 16, 32, 64, 128)},
    "iterations T (K = 16)": {str(t): {"num_iters": t} for t in NUM_ITERS},
    "iterations that carry the gradient": {
        "all": {},
        "the last": {"grad_iters": 1},
        "none (official)": {"grad_iters": 0},
    },
    "initial bases": {"running average": {}, "learnable": {"learnable_bases": True}},
}
"""By question, then by answer: what the answer changes in the default variant."""


@dataclass(frozen=True)
class Variant:
    """One training; the defaults are those of the recipe."""

    backend: str
    seed: int
    num_bases: int = 16
    num_iters: int = 3
    grad_iters: int | None = None
    learnable_bases: bool = False

    @property
    def folder(self) -> str:
        """A name for its folder."""
        gradient = "exact" if self.grad_iters is None else f"gradient{self.grad_iters}"
        bases = "learnable" if self.learnable_bases else "running"
        return f"{self.backend}-K{self.num_bases}-T{self.num_iters}-{gradient}-{bases}-seed{self.seed}"

    @property
    def sets(self) -> list[str]:
        """What differs from the recipe, as `ema-ops train --set` takes it."""
        return [
            f"model.num_bases={self.num_bases}",
            f"model.num_iters={self.num_iters}",
            f"model.layer.grad_iters={'null' if self.grad_iters is None else self.grad_iters}",
            f"model.layer.learnable_bases={str(self.learnable_bases).lower()}",
            f"model.layer.backend={self.backend}",
            f"training.seed={self.seed}",
        ]


def all_variants(backends: Sequence[str], seeds: Sequence[int], ablation_seeds: Sequence[int]) -> list[Variant]:
    """Every training of the report once: the default on every backend, and the ablations on the first backend."""
    wanted = [Variant(backend, seed) for backend in backends for seed in seeds]
    wanted += [Variant(backends[0], seed, **changes) for changes in _all_changes() for seed in ablation_seeds]
    return list(dict.fromkeys(wanted))


def _all_changes() -> list[dict[str, Any]]:
    return [changes for answers in ABLATIONS.values() for changes in answers.values()]
