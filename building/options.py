"""The environment variables of the build, read and checked in one place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

MODES = ("auto", "1", "0", "pip")
OLDEST_ARCHITECTURE = 80
FIRST_WITH = {"a": 90, "f": 100}  # code for one architecture only, for one family
# 90a runs on Hopper only; +PTX lets later devices compile the kernels when they are first loaded.
DEFAULT_ARCHITECTURES = "80;86;89;90a;100;120+PTX"


@dataclass(frozen=True)
class Architecture:
    """One architecture to compile for: "80" or "90a"; with `ptx` its PTX is kept too, for later devices."""

    name: str
    ptx: bool = False

    @property
    def number(self) -> int:
        """The compute capability times ten, 90 for "90a"."""
        return int(self.name.rstrip("af"))

    @property
    def gencode(self) -> str:
        """What nvcc's option -gencode takes."""
        code = f"[sm_{self.name},compute_{self.name}]" if self.ptx else f"sm_{self.name}"
        return f"arch=compute_{self.name},code={code}"


@dataclass(frozen=True)
class Options:
    """What the environment asks for; `architectures` and `jobs` are None where nothing was said."""

    mode: str
    architectures: tuple[Architecture, ...] | None
    jobs: int | None
    nvcc_flags: tuple[str, ...]

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Options:
        """The options in `environ`; an empty variable counts as not set. Raises ValueError for a bad value."""
        mode = environ.get("EMA_OPS_BUILD_CUDA") or "auto"
        if mode not in MODES:
            raise ValueError(f"EMA_OPS_BUILD_CUDA is {mode!r}: expected one of {', '.join(MODES)}")
        architectures = environ.get("EMA_OPS_CUDA_ARCHS", "").strip()
        return cls(
            mode,
            parse_architectures(architectures) if architectures else None,
            _jobs(environ.get("MAX_JOBS", "").strip()),
            _flags(environ.get("EMA_OPS_NVCC_FLAGS", "")),
        )


def parse_architectures(text: str) -> tuple[Architecture, ...]:
    """The architectures in a list such as "80;90a;12.0+PTX", separated by ; or , or spaces, each once."""
    found: dict[str, bool] = {}
    for word in filter(None, re.split(r"[;,\s]+", text)):
        match = re.fullmatch(r"(\d{1,2})\.?(\d)([af]?)(\+PTX)?", word)
        if match is None or int(match[1] + match[2]) < OLDEST_ARCHITECTURE:
            raise ValueError(
                f"EMA_OPS_CUDA_ARCHS is {text!r}: expected compute capabilities from 8.0, such as "
                f"{DEFAULT_ARCHITECTURES!r}, not {word!r}"
            )
        if match[3] and int(match[1] + match[2]) < FIRST_WITH[match[3]]:
            raise ValueError(
                f"EMA_OPS_CUDA_ARCHS is {text!r}: expected no {match[3]!r} in {word!r}, as only architectures from "
                f"{FIRST_WITH[match[3]]} on have it"
            )
        if match[3] and match[4]:
            raise ValueError(
                f"EMA_OPS_CUDA_ARCHS is {text!r}: expected no +PTX in {word!r}, as PTX of an "
                f"architecture that ends in {match[3]!r} does not run on later devices"
            )
        name = match[1] + match[2] + match[3]
        found[name] = found.get(name, False) or match[4] is not None
    if not found:
        raise ValueError(f"EMA_OPS_CUDA_ARCHS is {text!r}: expected a list such as {DEFAULT_ARCHITECTURES!r}")
    return tuple(Architecture(name, ptx) for name, ptx in found.items())


def _jobs(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise ValueError(f"MAX_JOBS is {text!r}: expected a whole number of at least 1")
    return int(text)


def _flags(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"EMA_OPS_NVCC_FLAGS is {text!r}: expected words as in a shell, but: {error}") from error
