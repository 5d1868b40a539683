"""The package as a user gets it: from a source archive, built in isolation without torch, installed, and used."""

import re
import tarfile
import zipfile

from trees import ARCHITECTURE, ROOT, compile_times, pip_install, run

from building.commands import core_sources

SYSTEM_LIBRARIES = r"lib(stdc\+\+|gcc_s|m|c|dl|rt|pthread)\.so\.\d+|ld-linux.*\.so\.\d+"
SMOKE = """
import sys
import ema_ops._C as core
assert "torch" in sys.modules  # of ema_ops, not of the core
print(core.__file__, core.architectures, core.ptx_architectures, core.nvcc_version)
import torch, ema_ops
x, bases = torch.randn(2, 9, 16), torch.randn(16, 4)
y, bases = ema_ops.em_attention(x, bases, num_iters=2)
assert y.shape == x.shape and y.isfinite().all()
"""
ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
assert "torch" not in sys.modules
print(*core.architectures)
try:
    plan = core.plan(core.Problem(), core.Device(108, 160 * 1024))
    core.em_step(core.Problem(), plan, (0, 0, 0), (0,) * 6, (0,) * 4, (0,) * 5, 0, 0, 0)
except RuntimeError as error:
    print(error)
"""


def test_source_archive_has_what_the_build_needs(source_archive):
    with tarfile.open(source_archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    headers = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "building").glob("*.py")}
    assert headers
    assert modules
    assert {*core_sources(), *headers, *modules, "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "core_build.txt")) or name.startswith("build/")]


def test_built_in_isolation_for_what_was_asked(package):
    assert f"ema_ops: the CUDA core is compiled by nvcc {nvcc_version(package)} for {ARCHITECTURE}\n" in package.output
    requirements = re.search(r"^Requires-Dist:.*", package.output, re.MULTILINE)
    assert requirements is None
    assert "torch" not in re.findall(r"Collecting (\w+)", package.output)


def test_wheel_holds_the_package_only(package):
    with zipfile.ZipFile(package.wheel) as wheel:
        names = wheel.namelist()
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"ema_ops", *(name for name in folders if name.endswith(".dist-info"))}
    assert len([name for name in names if re.fullmatch(r"ema_ops/_C\..*\.so", name)]) == 1
    assert not [name for name in names if name.endswith((".h", ".cu", ".cpp"))]


def test_installed_package_works(package):
    printed = run(package.python, "-c", SMOKE, cwd=package.wheel.parent)
    assert str(package.python.parents[1]) in printed
    assert f"('{ARCHITECTURE}',) () {nvcc_version(package)}" in printed


def test_info_names_the_core(package):
    printed = run(package.python.parent / "ema-ops", "info", cwd=package.wheel.parent)
    assert f"compiled by nvcc {nvcc_version(package)} for {ARCHITECTURE}\n" in printed


def test_core_imports_without_torch_gpu_or_driver_and_a_call_says_so(package):
    printed = run(
        package.python, "-I", "-c", ALONE, library(package), cwd=package.wheel.parent, CUDA_VISIBLE_DEVICES=""
    )
    architectures, error = printed.splitlines()
    assert architectures == ARCHITECTURE
    assert re.fullmatch(
        "device 0 cannot be used: (CUDA driver version is insufficient|no CUDA-capable device).*", error
    )


def test_core_links_system_libraries_only(package):
    """So that neither another torch nor another driver asks for a new build."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", library(package), cwd=package.tree))
    assert needed
    assert [name for name in needed if not re.fullmatch(SYSTEM_LIBRARIES, name)] == []
    assert "not found" not in run("ldd", library(package), cwd=package.tree)


def test_core_exports_its_entry_point_and_asks_for_python_and_the_system_only(package):
    exported = run("nm", "--dynamic", "--defined-only", library(package), cwd=package.tree)
    assert [line.split()[2] for line in exported.splitlines()] == ["PyInit__C"]
    missing = run("nm", "--dynamic", "--undefined-only", library(package), cwd=package.tree)
    names = [line.split()[1] for line in missing.splitlines()]
    versioned = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
    weak = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
    assert names
    assert [n for n in names if not (n.startswith(("Py", "_Py")) or versioned.search(n) or n in weak)] == []


def test_editable_installation_compiles_what_changed(package):
    """After the wheel nothing is left to do; then one source; and in isolation, where pybind11 is elsewhere."""

    def install():
        pip_install(package.python, "--editable", package.tree, cwd=package.tree, EMA_OPS_CUDA_ARCHS=ARCHITECTURE)
        return compile_times(package.tree)

    before = compile_times(package.tree)
    assert len(before) == len(core_sources())
    assert install() == before
    (package.tree / "csrc" / "plan.cpp").touch()
    after = install()
    assert [name for name in after if after[name] != before[name]] == ["csrc.plan.cpp.o"]
    printed = run(package.python, "-c", "import ema_ops._C as core; print(core.__file__)", cwd=package.wheel.parent)
    assert str(package.tree) in printed


def test_time_of_a_build_for_one_architecture(package):
    """Less than a minute on two cores; judged by the processor's time, as the machine may be busy."""
    print(f"\none architecture: {package.processor_seconds:.0f} s of processor time with pip's own")
    assert package.processor_seconds / 2 < 60


def nvcc_version(package):
    """As the core in the wheel has it."""
    return re.search(r"compiled by nvcc ([\d.]+) for", package.output)[1]


def library(package):
    """The core in the environment where the wheel is installed."""
    (found,) = package.python.parents[1].rglob("ema_ops/_C.*.so")
    return found
