"""The table of backends and the choice between them."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from ..problem import Problem
from .base import Backend

# In order of preference. A module is imported when its backend is first asked for.
MODULES = {
    "cuda": "ema_ops.backends.cuda",
    "triton": "ema_ops.backends.triton",
    "torch": "ema_ops.backends.eager",
}
# those with `em_unit`; compiled graphs ask here, where no module is imported
WITH_UNIT = ("cuda", "torch")
HAS_CORE = find_spec("ema_ops._C") is not None


class BackendStatus(NamedTuple):
    """Whether a backend can be used on this machine, and if not, why."""

    usable: bool
    reason: str


@cache
def load(name: str) -> Backend:
    """The backend called `name`, one of the keys of `MODULES`."""
    return import_module(MODULES[name]).BACKEND


def check_backend(backend: str | None, name: str = "backend") -> None:
    """Raise ValueError unless `backend` is None or the name of a backend; `name` is what the message calls it."""
    if backend is not None and not (isinstance(backend, str) and backend in MODULES):
        raise ValueError(f"{name} is {backend!r}: expected None or one of {', '.join(map(repr, MODULES))}")


def available_backends() -> dict[str, BackendStatus]:
    """Every backend in order of preference, and whether it is usable on this machine."""
    reasons = {name: load(name).unavailable() for name in MODULES}
    return {name: BackendStatus(reason is None, reason or "") for name, reason in reasons.items()}


def choose(problem: Problem, backend: str | None) -> Backend:
    """The backend that serves `problem`: the one asked for, or the first in the table that can.

    A name in `backend`, or else in the environment variable EMA_OPS_BACKEND, is binding: if that backend cannot
    serve the call, ValueError says why.
    """
    default = os.environ.get("EMA_OPS_BACKEND") or None
    check_backend(default, "EMA_OPS_BACKEND")
    wanted = default if backend is None else backend
    if wanted is not None:
        chosen = load(wanted)
        reason = refusal(chosen, problem)
        if reason is not None:
            raise ValueError(f"backend {wanted!r} cannot serve this call: {reason}")
        return chosen
    reasons = {}
    for name in MODULES:
        reason = refusal(load(name), problem)
        if reason is None:
            return load(name)
        reasons[name] = reason
    raise ValueError("no backend can serve this call: " + "; ".join(f"{n}: {r}" for n, r in reasons.items()))


def may_offer_unit(backend: str | None, device_type: str) -> bool:
    """Whether `em_unit` can be asked of `backend` or, without a name, of one with kernels for such a device."""
    wanted = backend or os.environ.get("EMA_OPS_BACKEND") or None
    if wanted is None:
        return device_type == "cpu" or HAS_CORE
    return wanted in WITH_UNIT


def refusal(backend: Backend, problem: Problem) -> str | None:
    """Why `backend` cannot serve `problem`, or None if it can."""
    if problem.unit and type(backend).em_unit is Backend.em_unit:
        return backend.unavailable() or "it has the loop only, not the unit around it (em_unit)"
    return backend.unavailable() or backend.refuses(problem)
