"""The calls whose kernels are compiled: main shapes, both memory orders, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from compiling import Case, record

from ema_ops.backends.triton import backward, forward, settings
from ema_ops.problem import Problem

# channels, bases, dtype, memory order, iterations
MAIN_SHAPES = [
    (512, 64, torch.bfloat16, "BHNC", 2),
    (512, 64, torch.bfloat16, "BHCN", 1),
]
OTHER_SHAPES = [
    (256, 64, torch.float32, "BHNC", 1),
    (512, 256, torch.bfloat16, "BHNC", 1),
]
FORWARD_SHAPES = [
    (256, 64, torch.float16, "BHNC", 1),
    (256, 64, torch.bfloat16, "BHCN", 1),
]
# the settings of these are those of sm_86, and so is nearly all of their code
LIKE_SM_86 = ("sm_89", "sm_120")


def all_cases() -> list[Case]:
    """Every binary that the calls below need, on every architecture, each once."""
    found: dict[Case, None] = {}
    for architecture in settings.SHARED_MEMORY:
        wanted = [transposition, *(call for shape in MAIN_SHAPES for call in calls(*shape))]
        if architecture not in LIKE_SM_86:
            wanted += [call for shape in OTHER_SHAPES for call in calls(*shape)]
            wanted += [calls(*shape)[0] for shape in FORWARD_SHAPES]
        for call in wanted:
            found |= dict.fromkeys(record(architecture, call))
    return list(found)


def calls(
    channels: int, num_bases: int, dtype: torch.dtype, order: str, num_iters: int, batch: int = 1, positions: int = 64
) -> list[Callable[[], object]]:
    """The loop with weights and its gradient, with tensors of no particular values."""
    x = features(batch, positions, channels, dtype, order)
    bases, weight = torch.zeros(batch, 1, channels, num_bases), torch.zeros(batch, 1, positions)
    options = {"num_iters": num_iters, "grad_iters": num_iters, "eps": 1e-6}
    problem = Problem.build(x, bases, weight=weight, **options)
    path, per_base = torch.zeros(num_iters, *bases.shape), torch.zeros(num_iters, batch, 1, num_bases)
    saved = (bases, path, per_base, per_base)
    return [
        partial(forward.em_forward, problem, x, bases, weight),
        partial(backward.em_backward, problem, x, bases, x, weight, *saved, True),
    ]


def transposition() -> object:
    """The loop on an image whose number of positions is odd."""
    x = features(1, 65, 64, torch.bfloat16, "BHCN")
    return forward.Features.of(Problem.build(x, torch.zeros(1, 64, 16)), x)


def features(batch: int, positions: int, channels: int, dtype: torch.dtype, order: str) -> torch.Tensor:
    """[B, 1, N, C] in a memory order."""
    if order == "BHCN":
        return torch.zeros(batch, 1, channels, positions, dtype=dtype).transpose(2, 3)
    return torch.zeros(batch, 1, positions, channels, dtype=dtype)
