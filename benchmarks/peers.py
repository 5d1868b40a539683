"""The competitors, each as fast as plain PyTorch lets it be, and our backends beside them.

All take the same view x [B, N, C] of images [B, C, H, W] and return y [B, N, C] in the memory order of x, as the next
layer of a network wants it. The gradient measured is that of x; parameters' own gradients are left out for all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ema_ops
from ema_ops.backends import MODULES, load, refusal
from ema_ops.backends.cuda.hopper import hopper_parts
from ema_ops.problem import Problem

from .case import Case, Inputs
from .formulas import DOUBLE, EM, EXTERNAL, HEAD_WIDTH, SELF, SELF_HEADS, Formula, temperature

Function = Callable[[Inputs], Tensor]


def _never(case: Case, inputs: Inputs, mode: str) -> str | None:
    return None


def _no_kernel(run: Callable[[], object]) -> str:
    return ""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    `build` makes its function for a case. `refuses` says why a mode of a case has no measurement, or None. `kernel`
    names what really ran inside the call it gets, where a library chooses. With `has_gradient` False, y is a constant
    and full = forward.
    """

    name: str
    formula: Formula
    build: Callable[[Case], Function]
    refuses: Callable[[Case, Inputs, str], str | None] = _never
    kernel: Callable[[Callable[[], object]], str] = _no_kernel
    has_gradient: bool = True


def ours(backend: str) -> Peer:
    """A backend of this package, with the exact gradient."""

    def build(case: Case) -> Function:
        return lambda i: ema_ops.em_attention(i.x, i.bases, num_iters=case.num_iters, backend=backend)[0]

    def refuses(case: Case, inputs: Inputs, mode: str) -> str | None:
        x, bases = inputs.x.unsqueeze(1), inputs.bases.unsqueeze(0)
        return refusal(load(backend), Problem.build(x, bases, num_iters=case.num_iters, grad_iters=case.num_iters))

    return Peer(name_of(backend), EM, build, refuses)


def name_of(backend: str) -> str:
    """Of our peer; with what EMA_OPS_HOPPER turns on, as in "ema_ops/cuda:overlap,tiles"."""
    parts = ",".join(sorted(hopper_parts())) if backend == "cuda" else ""
    return f"ema_ops/{backend}{':' if parts else ''}{parts}"


def official(x: Tensor, bases: Tensor, num_iters: int) -> Tensor:
    """The formulation of the official code: y [B, N, C] of x [B, N, C] and bases [1, C, K]."""
    return _product(*official_loop(x, bases, num_iters), x)


def official_loop(x: Tensor, bases: Tensor, num_iters: int) -> tuple[Tensor, Tensor]:
    """Its loop, batched products, softmax and two divisions an iteration: z [B, N, K] and the last bases [B, C, K]."""
    mu = bases.expand(len(x), -1, -1)
    for _ in range(num_iters):
        z = torch.softmax(x @ mu, dim=2)
        mu = x.transpose(1, 2) @ (z / (1e-6 + z.sum(dim=1, keepdim=True)))
        mu = mu / (1e-6 + mu.norm(dim=1, keepdim=True))
    return z, mu


def _build_detached(case: Case) -> Function:
    def detached(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return official(inputs.x, inputs.bases, case.num_iters)

    return detached


def _build_exact(case: Case) -> Function:
    return lambda inputs: official(inputs.x, inputs.bases, case.num_iters)


def _build_compiled(case: Case) -> Function:
    torch.compiler.reset()
    # or its backward could run only once, and never in a graph
    torch._functorch.config.donated_buffer = False
    compiled = torch.compile(official, fullgraph=True, dynamic=False)
    return lambda inputs: compiled(inputs.x, inputs.bases, case.num_iters)


def _build_self_attention(case: Case) -> Function:
    def self_attention(inputs: Inputs) -> Tensor:
        x = inputs.x
        attention = torch.softmax((temperature(case, case.channels) * x) @ x.transpose(1, 2), dim=2)
        return _product(attention, x.transpose(1, 2), x)

    return self_attention


def _build_sdpa(case: Case) -> Function:
    def sdpa(inputs: Inputs) -> Tensor:
        rows = inputs.x.contiguous().unsqueeze(1)
        y = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, scale=temperature(case, case.channels))
        return _in_order(y.squeeze(1), inputs.x)

    return sdpa


