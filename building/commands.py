"""The commands of setuptools that build the core and leave a line about it in the package."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

from . import jobs
from .choice import choice
from .ninja_file import LIBRARY, write_ninja_file
from .toolkit import Toolkit

ROOT = Path(__file__).resolve().parent.parent
MODULE = "ema_ops._C"
RECORD = "core_build.txt"


def setup_arguments() -> dict[str, Any]:
    """What setup.py adds to pyproject.toml. Ends with one line for a bad value of an environment variable.

    A core that is required but cannot be built counts as an extension, so that building it fails with the reason.
    """
    try:
        chosen = choice()
    except ValueError as error:
        raise SystemExit(f"ema_ops: {error}") from error
    wanted = chosen.toolkit is not None or chosen.required
    extensions = [Extension(MODULE, core_sources())] if wanted else []
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildCore, "build_py": BuildPackage}}


def core_sources() -> list[str]:
    """Every source of csrc, relative to the root."""
    found = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


class BuildCore(build_ext):
    """Compiles the core with ninja in a folder that stays, so that a second build compiles what changed."""

    def run(self) -> None:
        """Build, or say why there is nothing to build."""
        super().run()
        print(f"ema_ops: {choice().summary}", file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        """Make the library and copy it to where setuptools wants it."""
        chosen = choice()
        if chosen.toolkit is None:
            raise CompileError(
                f"EMA_OPS_BUILD_CUDA is {chosen.options.mode}, but {chosen.reason}. Expected nvcc (set CUDA_HOME), "
                f"EMA_OPS_BUILD_CUDA=pip to have it from pip's packages, or EMA_OPS_BUILD_CUDA=0 to do without"
            )
        import ninja

        parallel = chosen.options.jobs or jobs.default_jobs(jobs.usable_cores(), jobs.free_memory())
        device_sources = sum(source.endswith(".cu") for source in ext.sources)
        threads = max(1, parallel // max(1, device_sources))
        folder = Path("build") / f"core-{sysconfig.get_config_var('SOABI')}"
        os.chdir(ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        includes = [link_to_pybind11(folder), Path(sysconfig.get_paths()["include"])]
        chosen = replace(chosen, toolkit=with_linked_packages(chosen.toolkit, folder))
        file = write_ninja_file(chosen, sorted(ext.sources), folder, includes, threads)
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-f", str(file), "-j", str(parallel)]
        if subprocess.run(command).returncode != 0:
            raise CompileError("the CUDA core did not compile; EMA_OPS_BUILD_CUDA=0 installs the package without it")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / LIBRARY), str(target))


class BuildPackage(build_py):
    """Also writes why there is a core in this package or why not, for `ema-ops info`."""

    def run(self) -> None:
        """Copy the modules and write the line. An editable package loses a core that was built before."""
        super().run()
        chosen = choice()
        parent = ROOT if self.editable_mode else Path(self.build_lib)
        package = parent / "ema_ops"
        package.mkdir(parents=True, exist_ok=True)
        (package / RECORD).write_text(chosen.summary + "\n")
        if chosen.toolkit is None and not chosen.required:
            print(f"ema_ops: {chosen.summary}; the other backends work without it", file=sys.stderr)
            (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)


def link_to_pybind11(folder: Path) -> Path:
    """A link to the headers of pybind11."""
    import pybind11

    return link_to(Path(pybind11.get_include()), folder / f"pybind11-{pybind11.__version__}")


def with_linked_packages(toolkit: Toolkit, folder: Path) -> Toolkit:
    """`toolkit`, and if it is in pip's packages by a link to them."""
    if toolkit.packages is None:
        return toolkit
    link = link_to(toolkit.packages, folder / f"toolkit-{toolkit.version}")
    library_folder = toolkit.library_folder and link / toolkit.library_folder.name
    return replace(toolkit, nvcc=link / "bin" / "nvcc", library_folder=library_folder, packages=link)


def link_to(target: Path, link: Path) -> Path:
    """`link`, which then leads to a folder that under build isolation is elsewhere every time.

    Commands with the link stay the same, so that ninja does not compile again what has not changed.
    """
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link
