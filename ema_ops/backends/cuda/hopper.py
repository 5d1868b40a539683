"""Which kernels for Hopper may be used: the environment variable EMA_OPS_HOPPER."""

from __future__ import annotations

import os
from functools import lru_cache

HOPPER_PARTS = ("tiles", "overlap", "loop")  # see docs/environment.md


def hopper_parts() -> frozenset[str]:
    """What EMA_OPS_HOPPER turns on: of HOPPER_PARTS those named, by commas; "1" for all but "loop", "0" for none.

    Raises ValueError for another word.
    """
    return parse_hopper_parts(os.environ.get("EMA_OPS_HOPPER", ""))


@lru_cache
def parse_hopper_parts(text: str) -> frozenset[str]:
    """ "tiles,overlap" -> {"tiles", "overlap"}."""
    words = set(filter(None, text.split(",")))
    parts = frozenset(words - {"0", "1"} | ({"tiles", "overlap"} if "1" in words else set()))
    if not parts <= set(HOPPER_PARTS) or ("0" in words and len(words) > 1):
        raise ValueError(
            f"EMA_OPS_HOPPER is {text!r}: expected 0 alone, 1, or of {', '.join(HOPPER_PARTS)} with commas between"
        )
    return parts
