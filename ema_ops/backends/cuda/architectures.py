"""Which devices the compiled core runs on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


@lru_cache
def architecture_refusal(
    architectures: Sequence[str], ptx_architectures: Sequence[str], capability: tuple[int, int]
) -> str | None:
    """Why code built for `architectures` ("80", "90a") and `ptx_architectures` does not run on a device, or None.

    Machine code runs on its own architecture and later ones of the same generation, PTX on every later one; with
    the suffix "a" each runs on its own architecture only, with "f" only within its generation.
    """
    for name in architectures:
        built, suffix = parse_architecture(name)
        if capability == built or (suffix != "a" and capability[0] == built[0] and capability > built):
            return None
    for name in ptx_architectures:
        built, suffix = parse_architecture(name)
        later = suffix == "" or (suffix == "f" and capability[0] == built[0])
        if capability == built or (later and capability > built):
            return None
    built_for = [*architectures, *(f"PTX {name}" for name in ptx_architectures)]
    return (
        f"has compute capability {capability[0]}.{capability[1]}, and the compiled core was built for "
        f"{', '.join(built_for) or 'no architecture'} (EMA_OPS_CUDA_ARCHS)"
    )


def parse_architecture(name: str) -> tuple[tuple[int, int], str]:
    """("90a") -> ((9, 0), "a")."""
    number = name.rstrip("af")
    major, minor = divmod(int(number), 10)
    return (major, minor), name[len(number) :]
