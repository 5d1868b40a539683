"""Builds C++ and CUDA C++ sources with the shim, for the processor; only what changed is compiled again.

Needs g++ and the headers of CUDA, which come with nvcc, with Triton or with pip's CUDA packages.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from filelock import FileLock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "simt"
HEADERS = ("cuda_runtime_api.h", "cuda_bf16.h", "cuda_fp16.h", "vector_functions.h", "crt/host_defines.h")
# nvcc knows no strict aliasing and compiles `#pragma unroll`; fragments are multiplied with the processor's vectors
FLAGS = ["-std=c++17", "-DEMA_SIMT", "-fPIC", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FAST = ["-O3", "-march=native", "-mprefer-vector-width=256"] if os.uname().machine == "x86_64" else ["-O3"]
UNOPTIMISED = ["-O0"]  # for what only passes on: the binding of Python takes longer to compile than to run
# a call for every access to memory, which simt_watch.cpp listens to; -O3 takes twice as long to compile and saves 3 %
WATCHED = ["-O1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
SANITIZED = ["-O0", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def missing() -> str | None:
    """Why nothing can be built here, or None."""
    if shutil.which("g++") is None:
        return "there is no g++"
    if cuda_headers() is None:
        return "no CUDA headers: neither nvcc nor Triton nor pip's CUDA packages are installed"
    return None


def cuda_headers() -> Path | None:
    """The first folder that has all the headers that the shim and the kernels include."""
    return next((folder for folder in _header_folders() if all((folder / name).exists() for name in HEADERS)), None)


def _header_folders() -> Iterator[Path]:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if os.access(nvcc, os.X_OK):  # it may be a script that calls another one, so it is asked
        done = subprocess.run([nvcc, "-dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
        yield from (Path(folder) for folder in re.findall(r'INCLUDES="-I(.*?)"', done.stderr))
    for name, pattern in (("triton", "backends/nvidia/include"), ("nvidia", "c*/include")):
        spec = importlib.util.find_spec(name)
        for package in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield from sorted(Path(package).glob(pattern), reverse=True)


def load_core(*, sanitized: bool = False) -> ModuleType:
    """All of csrc as the Python module `ema_ops_simt`."""
    return load_module(build_core(sanitized=sanitized))


def build_core(*, sanitized: bool = False, source: Path = CSRC) -> Path:
    """The file of the module that `load_core` loads; `source` may be a changed copy of csrc."""
    import torch

    includes = [Path(torch.__file__).parent / "include", Path(sysconfig.get_path("include"))]  # pybind11 and Python
    sources = sorted([*source.rglob("*.cpp"), *source.rglob("*.cu")])
    flags = ["-fvisibility=hidden", "-DEMA_OPS_MODULE=ema_ops_simt", *(f"-isystem{folder}" for folder in includes)]
    return build("ema_ops_simt", sources, flags, sanitized=sanitized, source=source)


def load_module(path: Path | str) -> ModuleType:
    """Import the extension module `ema_ops_simt` from `path`."""
    loader = importlib.machinery.ExtensionFileLoader("ema_ops_simt", str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("ema_ops_simt", loader, origin=str(path)))
    loader.exec_module(module)
    return module


def build(
    name: str, sources: Sequence[Path], flags: Sequence[str] = (), *, sanitized: bool = False, source: Path = CSRC
) -> Path:
    """A shared library of `sources` and the shim. Raises RuntimeError with the compiler's words."""
    headers = cuda_headers()
    assert headers is not None, missing()
    compiler = ["g++", *FLAGS, *flags, f"-I{source}", f"-I{HERE}", f"-isystem{headers}"]
    optimised = SANITIZED if sanitized else FAST
    machine = sorted(HERE.glob("simt*.cpp"))  # its products of warpgroups take most of the time of a test
    CACHE.mkdir(parents=True, exist_ok=True)

    def compilation(path: Path) -> tuple[str, list[str]]:
        how = UNOPTIMISED if path.stem == "bindings" else optimised
        if sanitized and path in machine:
            how = [*how, "-O2"]
        # in the same order in every process: two folders have a ptx.h
        included = sorted(_with_included(path, (source, HERE)), key=lambda file: file.parts[-2:])
        if not sanitized and path not in machine and any(file.match("hopper/ptx.h") for file in included):
            how = [*how, *WATCHED]
        command = [*compiler, *how, "-x", "c++", "-c", str(path)]
        # a changed copy of csrc compiles to the same where nothing changed
        words = [word.replace(str(source), "csrc") for word in command]
        texts = [file.read_text() for file in included]
        return f"{path.stem}-{_digest(*words, *texts)}.o", command

    with FileLock(CACHE / "lock"):  # another process may want the same
        objects = _made([compilation(path) for path in [*sources, *machine]])
        link = [*compiler, *optimised, "-shared", "-pthread", *map(str, objects)]
        folder = f"{name}-{_digest(*(path.name for path in objects), *optimised)}"
        return _made([(f"{folder}/{name}.so", link)])[0]


def run(program: str, *arguments: object, sanitized: bool = False, **environment: str) -> subprocess.CompletedProcess:
    """Run a Python program of this folder, which may abort; `sanitized`: it loads a library built so."""
    known = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    if sanitized:
        asked = [["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
        files = [subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() for words in asked]
        known["LD_PRELOAD"] = " ".join(files)
        known["ASAN_OPTIONS"] = "detect_stack_use_after_return=0:use_sigaltstack=0:detect_leaks=0"
        known["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return subprocess.run(
        [sys.executable, str(HERE / program), *map(str, arguments)],
        env={**os.environ, **known, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _with_included(path: Path, folders: Sequence[Path]) -> set[Path]:
    """`path` and all that it includes in quotes, from its own folder or from `folders`."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        found.add(file)
        for name in re.findall(r'#include "(.*?)"', file.read_text()):
            header = next((h for folder in (file.parent, *folders) if (h := (folder / name).resolve()).exists()), None)
            if header is not None and header not in found:
                waiting.append(header)
    return found


def _made(wanted: Sequence[tuple[str, Sequence[str]]]) -> list[Path]:
    """The files of these names, where missing by these commands, two at a time."""
    running: list[tuple[Path, Path, subprocess.Popen]] = []

    def finish() -> None:
        path, unfinished, process = running.pop(0)
        _, said = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{process.args}\n{said}")
        unfinished.replace(path)

    for name, command in wanted:
        path = CACHE / name
        if path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        process = subprocess.Popen([*command, "-o", str(unfinished)], stderr=subprocess.PIPE, text=True)
        running.append((path, unfinished, process))
        if len(running) == 2:
            finish()
    while running:
        finish()
    return [CACHE / name for name, _ in wanted]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
