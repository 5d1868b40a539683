"""The repository, for what is not installed with the package."""

from __future__ import annotations

from pathlib import Path


def benchmarks_parent() -> Path | None:
    """The folder with `benchmarks` in it: the checkout that the package lies in, the current directory, or None."""
    for folder in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (folder / "benchmarks" / "microbenchmark.py").is_file():
            return folder
    return None
