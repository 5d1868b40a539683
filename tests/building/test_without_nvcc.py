"""A machine without nvcc, and values that mean nothing: a working package or one clear line."""

import zipfile

import pytest
from trees import (
    ARCHITECTURE,
    compile_times,
    copy_sources,
    fresh_environment,
    hide_toolkit,
    pip_install,
    pip_wheel,
    run,
)

from building.commands import core_sources


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A clean clone where no nvcc is found, and the variables for it."""
    folder = copy_sources(tmp_path_factory.mktemp("without"))
    return folder, hide_toolkit(folder)


def test_pure_python_package(tree, tmp_path):
    folder, variables = tree
    printed = pip_wheel(folder, tmp_path, **variables)
    lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("ema_ops:")]
    reason = "the CUDA core is not compiled: no nvcc was found in PATH, /nowhere, the packages of pip"
    assert lines == [f"ema_ops: {reason}; the other backends work without it"]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        assert not [name for name in file.namelist() if "_C" in name]
    python = fresh_environment(tmp_path / "environment")
    pip_install(python, "--no-index", wheel, cwd=tmp_path)
    info = run(python.parent / "ema-ops", "info", cwd=tmp_path)
    assert reason in info
    step = "import torch, ema_ops; print(ema_ops.em_attention(torch.ones(1, 4, 8), torch.ones(8, 2))[0].shape)"
    assert "torch.Size([1, 4, 8])" in run(python, "-c", step, cwd=tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("EMA_OPS_BUILD_CUDA", "1", "EMA_OPS_BUILD_CUDA is 1, but no nvcc was found in PATH, /nowhere, the packages"),
        ("EMA_OPS_BUILD_CUDA", "on", "ema_ops: EMA_OPS_BUILD_CUDA is 'on': expected one of auto, 1, 0, pip"),
        ("EMA_OPS_CUDA_ARCHS", "sm_90", "ema_ops: EMA_OPS_CUDA_ARCHS is 'sm_90': expected compute capabilities"),
        ("MAX_JOBS", "many", "ema_ops: MAX_JOBS is 'many': expected a whole number of at least 1"),
        ("EMA_OPS_NVCC_FLAGS", "'", 'ema_ops: EMA_OPS_NVCC_FLAGS is "\'": expected words as in a shell'),
    ],
)
def test_builds_that_fail_say_why(tree, tmp_path, variable, value, expected):
    folder, variables = tree
    printed = pip_wheel(folder, tmp_path, expect=1, **variables, **{variable: value})
    assert expected in printed
    assert "Traceback" not in printed


@pytest.mark.download
def test_nvcc_from_pip(tree, tmp_path):
    """The core is compiled by an nvcc that is nowhere on this machine, in a build environment of its own.

    A second build, in another environment, finds nothing to compile.
    """
    folder, variables = tree

    def build():
        pip_wheel(folder, tmp_path, EMA_OPS_BUILD_CUDA="pip", EMA_OPS_CUDA_ARCHS=ARCHITECTURE, **variables)
        return compile_times(folder)

    first = build()
    assert len(first) == len(core_sources())
    assert build() == first
    (wheel,) = tmp_path.glob("*.whl")
    python = fresh_environment(tmp_path / "environment")
    pip_install(python, "--no-index", wheel, cwd=tmp_path)
    printed = run(python, "-c", "import ema_ops._C as core; print(core.architectures)", cwd=tmp_path)
    assert f"('{ARCHITECTURE}',)" in printed
