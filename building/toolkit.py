"""The CUDA toolkit on this machine: where nvcc is, what it can compile for, where its libraries are."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

OLDEST = (12, 0)
USUAL_HOME = Path("/usr/local/cuda")
# Asked for as extras of one package: single packages drift to other versions.
PIP_PACKAGES = ("cuda-toolkit[nvcc,cccl]==13.0.*",)


class ToolkitMissing(Exception):
    """No nvcc that can be used; the message says where it was looked for or what is wrong with it."""


@dataclass(frozen=True)
class Toolkit:
    """An nvcc that runs. `architectures` are numbers such as 90, `library_folder` holds the static runtime.

    `packages` is the folder of pip's packages that all of it is in, or None.
    """

    nvcc: Path
    version: str
    architectures: frozenset[int]
    library_folder: Path | None
    packages: Path | None = None


def find_toolkit(environ: Mapping[str, str], *, from_pip: bool) -> Toolkit:
    """The first nvcc of CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda and pip's packages; `from_pip`: only the last.

    Raises ToolkitMissing if there is none, or if the first one does not run or is too old.
    """
    places = {} if from_pip else _places(environ)
    packages = _pip_homes()
    places |= {str(home): home / "bin" / "nvcc" for home in packages}
    for nvcc in places.values():
        if nvcc is not None and os.access(nvcc, os.X_OK):
            found = inspect_toolkit(nvcc.absolute())
            return replace(found, packages=nvcc.parents[1] if nvcc.parents[1] in packages else None)
    looked = ", ".join(dict.fromkeys([*places, *([] if packages else ["the packages of pip"])]))
    raise ToolkitMissing(f"no nvcc was found in {looked}")


def _places(environ: Mapping[str, str]) -> dict[str, Path | None]:
    homes = {f"{name}={environ[name]}": Path(environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)}
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    return {
        **{place: home / "bin" / "nvcc" for place, home in homes.items()},
        "PATH": Path(on_path) if on_path else None,
        str(USUAL_HOME): USUAL_HOME / "bin" / "nvcc",
    }


def _pip_homes() -> list[Path]:
    """Folders nvidia/cu13 and the like in this Python environment, the newest first."""
    spec = importlib.util.find_spec("nvidia")
    parents = spec.submodule_search_locations if spec is not None else None
    return sorted((home for p in parents or () for home in Path(p).glob("cu[0-9]*")), reverse=True)


def inspect_toolkit(nvcc: Path) -> Toolkit:
    """Ask `nvcc` itself, as it may be a script that calls another one. Raises ToolkitMissing."""
    version = re.search(r"release (\d+)\.(\d+), V([\d.]+)", _output(nvcc, "--version"))
    if version is None:
        raise ToolkitMissing(f"{nvcc} --version names no release")
    if (int(version[1]), int(version[2])) < OLDEST:
        raise ToolkitMissing(f"{nvcc} is of CUDA {version[1]}.{version[2]}, older than {OLDEST[0]}.{OLDEST[1]}")
    architectures = re.findall(r"compute_(\d+)", _output(nvcc, "--list-gpu-arch"))
    return Toolkit(nvcc, version[3], frozenset(map(int, architectures)), _library_folder(nvcc))


def _library_folder(nvcc: Path) -> Path | None:
    """Where the static runtime is: in a system's toolkit lib64, in pip's lib, which its nvcc does not know."""
    top = re.search(r"^#\$ TOP=(.*)$", _output(nvcc, "-dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    folders = [Path(top[1].strip()).resolve() / name for name in ("lib64", "lib")] if top is not None else []
    return next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)


def _output(nvcc: Path, *arguments: str) -> str:
    """What nvcc prints; `-dryrun` prints on stderr."""
    try:
        done = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise ToolkitMissing(f"{nvcc} does not run: {error}") from error
    text = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        raise ToolkitMissing(f"{nvcc} {arguments[0]} failed: {text.splitlines()[-1] if text else done.returncode}")
    return text
