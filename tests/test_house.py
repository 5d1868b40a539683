"""The rules of the house: what may import what, how large a file may be, what `import ema_ops` costs."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ema_ops"
# every module may import from those after it in this list, and from its own group
ORDER = [
    "cli",
    "demo",
    "segmentation",
    "layers",
    "folding",
    "functional",
    "autograd",
    "ops",
    "plain",
    "vmap",
    "backends",
    "problem",
    "layout",
    "out_of_memory",
    "checkout",
]
FREE = {"interop", "reference", "__init__", "__main__"}


def group(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_groups(path):
    """Groups of the package that a module imports, relative and absolute imports alike."""
    package = ("ema_ops", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = (*base, *(node.module or "").split(".")) if node.module else base
            if full[:1] == ("ema_ops",):
                names = [full[1]] if len(full) > 1 else [alias.name for alias in node.names]
                yield from (name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists())
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("ema_ops."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = group(path)
    if own in FREE:
        if own == "reference":
            assert set(imported_groups(path)) == set()
        return
    assert own in ORDER, f"{own} has no place in the order of imports"
    for other in set(imported_groups(path)) - {own}:
        if other in FREE:
            assert own in ("cli", "demo", "segmentation"), f"{path} imports {other}"
        else:
            assert ORDER.index(own) < ORDER.index(other), f"{path} imports {other}"


def test_backends_do_not_know_each_other():
    for path in (PACKAGE / "backends").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "triton" not in path.parts:
                assert "triton" not in (node.module or ""), path
            if isinstance(node, ast.ImportFrom) and "triton" in path.parts:
                assert "eager" not in (node.module or ""), path


def test_no_file_is_long():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = [name for name in files.split("\0") if name.endswith((".py", ".cu", ".h", ".cpp", ".sh"))]
    long = {name: n for name in code if (n := len((ROOT / name).read_text().splitlines())) > 500}
    assert code
    assert long == {}


def test_the_core_neither_waits_nor_allocates():
    """No function of CUDA is called but those that launch, name an error, choose the device, or ask about it."""
    allowed = "DeviceGetAttribute FuncSetAttribute GetDevice GetDriverEntryPoint GetDriverEntryPointByVersion"
    allowed += " GetErrorString GetLastError LaunchKernelExC SetDevice"
    sources = [path.read_text() for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    called = {name for text in sources for name in re.findall(r"\bcuda([A-Z]\w*)\s*\(", text)}
    assert "LaunchKernelExC" in called
    assert called <= set(allowed.split())
    assert not [text for text in sources if re.search("<<<[^>]", text)]


def test_every_launch_is_checked():
    """Host code passes the error of each kernel on, with the kernel's name."""
    headers = [ROOT / "csrc" / name for name in ("kernels/kernels.h", "hopper/hopper.h", "hopper/em_loop.h")]
    text = "".join(path.read_text() for path in headers)
    kernels = set(re.findall(r"^cudaError_t (\w+)\(", text, re.MULTILINE))
    checked = r"(?P<before>check\(\s*\"\w+\",\s*)?"
    call = re.compile(rf"{checked}(?:\w+::)*\b(?P<name>{'|'.join(kernels)})\((?:call\.)?problem,")
    calls = [found for path in (ROOT / "csrc").glob("*.cpp") for found in call.finditer(path.read_text())]
    assert {found["name"] for found in calls} == kernels
    assert [found[0] for found in calls if found["before"] is None] == []


def test_files_that_run_together_have_different_names():
    apart = {"triton", "triton_compile", "building"}
    folders = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    names = [path.name for path in folders if path.parts[0] not in apart]
    assert len(names) > 50
    assert sorted(names) == sorted(set(names))


def test_import_needs_torch_and_numpy_only():
    script = """
import sys, json, torch, numpy
before = set(sys.modules)
import ema_ops
print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))
"""
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    new = set(json.loads(out)) - set(sys.stdlib_module_names)
    assert new <= {"ema_ops", "torch", "numpy"}, new


def test_public_names_have_docstrings():
    import ema_ops

    for name in ema_ops.__all__:
        value = getattr(ema_ops, name)
        assert name == "PRESETS" or (value.__doc__ or "").strip(), name
