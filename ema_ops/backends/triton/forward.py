"""The forward pass: which kernels run on which blocks, and the memory between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...layout import empty_like_order
from ...problem import Problem
from . import forward_kernels as kernels
from . import settings
from .plan import Layout, Splits, block, ceil_div, dense_matrices, layout_of, multiprocessors, split_tiles
from .reduction import Partials


def em_forward(problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """See `Backend.em_forward`."""
    sizes = (problem.batch, problem.heads, problem.channels, problem.num_bases)
    path = torch.empty(problem.num_iters, *sizes, dtype=torch.float32, device=problem.device)
    mass = torch.empty(problem.num_iters, *sizes[:2], sizes[3], dtype=torch.float32, device=problem.device)
    length, last = torch.empty_like(mass), torch.empty_like(path[0])
    path[0].copy_(bases)
    features, weights = Features.of(problem, x), Weights.of(problem, weight)
    z = empty_responsibilities(problem)
    for t in range(problem.num_iters):
        is_last = t + 1 == problem.num_iters
        partials = iterate(problem, features, path[t], weights, None, z if is_last else None)
        partials.normalize(problem, last if is_last else path[t + 1], mass[t], length[t])
    return reconstruct(problem, x, z, last), last, path, mass, length


def em_step(
    problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None, logit_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `Backend.em_step`."""
    sizes = (problem.batch, problem.heads, problem.channels, problem.num_bases)
    sums = torch.empty(sizes, dtype=torch.float32, device=problem.device)
    mass = torch.empty(*sizes[:2], sizes[3], dtype=torch.float32, device=problem.device)
    features, weights, bias = Features.of(problem, x), Weights.of(problem, weight), dense_bias(logit_bias)
    iterate(problem, features, dense_matrices(bases), weights, bias).add(sums, mass)
    return sums, mass


def em_reconstruct(
    problem: Problem, x: Tensor, logit_bases: Tensor, value_bases: Tensor, logit_bias: Tensor | None
) -> Tensor:
    """See `Backend.em_reconstruct`."""
    z = empty_responsibilities(problem)
    e_step(problem, Features.of(problem, x), dense_matrices(logit_bases), dense_bias(logit_bias), z)
    return reconstruct(problem, x, z, dense_matrices(value_bases))


class Features(NamedTuple):
    """x [B, H, N, C] in a form whose tiles load well, with its layout."""

    tensor: Tensor
    layout: Layout

    @classmethod
    def of(cls, problem: Problem, x: Tensor) -> Features:
        """`x` itself, or a copy with C innermost where 16-bit numbers would be loaded one by one (odd N)."""
        layout = layout_of(x)
        if not (layout.channels_first and layout.unit == 1 and x.element_size() == 2):
            return cls(x, layout)
        rows = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launch, channels = settings.launch_of("copy_rows", problem), x.shape[-1]
        tiles = ceil_div(problem.positions, launch.positions) * ceil_div(channels, launch.channels)
        kernels.copy_rows[(images(problem) * tiles,)](
            x,
            *layout.strides,
            layout.positions,
            rows,
            problem.heads,
            C=channels,
            X_UNIT=layout.unit,
            X_CHANNELS_FIRST=layout.channels_first,
            BLOCK_N=launch.positions,
            BLOCK_C=launch.channels,
            **launch.options,
        )
        return cls(rows, layout_of(rows))

    @property
    def channels(self) -> int:
        """C, or Cv where these are gradients of a reconstruction."""
        return self.tensor.shape[-1]

    @property
    def arguments(self) -> tuple:
        """The first arguments of every kernel that reads x."""
        return self.tensor, *self.layout.strides, self.layout.positions

    def constants(self, problem: Problem, launch: settings.Launch) -> dict:
        """The constants and options of every kernel that reads x."""
        return {
            "C": self.channels,
            "K": problem.num_bases,
            "X_UNIT": self.layout.unit,
            "X_CHANNELS_FIRST": self.layout.channels_first,
            "BLOCK_N": launch.positions,
            "BLOCK_C": launch.channels,
            "BLOCK_K": block(problem.num_bases),
            "PRECISION": settings.precision(problem),
            **launch.options,
        }


class Weights(NamedTuple):
    """Weights [B, H, N], and the unit [B, H] they are counted in so that float16 holds what they multiply."""

    tensor: Tensor | None = None
    unit: Tensor | None = None  # None: 1

    @classmethod
    def of(cls, problem: Problem, weight: Tensor | None) -> Weights:
        """`weight` itself, or in float16 counted in a power of two that makes the largest of an image 2^14 to 2^15."""
        if weight is None or problem.dtype != torch.float16:
            return cls(weight)
        power = (weight.amax(-1).view(torch.int32) & 0x7F800000).view(torch.float32)
        unit = power.clamp(2.0**-100, 2.0**126).contiguous() * 2.0**-14
        return cls(weight / unit.unsqueeze(-1), unit)

    @property
    def arguments(self) -> tuple:
        """Weights and their strides, as the kernels take them."""
        return weight_arguments(self.tensor)


