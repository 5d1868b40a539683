"""The rules of the house: what may import what, how large a file may be, what `import ema_ops` costs."""

import ast
import json
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
