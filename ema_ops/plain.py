"""Whether anything but plain PyTorch on a CPU or an NVIDIA GPU would see a call of an operator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_include_set,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch.nn import Parameter

_PLAIN_KEYS = 0
for _key in ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA", "ADInplaceOrView"):
    _PLAIN_KEYS |= DispatchKeySet(getattr(DispatchKey, _key)).raw_repr()
# what a thread includes that is in no mode; inference mode leaves the second one out
_PLAIN_MODES = _PLAIN_KEYS | DispatchKeySet(DispatchKey.BackendSelect).raw_repr()

VALUES = frozenset({bool, int, float, str, type(None)})  # what operators take beside tensors
_TENSORS = frozenset({Tensor, Parameter})


def is_plain(arguments: Iterable[Any]) -> bool:
    """Whether an operator called with `arguments` comes straight to its body, and nobody wants to know of it.

    False for subclasses of tensors, modes, transforms (vmap, grad), fake, conjugated or negated tensors, a compiler
    and a profiler: the keys that the dispatcher goes by say so. The body may then be called without it, which halves
    the Python in front of a kernel.
    """
    if (
        torch.compiler.is_compiling()
        or _dispatch_tls_local_include_set().raw_repr() & ~_PLAIN_MODES
        or _len_torch_function_stack() > 0
        or _profiler_enabled()
    ):
        return False
    for argument in arguments:
        kind = type(argument)
        if kind in VALUES:
            continue
        if kind not in _TENSORS or _dispatch_keys(argument).raw_repr() & ~_PLAIN_KEYS:
            return False
    return True
