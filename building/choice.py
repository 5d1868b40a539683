"""Whether the core is built, with what, and if not, why: one decision from the environment and the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .options import DEFAULT_ARCHITECTURES, OLDEST_ARCHITECTURE, Architecture, Options, parse_architectures
from .toolkit import Toolkit, ToolkitMissing, find_toolkit


@dataclass(frozen=True)
class Choice:
    """What the build will do. Without a toolkit `reason` says why; `required`: then the build must fail."""

    options: Options
    toolkit: Toolkit | None
    architectures: tuple[Architecture, ...] = ()
    reason: str = ""
    required: bool = False

    @property
    def summary(self) -> str:
        """One line for users: what the core is compiled for, or why it is not compiled."""
        if self.toolkit is None:
            return f"the CUDA core is not compiled: {self.reason}"
        names = " ".join(a.name + ("+PTX" if a.ptx else "") for a in self.architectures)
        return f"the CUDA core is compiled by nvcc {self.toolkit.version} for {names}"


def decide(environ: Mapping[str, str], platform: str = sys.platform) -> Choice:
    """The choice for these environment variables. Raises ValueError for a bad value of one of them."""
    options = Options.read(environ)
    if options.mode == "0":
        return Choice(options, None, reason="EMA_OPS_BUILD_CUDA is 0")
    required = options.mode in ("1", "pip")
    if platform != "linux":
        return Choice(options, None, reason=f"it is built on Linux only, and this is {platform}", required=required)
    try:
        toolkit = find_toolkit(environ, from_pip=options.mode == "pip")
    except ToolkitMissing as missing:
        return Choice(options, None, reason=str(missing), required=required)
    return Choice(options, toolkit, choose_architectures(options, toolkit))


def choose_architectures(options: Options, toolkit: Toolkit) -> tuple[Architecture, ...]:
    """The architectures asked for, or those of the default that this nvcc can compile for. Raises ValueError."""
    known = ", ".join(str(number) for number in sorted(toolkit.architectures) if number >= OLDEST_ARCHITECTURE)
    if options.architectures is None:
        default = parse_architectures(DEFAULT_ARCHITECTURES)
        return tuple(a for a in default if a.number in toolkit.architectures)
    for architecture in options.architectures:
        if architecture.number not in toolkit.architectures:
            raise ValueError(
                f"EMA_OPS_CUDA_ARCHS has {architecture.name!r}: expected one of {known}, "
                f"which nvcc {toolkit.version} can compile for"
            )
    return options.architectures


@cache
def choice() -> Choice:
    """The choice for this process."""
    return decide(os.environ)
