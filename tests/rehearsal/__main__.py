"""`python tests/rehearsal -m MODULE ...`, `-c CODE` or `FILE ...`: as Python runs it, on a GPU that is not there."""

from __future__ import annotations

import multiprocessing
import runpy
import sys
from importlib import import_module
from pathlib import Path

import fake_gpu
import small

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> None:
    fake_gpu.install()
    small.shrink_benchmarks()
    multiprocessing.set_executable(str(HERE / "bin" / "python"))
    kind, *rest = arguments
    if kind == "-c":
        sys.modules["xdist"] = None  # its processes would not be on this GPU
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        return
    if kind == "-m" and rest[0] == "pytest":
        small.shrink_tests()
        rest[1:1] = ["-p", "small"]
    sys.argv = rest if kind == "-m" else arguments
    if kind == "-m" and rest[0] in small.SHRUNK:
        sys.exit(import_module(rest[0]).main())  # run as a script it would be another module, with its own sizes
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
