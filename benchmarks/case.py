"""One benchmark case: sizes, dtype and memory order, and the tensors drawn for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ema_ops.problem import FLOAT8, arithmetic_dtype

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": FLOAT8,
}
MEMORY_ORDERS = ("contiguous", "channels_last")
MODES = ("forward", "backward", "full", "unit")


@dataclass(frozen=True)
class Case:
    """An image batch [B, C, H, W], K bases and T iterations.

    `memory_order` is that of the images, `dtype` that of x; all else is in `arithmetic`, bfloat16 beside x of 8 bits.
    """

    batch: int
    channels: int
    height: int
    width: int
    num_bases: int
    num_iters: int
    dtype: str
    memory_order: str

    @property
    def positions(self) -> int:
        """N = H * W."""
        return self.height * self.width

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype of y, of gradients and of products."""
        return arithmetic_dtype(DTYPES[self.dtype])

    @property
    def element_sizes(self) -> tuple[int, int]:
        """Bytes of one element of x, and of y or a gradient."""
        return DTYPES[self.dtype].itemsize, self.arithmetic.itemsize

    def __str__(self) -> str:
        return f"B={self.batch} C={self.channels} {self.height}x{self.width} {self.dtype} {self.memory_order}"


@dataclass(frozen=True)
class Inputs:
    """What every peer gets: the same images as a view x [B, N, C], and small matrices [C, K].

    `bases` are the initial bases of EM attention; `keys` and `values` are the memories of external attention and
    the two projections of double attention. `grad_y` [B, N, C] is the incoming gradient, laid out like x.
    """

    x: Tensor
    grad_y: Tensor
    bases: Tensor
    keys: Tensor
    values: Tensor

    def requiring_grad(self) -> Inputs:
        """The same inputs with x as a leaf that wants a gradient."""
        return Inputs(self.x.detach().requires_grad_(), self.grad_y, self.bases, self.keys, self.values)

    def image(self, index: int, dtype: torch.dtype) -> Inputs:
        """Image `index` alone as [1, N, C], everything in `dtype`."""
        one = slice(index, index + 1)
        x, grad_y = self.x.detach()[one].to(dtype), self.grad_y[one].to(dtype)
        return Inputs(x, grad_y, self.bases.to(dtype), self.keys.to(dtype), self.values.to(dtype))


def draw(case: Case, device: torch.device, seed: int) -> Inputs:
    """Fresh normal features and gradients, and columns of length one, for `case`."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = case.arithmetic
    order = torch.channels_last if case.memory_order == "channels_last" else torch.contiguous_format

    def images() -> Tensor:
        shape = (case.batch, case.channels, case.height, case.width)
        image = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return image.to(memory_format=order).flatten(2).transpose(1, 2)

    def columns() -> Tensor:
        matrix = torch.randn(case.channels, case.num_bases, generator=generator, device=device)
        return torch.nn.functional.normalize(matrix, dim=0).to(dtype)

    x = images().to(DTYPES[case.dtype])
    return Inputs(x, images(), columns(), columns(), columns())