UNWEIGHTED = Weights()


def iterate(
    problem: Problem,
    features: Features,
    bases: Tensor,
    weights: Weights,
    logit_bias: Tensor | None,
    z: Tensor | None = None,
) -> Partials:
    """The partial sums of one iteration from `bases`, by the fused kernel where it fits.

    `z` [B * H, N, K], if given, gets the responsibilities.
    """
    launch = settings.fused_step(problem)
    if launch is None:
        z = empty_responsibilities(problem) if z is None else z
        e_step(problem, features, bases, logit_bias, z)
        return m_step(problem, features, z, weights)
    splits = split_positions(problem, features, launch)
    partials = Partials.empty(problem, splits, unit=weights.unit)
    kernels.fused_step[(images(problem) * splits.number,)](
        *features.arguments,
        bases,
        *bases.stride()[:2],
        *weights.arguments,
        logit_bias,
        z,
        partials.sums,
        partials.masses,
        problem.heads,
        *splits,
        problem.scale,
        **features.constants(problem, launch),
    )
    return partials


def e_step(problem: Problem, features: Features, bases: Tensor, logit_bias: Tensor | None, z: Tensor) -> None:
    """Write the responsibilities of all positions to `z` [B * H, N, K]."""
    launch = settings.launch_of("e_step", problem)
    kernels.e_step[(images(problem) * ceil_div(problem.positions, launch.positions),)](
        *features.arguments,
        bases,
        *bases.stride()[:2],
        logit_bias,
        z,
        problem.heads,
        problem.scale,
        **features.constants(problem, launch),
    )


def m_step(problem: Problem, features: Features, z: Tensor, weights: Weights = UNWEIGHTED) -> Partials:
    """The partial sums of weights * `z` [B * H, N, K], and of its products with the features."""
    launch = settings.launch_of("m_step", problem)
    splits = split_positions(problem, features, launch)
    partials = Partials.empty(problem, splits, features.channels, weights.unit)
    kernels.m_step[(images(problem) * splits.number * ceil_div(features.channels, launch.channels),)](
        *features.arguments,
        *weights.arguments,
        z,
        partials.sums,
        partials.masses,
        problem.heads,
        *splits,
        **features.constants(problem, launch),
    )
    return partials


def reconstruct(problem: Problem, x: Tensor, z: Tensor, bases: Tensor) -> Tensor:
    """y [B, H, N, Cv] in the dtype and memory order of x from `z` [B * H, N, K] and `bases` [B, H, Cv, K]."""
    channels = bases.shape[-2]
    y = empty_like_order(x, channels)
    layout, launch = layout_of(y), settings.launch_of("reconstruct", problem)
    tiles = ceil_div(problem.positions, launch.positions) * ceil_div(channels, launch.channels)
    kernels.reconstruct[(images(problem) * tiles,)](
        z,
        bases,
        *bases.stride()[:2],
        y,
        *layout.strides,
        layout.positions,
        problem.heads,
        C=channels,
        K=problem.num_bases,
        Y_UNIT=layout.unit,
        Y_CHANNELS_FIRST=layout.channels_first,
        BLOCK_N=launch.positions,
        BLOCK_C=launch.channels,
        BLOCK_K=min(block(problem.num_bases), settings.CHUNK_OF_BASES),
        PRECISION=settings.precision(problem),
        **launch.options,
    )
    return y


def images(problem: Problem) -> int:
    """Images times heads: what the kernels call an image is one head of one image."""
    return problem.batch * problem.heads


def split_positions(problem: Problem, features: Features, launch: settings.Launch) -> Splits:
    """How the positions of every image are split between programs."""
    return split_tiles(
        images(problem),
        ceil_div(problem.positions, launch.positions),
        launch.positions * features.channels * features.tensor.element_size(),
        problem.num_bases * features.channels * 4,
        multiprocessors(problem.device),
    )


def weight_arguments(weight: Tensor | None) -> tuple:
    """`weight` [B, H, N] and its strides, as the kernels take them."""
    return (None, 0, 0, 0) if weight is None else (weight, *weight.stride())


def empty_responsibilities(problem: Problem) -> Tensor:
    """Uninitialised [B * H, N, K] in the dtype of x."""
    return torch.empty(
        images(problem), problem.positions, problem.num_bases, dtype=problem.dtype, device=problem.device
    )


def dense_bias(logit_bias: Tensor | None) -> Tensor | None:
    """`logit_bias` as dense float32 [B, H, K]."""
    return None if logit_bias is None else logit_bias.to(torch.float32).contiguous()
