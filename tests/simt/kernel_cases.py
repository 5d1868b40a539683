"""Calls that together reach every path of the kernels, judged against float64. A program too, so that a core may abort.

`emulation.run("kernel_cases.py", core, *names)` prints the digest of the results of each.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import emulation
import torch
from backend_checks import check, make_bases, normal, uniform
from emulated import EmulatedBackend, installed
from folding_checks import check_folding
from torch import Tensor
from unit_checks import check_unit, make_parameters

fp32, bf16, fp16, fp8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn


class Case(NamedTuple):
    """A call of `ema_ops.em_<call>` with its gradients, if it has any, on a device with few multiprocessors.

    "folded" is the loop behind a folded convolution. Features of 8 bits have no gradient.
    """

    sizes: tuple[int, int, int, int]  # B, H, N, C
    num_bases: int
    dtype: torch.dtype
    call: str = "attention"
    order: str = "BNC"
    offset: int = 0  # elements between 16-byte alignment and the features
    weighted: bool = False
    value_channels: int = 0
    shared_memory: int = 227 << 10
    multiprocessors: int = 2
    tf32: bool = False
    hopper: bool = False
    constant_bases: bool = False  # they get no gradient
    one_launch: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012


CASES = {
    "fused": Case((2, 1, 150, 96), 64, bf16, weighted=True, options={"num_iters": 2}),
    "fused fp16 image": Case(
        (1, 2, 136, 130), 20, fp16, order="BCN", weighted=True, options={"num_iters": 3, "grad_iters": 2}
    ),
    "fused, rows not resident": Case((1, 1, 130, 512), 64, bf16, options={"num_iters": 1}),
    "odd rows of an image": Case((1, 1, 65, 72), 33, bf16, order="BCN", weighted=True, options={"num_iters": 2}),
    "odd rows": Case((1, 1, 70, 67), 17, fp16, options={"num_iters": 2}),
    "unaligned": Case((1, 1, 66, 64), 9, bf16, offset=3, options={"num_iters": 2}),
    "many bases": Case((1, 1, 140, 70), 200, bf16, weighted=True, options={"num_iters": 2}),
    "many bases fp16 image": Case((2, 1, 70, 136), 129, fp16, order="BCN", weighted=True, options={"num_iters": 1}),
    "many channels": Case((1, 1, 66, 600), 12, fp16, options={"num_iters": 1, "scale": 0.2}),
    "little shared memory": Case(
        (1, 1, 140, 512), 64, bf16, shared_memory=99 << 10, options={"num_iters": 2, "scale": 0.3}
    ),
    "many images": Case((8, 4, 5, 70), 9, bf16, options={"num_iters": 2}),
    "many images float32": Case((9, 1, 3, 35), 70, fp32, order="BCN", options={"num_iters": 2}),
    "float32": Case((2, 1, 140, 50), 10, fp32, weighted=True, options={"num_iters": 2}),
    "float32 image": Case(
        (1, 1, 131, 33), 70, fp32, order="BCN", options={"num_iters": 2, "eps_mode": "max", "eps": 0.2}
    ),
    "float32 unaligned": Case((1, 1, 67, 64), 8, fp32, offset=1, options={"num_iters": 1}),
    "tf32": Case((1, 1, 140, 50), 10, fp32, tf32=True, weighted=True, options={"num_iters": 2}),
    "tf32 image": Case((1, 1, 131, 33), 70, fp32, tf32=True, order="BCN", options={"num_iters": 2}),
    "step": Case((1, 2, 130, 72), 24, bf16, "step", weighted=True, options={"scale": 1.5}),
    "step image float32": Case((2, 1, 70, 20), 6, fp32, "step", order="BCN"),
    "step, many bases": Case((1, 1, 70, 64), 90, fp16, "step", weighted=True),
    "reconstruct": Case((1, 2, 70, 72), 24, bf16, "reconstruct", value_channels=130),
    "reconstruct image": Case((1, 1, 71, 40), 80, fp16, "reconstruct", order="BCN", value_channels=33),
    "reconstruct float32": Case((2, 1, 70, 20), 6, fp32, "reconstruct", value_channels=20),
    "Hopper": Case((2, 1, 450, 136), 64, bf16, hopper=True, options={"num_iters": 2}),
    "Hopper fp16 image": Case(
        (1, 2, 136, 72), 20, fp16, order="BCN", weighted=True, hopper=True, options={"num_iters": 5}
    ),
    "Hopper, one position": Case((2, 2, 1, 64), 5, bf16, hopper=True, options={"num_iters": 2}),
    "Hopper, all channels": Case(
        (1, 1, 150, 512), 64, bf16, weighted=True, multiprocessors=1, hopper=True, options={"num_iters": 2}
    ),
    "Hopper, constant bases": Case(
        (2, 1, 150, 96), 7, fp16, hopper=True, constant_bases=True, options={"num_iters": 3, "grad_iters": 2}
    ),
    "Hopper, one gradient": Case(
        (1, 1, 40, 64), 9, bf16, hopper=True, constant_bases=True, options={"num_iters": 2, "grad_iters": 1}
    ),
    "Hopper, odd rows of images": Case(
        (2, 1, 129, 72), 20, bf16, order="BCN", weighted=True, hopper=True, options={"num_iters": 2}
    ),
    "Hopper, odd rows of heads": Case(
        (1, 2, 143, 136), 33, fp16, order="BCN", offset=5, multiprocessors=6, hopper=True, options={"num_iters": 2}
    ),
    "Hopper, many odd rows": Case(
        (1, 1, 275, 261), 33, bf16, order="BCN", offset=3, weighted=True, multiprocessors=1, hopper=True,
        options={"num_iters": 2, "scale": 0.3},
    ),
    "Hopper, odd rows once": Case(
        (1, 2, 77, 72), 9, fp16, order="BCN", offset=3, weighted=True, hopper=True, options={"num_iters": 1}
    ),
    "Hopper step, odd rows": Case((2, 1, 131, 40), 20, bf16, "step", order="BCN", weighted=True, hopper=True),
    "Hopper reconstruct, odd rows": Case(
        (2, 1, 45, 136), 33, bf16, "reconstruct", order="BCN", value_channels=40, hopper=True
    ),
    "Hopper, unaligned rows": Case(
        (2, 2, 66, 67), 9, bf16, offset=3, weighted=True, hopper=True, options={"num_iters": 2}
    ),
    "Hopper, rows of half units": Case((2, 1, 68, 260), 64, fp16, hopper=True, options={"num_iters": 2}),
    "Hopper, 8 bits": Case(
        (2, 1, 129, 70), 20, fp8, offset=3, weighted=True, hopper=True, options={"num_iters": 2}
    ),
    "Hopper, 8 bits of an image": Case(
        (1, 2, 143, 136), 33, fp8, order="BCN", offset=5, multiprocessors=6, hopper=True, options={"num_iters": 1}
    ),
    "Hopper, many tiles of 8 bits": Case(
        (1, 1, 275, 264), 33, fp8, weighted=True, multiprocessors=1, hopper=True,
        options={"num_iters": 1, "scale": 0.3},
    ),
    "Hopper unit, odd rows": Case(
        (2, 1, 301, 136), 9, bf16, "unit", order="BCN", weighted=True, multiprocessors=4, hopper=True,
        options={"num_iters": 1},
    ),
    "Hopper step": Case((1, 2, 31, 264), 33, fp16, "step", hopper=True),
    "Hopper unit": Case(
        (2, 1, 300, 136), 64, bf16, "unit", weighted=True, multiprocessors=4, hopper=True, options={"num_iters": 1}
    ),
    "Hopper unit image": Case((1, 1, 136, 264), 20, fp16, "unit", order="BCN", hopper=True, options={"num_iters": 1}),
    "Hopper reconstruct": Case((1, 2, 150, 72), 24, bf16, "reconstruct", value_channels=520, hopper=True),
    "Hopper reconstruct, few channels": Case(
        (1, 2, 100, 72), 24, fp16, "reconstruct", value_channels=136, hopper=True
    ),
    "Hopper reconstruct image": Case(
        (2, 1, 200, 40), 64, fp16, "reconstruct", order="BCN", value_channels=272, hopper=True
    ),
    "Hopper, more tiles than stages": Case(
        (1, 1, 250, 512), 64, bf16, weighted=True, multiprocessors=1, hopper=True,
        options={"num_iters": 1, "scale": 0.3},
    ),
    "Hopper image, more tiles than stages": Case(
        (1, 1, 264, 512), 7, fp16, "step", order="BCN", weighted=True, multiprocessors=1, hopper=True
    ),
    "Hopper image, all channels": Case(
        (1, 2, 152, 512), 50, bf16, order="BCN", weighted=True, multiprocessors=3, hopper=True,
        options={"num_iters": 2, "scale": 0.3},
    ),
    "Hopper image, constant bases": Case(
        (2, 1, 200, 136), 33, fp16, order="BCN", hopper=True, constant_bases=True,
        options={"num_iters": 2, "grad_iters": 1},
    ),
    "Hopper, few channels": Case(
        (1, 2, 330, 40), 50, fp16, weighted=True, multiprocessors=6, hopper=True, options={"num_iters": 2}
    ),
    "unit": Case((2, 1, 150, 96), 64, bf16, "unit", weighted=True, options={"num_iters": 2}),
    "unit, many channels": Case((1, 1, 70, 300), 20, bf16, "unit", options={"num_iters": 1}),
    "unit, many bases image": Case(
        (2, 1, 70, 130), 200, fp16, "unit", order="BCN", weighted=True, options={"num_iters": 2, "scale": 0.5}
    ),
    "unit, odd": Case((1, 1, 70, 45), 7, fp16, "unit", offset=3, weighted=True, options={"num_iters": 2}),
    "unit of one position": Case((3, 1, 1, 40), 7, bf16, "unit", order="BCN", options={"num_iters": 1}),
    "unit, little shared memory": Case(
        (1, 1, 70, 130), 200, bf16, "unit", shared_memory=99 << 10, options={"num_iters": 1, "eps_mode": "max"}
    ),
    "unit float32": Case((2, 1, 70, 130), 64, fp32, "unit", weighted=True, options={"num_iters": 2}),
    "unit float32 image": Case(
        (1, 1, 70, 40), 200, fp32, "unit", order="BCN", shared_memory=99 << 10,
        options={"num_iters": 2, "eps_mode": "max", "eps": 0.2},
    ),
    "unit tf32": Case((1, 1, 70, 40), 7, fp32, "unit", tf32=True, options={"num_iters": 1}),
    "folded": Case((2, 1, 150, 96), 64, bf16, "folded", weighted=True, options={"num_iters": 2}),
    "folded fp16 image": Case(
        (1, 1, 136, 72), 20, fp16, "folded", order="BCN", options={"num_iters": 3, "grad_iters": 2, "scale": 1.5}
    ),
    "folded, many bases": Case((2, 1, 70, 40), 90, fp16, "folded", weighted=True, options={"num_iters": 2}),
    "folded float32": Case(
        (2, 1, 70, 50), 10, fp32, "folded", weighted=True, options={"num_iters": 2, "eps_mode": "max", "eps": 0.2}
    ),
    "Hopper folded, odd rows": Case(
        (2, 1, 65, 72), 9, bf16, "folded", order="BCN", weighted=True, hopper=True, options={"num_iters": 2}
    ),
    "Hopper folded, many splits": Case(
        (1, 1, 700, 72), 9, fp16, "folded", weighted=True, multiprocessors=20, hopper=True, options={"num_iters": 2}
    ),
    "Hopper folded": Case((2, 1, 150, 136), 64, bf16, "folded", hopper=True, options={"num_iters": 2}),
    "loop": Case((2, 1, 150, 256), 64, bf16, one_launch=True, weighted=True, options={"num_iters": 3}),
    "loop fp16, more tiles than stages": Case(
        (1, 1, 1544, 264), 50, fp16, one_launch=True, weighted=True, options={"num_iters": 2, "scale": 0.2}
    ),
    "loop, one block": Case(
        (3, 1, 41, 136), 7, bf16, one_launch=True, options={"num_iters": 1, "eps_mode": "max", "eps": 0.2}
    ),
    "loop, clusters of one image": Case(
        (1, 1, 1100, 264), 33, bf16, one_launch=True, multiprocessors=20, options={"num_iters": 2}
    ),
    "loop image": Case(
        (2, 1, 184, 264), 20, fp16, order="BCN", one_launch=True, weighted=True, options={"num_iters": 2, "scale": 0.2}
    ),
    "loop image, one block": Case((1, 2, 40, 136), 64, bf16, order="BCN", one_launch=True, options={"num_iters": 3}),
    "loop image, clusters of one image": Case(
        (1, 1, 1104, 72), 33, bf16, order="BCN", one_launch=True, multiprocessors=20, options={"num_iters": 2}
    ),
    "loop, large clusters": Case(
        (1, 1, 580, 504), 64, fp16, one_launch=True, multiprocessors=17, options={"num_iters": 1}
    ),
}  # fmt: skip


def run_case(core: Any, case: Case) -> str:
    """Judge all results and gradients of `case`; returns their digest."""
    inputs, grads = make_inputs(case)
    options = dict(case.options)
    if case.constant_bases:
        options["bases"] = inputs.pop("bases")
    if case.weighted:
        options["weight"] = uniform(*case.sizes[:3], seed=4)
    tf32 = mock.patch("ema_ops.backends.cuda.backend.tf32_allowed", return_value=case.tf32)
    with installed(EmulatedBackend(core, case.multiprocessors, case.shared_memory, case.hopper, case.one_launch)), tf32:
        # tf32 has as many bits as float16
        options["plain_dtype"] = fp16 if case.tf32 else None
        if case.call == "unit":
            parameters = make_parameters(case.sizes[3], case.num_bases, case.dtype)
            ours = check_unit(inputs["x"], parameters, "cuda", **options)
        elif case.call == "folded":
            options["weight"] = options["weight"].squeeze(1) if case.weighted else None
            ours = check_folding(inputs["x"].squeeze(1), case.num_bases, "cuda", **options)
        else:
            ours = tuple(check(case.call, inputs, grads, "cuda", **options).values())
    digest = hashlib.sha256()
    for actual in ours:
        if actual is not None:
            rows = actual.clone(memory_format=torch.contiguous_format)
            digest.update(rows.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_inputs(case: Case) -> tuple[dict[str, Tensor], tuple[Tensor, ...] | None]:
    """The tensors that want a gradient, and the gradients of the results."""
    batch, heads, positions, channels = case.sizes
    memory = normal(batch * heads * positions * channels + 16, seed=0, dtype=case.dtype)
    start = -memory.data_ptr() // memory.element_size() % (16 // memory.element_size()) + case.offset
    end = start + batch * heads * positions * channels
    memory[:start] = memory[end:] = torch.nan  # what lies around the features must not matter
    x = memory[start:end]
    if case.order == "BCN":
        x = x.view(batch, heads, channels, positions).transpose(2, 3)
    else:
        x = x.view(batch, heads, positions, channels)
    bases, bias = make_bases(heads, channels, case.num_bases), normal(batch, heads, case.num_bases, seed=2)
    grad_bases = normal(batch, heads, channels, case.num_bases, seed=5)
    if case.dtype == fp8:
        return {"x": x, "bases": bases}, None
    if case.call in ("attention", "unit", "folded"):
        return {"x": x, "bases": bases}, (normal(*case.sizes, seed=6, dtype=case.dtype), grad_bases)
    if case.call == "step":
        return {"x": x, "bases": bases, "logit_bias": bias}, (grad_bases, normal(*bias.shape, seed=6))
    values = normal(heads, case.value_channels, case.num_bases, seed=3)
    grad_y = normal(batch, heads, positions, case.value_channels, seed=6, dtype=case.dtype)
    return {"x": x, "logit_bases": bases, "value_bases": values, "logit_bias": bias}, (grad_y,)


if __name__ == "__main__":
    torch.set_num_threads(1)
    module = emulation.load_module(Path(sys.argv[1]))
    for chosen in sys.argv[2:] or CASES:
        print(chosen, run_case(module, CASES[chosen]), sep="\t", flush=True)
