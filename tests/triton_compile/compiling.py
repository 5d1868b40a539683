"""Compile kernels for a device that is not there, exactly as a call on it would, and look at what came out.

The backend's own functions run on small CPU tensors with the architecture replaced and the launches caught, so the
settings, constants and alignments are those of a real call. Must run without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ema_ops.backends.triton import settings

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Case(NamedTuple):
    """One binary: a kernel, what its arguments are, and how it is launched on one architecture."""

    architecture: str
    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        chosen = {name: value for name, value in self.constants if name.isupper()}
        types = {kind for _, kind in self.signature if kind.startswith("*")}
        return f"{self.architecture} {self.kernel} {chosen} {dict(self.options)} {sorted(types)}"

    @property
    def is_16_bit(self) -> bool:
        """Whether the products of this kernel, if it has any, are of 16-bit numbers."""
        return any(kind in ("*bf16", "*fp16") for _, kind in self.signature)

    @property
    def has_product(self) -> bool:
        """Whether there is a `tl.dot` in this kernel."""
        return "PRECISION" in dict(self.constants)

    @property
    def loads_vectors(self) -> bool:
        """Whether x is aligned, so that 16 bytes should be loaded at a time."""
        return dict(self.constants).get("X_UNIT", 1) > 1


class Usage(NamedTuple):
    """What a binary takes: shared memory in bytes, registers a thread, accesses to spilled ones, tensor-core
    instructions, and whether it loads 16 bytes at a time."""

    shared: int
    registers: int
    spills: int
    tensor_instructions: tuple[str, ...]
    loads_vectors: bool


def record(architecture: str, call: Callable[[], Any]) -> list[Case]:
    """The binaries that `call` would need on `architecture`, one for each launch, without running any."""
    cases = []

    def catch(kernel, *args, grid, warmup, **kwargs):
        cases.append(_case(architecture, kernel, args, kwargs))

    with (
        mock.patch.object(JITFunction, "run", catch),
        mock.patch.object(settings, "architecture", return_value=architecture),
    ):
        call()
    return cases


def _case(architecture: str, kernel: JITFunction, args: tuple, kwargs: dict) -> Case:
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, aligned = {}, {}, []
    for parameter in kernel.params:
        name, value = parameter.name, values.pop(parameter.name)
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type(value)
        multiple_of_16 = value.data_ptr() % 16 == 0 if isinstance(value, torch.Tensor) else value % 16 == 0
        free = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        if multiple_of_16 and not free and not isinstance(value, float):
            aligned.append(name)
    return Case(
        architecture,
        kernel.fn.__module__,
        kernel.fn.__name__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(aligned),
        tuple(sorted(values.items())),
    )


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_case(case: Case) -> Usage:
    """Compile for the target and read the binary."""
    kernel = getattr(importlib.import_module(case.module), case.kernel)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(kernel, dict(case.signature), dict(case.constants), attributes)
    return _usage(triton.compile(source, target=_target(case.architecture), options=dict(case.options)))


def _target(architecture: str) -> GPUTarget:
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


def _usage(compiled: Any) -> Usage:
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        counts = {n: int(re.search(rf"\.{n}:\s+(\d+)", text)[1]) for n in ("vgpr_count", "vgpr_spill_count")}
        instructions = sorted(set(re.findall(r"v_mfma_\w+", text)))
        return Usage(
            shared, counts["vgpr_count"], counts["vgpr_spill_count"], tuple(instructions), "load_dwordx4" in text
        )
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        resources = _output(tools / "cuobjdump", "-res-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    return Usage(
        shared,
        int(re.search(r"REG:(\d+)", resources)[1]),
        len(re.findall(r"\b(?:STL|LDL)\b", code)),
        tuple(sorted(set(re.findall(r"\b(?:HGMMA|HMMA|UTC\w*MMA)[.\w]*", code)))),
        re.search(r"\bLDG(STS)?[.\w]*\.128\b", code) is not None,
    )


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