def _build_sdpa_heads(case: Case) -> Function:
    def sdpa_heads(inputs: Inputs) -> Tensor:
        rows = inputs.x.contiguous().unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)
        y = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, scale=temperature(case, HEAD_WIDTH))
        return _in_order(y.transpose(1, 2).flatten(2), inputs.x)

    return sdpa_heads


def _build_external_attention(case: Case) -> Function:
    def external_attention(inputs: Inputs) -> Tensor:
        x, batch = inputs.x, len(inputs.x)
        attention = torch.softmax(x @ inputs.keys.expand(batch, -1, -1), dim=1)
        attention = attention / (1e-9 + attention.sum(dim=2, keepdim=True))
        return _product(attention, inputs.values.expand(batch, -1, -1), x)

    return external_attention


def _build_double_attention(case: Case) -> Function:
    def double_attention(inputs: Inputs) -> Tensor:
        x, batch = inputs.x, len(inputs.x)
        gather = torch.softmax(x @ inputs.keys.expand(batch, -1, -1), dim=1)
        distribute = torch.softmax(x @ inputs.values.expand(batch, -1, -1), dim=2)
        return _product(distribute, x.transpose(1, 2) @ gather, x)

    return double_attention


def _product(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """left [B, N, R] times right [B, C, R] transposed, written at once in the memory order of x [B, N, C]."""
    if x.stride(1) < x.stride(2):
        return (right @ left.transpose(1, 2)).transpose(1, 2)
    return left @ right.transpose(1, 2)


def _in_order(y: Tensor, x: Tensor) -> Tensor:
    """Rows y [B, N, C] in the memory order of x: a copy when x is a contiguous image."""
    if x.stride(1) < x.stride(2):
        return y.transpose(1, 2).contiguous().transpose(1, 2)
    return y.contiguous()


def _refuses_detached(case: Case, inputs: Inputs, mode: str) -> str | None:
    return "carries no gradient to x: there is no backward pass" if mode == "backward" else None


def _refuses_exact(case: Case, inputs: Inputs, mode: str) -> str | None:
    return "the same as official-detached when no gradient is taken" if mode == "forward" else None


def _refuses_compiled(case: Case, inputs: Inputs, mode: str) -> str | None:
    compilers = (os.environ.get("CXX") or "g++", "clang++")
    if inputs.x.device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        return "torch.compile on a CPU needs a C++ compiler: none of g++, clang++ and $CXX was found"
    return None


def _refuses_heads(case: Case, inputs: Inputs, mode: str) -> str | None:
    if case.channels % HEAD_WIDTH:
        return f"{case.channels} channels do not split into heads of {HEAD_WIDTH}"
    return None


class _SeenOperators(TorchDispatchMode):
    """Collects the names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _attention_kernel(run: Callable[[], object]) -> str:
    """Which kernel scaled_dot_product_attention chose in `run`: flash, efficient, cudnn or math (plain products)."""
    with _SeenOperators() as seen:
        run()
    for kernel in ("flash", "efficient", "cudnn"):
        if any(name.startswith(f"_scaled_dot_product_{kernel}") for name in seen.names):
            return kernel
    return "math"


RIVALS = {
    peer.name: peer
    for peer in (
        Peer("official-detached", EM, _build_detached, _refuses_detached, has_gradient=False),
        Peer("official-exact", EM, _build_exact, _refuses_exact),
        Peer("official-compiled", EM, _build_compiled, _refuses_compiled),
        Peer("external-attention", EXTERNAL, _build_external_attention),
        Peer("double-attention", DOUBLE, _build_double_attention),
        Peer("self-attention", SELF, _build_self_attention),
        Peer("sdpa", SELF, _build_sdpa, kernel=_attention_kernel),
        Peer("sdpa-heads", SELF_HEADS, _build_sdpa_heads, _refuses_heads, _attention_kernel),
    )
}
BACKENDS = tuple(MODULES)
