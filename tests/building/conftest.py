"""The toolkit of this machine, the core that `make core` builds here, and a package made from a source archive."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from trees import ARCHITECTURE, BUILD_FOLDER, ROOT, copy_sources, fresh_environment, pip_install, pip_wheel, run

from building import toolkit as toolkits


class Package(NamedTuple):
    """What came out of a source archive: the tree in it, the wheel for one architecture, what pip printed, and the
    seconds that all compilers together ran; a fresh environment's Python with the wheel installed."""

    tree: Path
    wheel: Path
    output: str
    processor_seconds: float
    python: Path


@pytest.fixture(scope="session")
def toolkit():
    """The nvcc of this machine; without one the test is skipped and says where it was looked for."""
    try:
        return toolkits.find_toolkit(os.environ, from_pip=False)
    except toolkits.ToolkitMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def core_folder(toolkit):
    """The build folder of the core as `make core` builds it, made complete if it is not."""
    run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=ROOT, **os.environ)
    return ROOT / BUILD_FOLDER


@pytest.fixture(scope="session")
def source_archive(tmp_path_factory):
    """The source archive of a clean clone."""
    folder = tmp_path_factory.mktemp("archive")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, copy_sources(folder / "clone"), cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def package(toolkit, source_archive, tmp_path_factory):
    """The archive unpacked, built for one architecture in isolation, and installed in a fresh environment."""
    folder = tmp_path_factory.mktemp("package")
    shutil.unpack_archive(source_archive, folder)
    (tree,) = folder.iterdir()
    before = _processor_seconds()
    output = pip_wheel(tree, folder / "wheels", EMA_OPS_CUDA_ARCHS=ARCHITECTURE)
    seconds = _processor_seconds() - before
    (wheel,) = (folder / "wheels").glob("*.whl")
    python = fresh_environment(folder / "environment")
    pip_install(python, "--no-index", wheel, cwd=folder)
    return Package(tree, wheel, output, seconds, python)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
