"""Copies of the repository to build in, and the commands that build and install them as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_FOLDER = Path("build") / f"core-{sysconfig.get_config_var('SOABI')}"
ARCHITECTURE = "80"  # of builds that need only one
BUILD_VARIABLES = ("EMA_OPS_BUILD_CUDA", "EMA_OPS_CUDA_ARCHS", "EMA_OPS_NVCC_FLAGS", "PYTHONPATH")


def copy_sources(target: Path) -> Path:
    """A clean clone: the files that git knows or would add, as they are now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def hide_toolkit(tree: Path) -> dict[str, str]:
    """Variables, and a change of `tree`, with which a build of `tree` finds no nvcc wherever this machine has it."""
    with (tree / "building" / "toolkit.py").open("a") as file:
        file.write('\nUSUAL_HOME = Path("/nowhere")\n')
    folders = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "nvcc").exists()]
    return {"PATH": ":".join(folders), "CUDA_HOME": "", "CUDA_PATH": ""}


def run(*command: str | Path, cwd: Path, expect: int = 0, **variables: str) -> str:
    """What a command prints, both streams, without the build variables of this process."""
    environ = {name: value for name, value in os.environ.items() if name not in BUILD_VARIABLES}
    environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    done = subprocess.run(
        command, cwd=cwd, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert (done.returncode != 0) == bool(expect), done.stdout
    return done.stdout


def pip_wheel(tree: Path, out: Path, *, expect: int = 0, **variables: str) -> str:
    """What `pip wheel` prints: the build that `pip install` does, isolated, without torch."""
    command = (sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", out, tree)
    return run(*command, cwd=tree, expect=expect, **variables)


def compile_times(tree: Path) -> dict[str, int]:
    """When each object of the core was compiled."""
    return {path.name: path.stat().st_mtime_ns for path in (tree / BUILD_FOLDER).glob("*.o")}


def fresh_environment(folder: Path) -> Path:
    """A new environment's Python. Of what is installed here it sees torch and numpy, not the editable ema_ops."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", question, cwd=folder).strip())
    (packages / "installed_beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def pip_install(python: Path, *arguments: str | Path, cwd: Path, **variables: str) -> str:
    """What `pip install` into that environment prints."""
    return run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *arguments, cwd=cwd, **variables
    )
