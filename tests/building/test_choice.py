"""Whether the core is built: nvcc is looked for, asked what it is, and the reason is given if there is none."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from building import toolkit as toolkits
from building.choice import decide
from building.commands import with_linked_packages
from building.ninja_file import write_ninja_file
from building.toolkit import ToolkitMissing, find_toolkit, inspect_toolkit

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --list-gpu-arch) printf 'compute_75\\n{architectures}' ;;
  -dryrun) echo "#$ TOP={home}/bin/.." >&2 ;;
esac
"""
LINUX = "linux"


def make_toolkit(home, release="13.0", architectures=("80", "86", "89", "90", "100", "120"), library_folder="lib64"):
    """A folder that looks like a toolkit, with an nvcc that answers as the real one does."""
    for folder in ("bin", library_folder):
        (home / folder).mkdir(parents=True)
    (home / library_folder / "libcudart_static.a").touch()
    listed = "".join(f"compute_{name}\\n" for name in architectures)
    return script(home / "bin" / "nvcc", NVCC.format(release=release, architectures=listed, home=home))


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_toolkit_here(monkeypatch, tmp_path):
    """Only what a test names is found."""
    monkeypatch.setattr(toolkits, "USUAL_HOME", tmp_path / "usual")
    monkeypatch.setattr(toolkits, "_pip_homes", list)


def test_what_an_nvcc_says_of_itself(tmp_path):
    nvcc = make_toolkit(tmp_path / "cuda")
    toolkit = inspect_toolkit(nvcc)
    assert toolkit == toolkits.Toolkit(
        nvcc, "13.0.88", frozenset({75, 80, 86, 89, 90, 100, 120}), tmp_path / "cuda" / "lib64"
    )


def test_nvcc_may_be_a_script_that_calls_another(tmp_path):
    nvcc = make_toolkit(tmp_path / "cuda")
    wrapper = script(tmp_path / "bin" / "nvcc", f'#!/bin/sh\nexec {nvcc} "$@"\n')
    toolkit = find_toolkit({"PATH": str(wrapper.parent)}, from_pip=False)
    assert (toolkit.nvcc, toolkit.library_folder) == (wrapper, tmp_path / "cuda" / "lib64")


def test_order_of_the_places(tmp_path):
    names = ("home", "path", "on_path", "usual")
    nvccs = {name: make_toolkit(tmp_path / name) for name in names}
    environ = {
        "CUDA_HOME": str(tmp_path / "home"),
        "CUDA_PATH": str(tmp_path / "path"),
        "PATH": str(tmp_path / "on_path" / "bin"),
    }
    for name, nvcc in nvccs.items():
        assert find_toolkit(environ, from_pip=False).nvcc == nvcc, name
        nvcc.unlink()


def test_from_pip_takes_no_other(tmp_path, monkeypatch):
    environ = {"CUDA_HOME": str(tmp_path / "system")}
    make_toolkit(tmp_path / "system")
    with pytest.raises(ToolkitMissing, match="no nvcc was found in the packages of pip"):
        find_toolkit(environ, from_pip=True)
    nvcc = make_toolkit(tmp_path / "nvidia" / "cu13", library_folder="lib")
    monkeypatch.setattr(toolkits, "_pip_homes", lambda: [tmp_path / "nvidia" / "cu13"])
    toolkit = find_toolkit(environ, from_pip=True)
    home = tmp_path / "nvidia" / "cu13"
    assert (toolkit.nvcc, toolkit.library_folder, toolkit.packages) == (nvcc, home / "lib", home)


def test_packages_of_pip_that_are_elsewhere_each_time_give_the_same_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("build")
    folder.mkdir()
    for place in ("first", "second"):
        make_toolkit(tmp_path / place / "cu13", library_folder="lib")
        monkeypatch.setattr(toolkits, "_pip_homes", lambda place=place: [tmp_path / place / "cu13"])
        choice = decide({"EMA_OPS_BUILD_CUDA": "pip"}, LINUX)
        linked = replace(choice, toolkit=with_linked_packages(choice.toolkit, folder))
        commands = write_ninja_file(linked, ["csrc/call.cpp", "csrc/kernels/e_step.cu"], folder, [], 1).read_text()
        assert linked.toolkit.nvcc.resolve() == tmp_path / place / "cu13" / "bin" / "nvcc"
        assert str(tmp_path) not in commands
        assert commands.count("build/toolkit-13.0.88/bin/nvcc") == 3
        assert commands.count("-isystem build/toolkit-13.0.88/include") == 2
        assert commands.count("-Lbuild/toolkit-13.0.88/lib") == 1


def test_homes_of_pip_packages(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "nvidia" / "cu13").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert toolkits._pip_homes() == [tmp_path / "nvidia" / "cu13"]


def test_no_nvcc(tmp_path):
    environ = {"CUDA_HOME": "/nowhere", "PATH": str(tmp_path)}
    reason = f"no nvcc was found in CUDA_HOME=/nowhere, PATH, {tmp_path / 'usual'}, the packages of pip"
    choice = decide(environ, LINUX)
    assert (choice.toolkit, choice.reason, choice.required) == (None, reason, False)
    assert choice.summary == f"the CUDA core is not compiled: {reason}"
    assert decide({**environ, "EMA_OPS_BUILD_CUDA": "1"}, LINUX).required
    assert decide({**environ, "EMA_OPS_BUILD_CUDA": "pip"}, LINUX).required


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\necho broken; exit 3\n", "nvcc --version failed: broken"),
        ("#!/bin/sh\necho hello\n", "nvcc --version names no release"),
        ("#!/nowhere/sh\n", "nvcc does not run: .*No such file"),
        ("#!/bin/sh\necho release 11.8, V11.8.89\n", "nvcc is of CUDA 11.8, older than 12.0"),
    ],
)
def test_nvcc_that_is_of_no_use(tmp_path, text, reason):
    nvcc = script(tmp_path / "bin" / "nvcc", text)
    with pytest.raises(ToolkitMissing, match=reason):
        inspect_toolkit(nvcc)
    assert decide({"CUDA_HOME": str(tmp_path)}, LINUX).toolkit is None


def test_not_wanted_or_not_possible(tmp_path):
    make_toolkit(tmp_path)
    environ = {"CUDA_HOME": str(tmp_path)}
    assert decide({**environ, "EMA_OPS_BUILD_CUDA": "0"}, LINUX).reason == "EMA_OPS_BUILD_CUDA is 0"
    assert "Linux only" in decide(environ, "darwin").reason
    assert decide(environ, LINUX).toolkit is not None


def test_architectures(tmp_path):
    make_toolkit(tmp_path / "new")
    make_toolkit(tmp_path / "old", release="12.4", architectures=("80", "86", "89", "90"))
    new, old = ({"CUDA_HOME": str(tmp_path / name)} for name in ("new", "old"))
    summary = "the CUDA core is compiled by nvcc {} for {}"
    assert decide(new, LINUX).summary == summary.format("13.0.88", "80 86 89 90a 100 120+PTX")
    assert decide(old, LINUX).summary == summary.format("12.4.88", "80 86 89 90a")
    assert decide({**new, "EMA_OPS_CUDA_ARCHS": "90a"}, LINUX).summary == summary.format("13.0.88", "90a")
    with pytest.raises(ValueError, match="EMA_OPS_CUDA_ARCHS has '100': expected one of 80, 86, 89, 90, "):
        decide({**old, "EMA_OPS_CUDA_ARCHS": "80;100"}, LINUX)
