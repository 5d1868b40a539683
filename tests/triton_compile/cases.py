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
# one call for every row of the tables in settings.py; opt-in, for they take several minutes
SWEEP_SHAPES = [
    (channels, num_bases, dtype, "BHNC", 1)
    for dtype in (torch.bfloat16, torch.float32)
    for channels, num_bases in ((512, 64), (512, 128), (512, 256), (1024, 64))
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


def sweep_cases() -> list[Case]:
    """The binaries of every row of the tables on every architecture, and of the parts with a bias."""
    usual, found = set(all_cases()), {}
    for architecture in settings.SHARED_MEMORY:
        for shape in SWEEP_SHAPES:
            for call in calls(*shape):
                found |= dict.fromkeys(record(architecture, call))
        for call in part_calls():
            found |= dict.fromkeys(record(architecture, call))
    return [case for case in found if case not in usual]


def part_calls() -> list[Callable[[], object]]:
    """One step and one reconstruction with a bias, and their gradients."""
    x, bases, bias = features(1, 64, 512, torch.bfloat16, "BHNC"), torch.zeros(1, 1, 512, 64), torch.zeros(1, 1, 64)
    problem = Problem.build(x, bases[0], logit_bias=bias)
    return [
        partial(forward.em_step, problem, x, bases, None, bias),
        partial(backward.em_step_backward, problem, bases, bias, x, bases, None, bias),
        partial(forward.em_reconstruct, problem, x, bases, bases, bias),
        partial(backward.em_reconstruct_backward, problem, x, x, bases, bases, bias),
    ]


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
