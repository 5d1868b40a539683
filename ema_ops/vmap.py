"""`torch.vmap` over an operator: the vmapped dimension becomes part of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# where the batch dimension stands, if not first
BATCH_DIM = {"path": 1, "path_sums": 1, "masses": 1, "lengths": 1}
# what is one for all images and has no batch dimension
ONE_FOR_ALL = ("weight1", "bias1", "weight2", "bias2", "conv_weight", "conv_bias")
# rank of the arguments that may come without a batch dimension, one image's worth for all
SHARED_RANK = {"bases": 3, "logit_bases": 3, "value_bases": 3, "logit_bias": 1}


def fold_into_batch(operator: torch._ops.OpOverload) -> Callable:
    """The rule for `torch.library.register_vmap` of one of our operators."""
    arguments = [argument.name for argument in operator._schema.arguments]
    results = [result.name for result in operator._schema.returns]
    adds_images = any(name.removeprefix("grad_") in ONE_FOR_ALL for name in results)

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        differs = any(d is not None and name in ONE_FOR_ALL for name, d in zip(arguments, in_dims, strict=True))
        if adds_images or differs:
            calls = [
                operator(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
                for i in range(size)
            ]
            return tuple(map(torch.stack, zip(*calls, strict=True))), (0,) * len(results)
        where = arguments.index("x")
        x_dim = in_dims[where]
        batch = args[where].shape[0 if x_dim is None else (1 if x_dim == 0 else 0)]
        folded = [
            _fold(name, value, dim, size, batch) if isinstance(value, Tensor) else value
            for name, value, dim in zip(arguments, args, in_dims, strict=True)
        ]
        outputs = operator(*folded)
        single = isinstance(outputs, Tensor)
        outputs = (outputs,) if single else outputs
        dims = tuple(BATCH_DIM.get(name, 0) for name in results)
        split = tuple(t.unflatten(dim, (size, batch)) for t, dim in zip(outputs, dims, strict=True))
        return (split[0], dims[0]) if single else (split, dims)

    return rule


def _fold(name: str, value: Tensor, vmapped: int | None, size: int, batch: int) -> Tensor:
    """[.., B, ..] of `size` vmapped calls as [.., size * B, ..]; shared arguments get a batch dimension."""
    if name in ONE_FOR_ALL:
        return value
    dim = BATCH_DIM.get(name, 0)
    rank = value.dim() - (vmapped is not None)
    shared = SHARED_RANK.get(name) == rank
    if vmapped is None and (shared or (name == "weight" and value.shape[0] == 1)):
        return value
    value = value.unsqueeze(0).expand(size, *value.shape) if vmapped is None else value.movedim(vmapped, 0)
    if shared:
        value = value.unsqueeze(1)
    value = value.movedim(0, dim)
    sizes = list(value.shape)
    sizes[dim + 1] = batch
    return value.expand(sizes).flatten(dim, dim + 1)
