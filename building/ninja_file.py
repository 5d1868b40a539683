"""The build of the core as a ninja file: nvcc compiles each source and links, depfiles name the headers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from .choice import Choice

# Only the entry point is exported: nothing of the core can clash with a library of torch, nor the other way round.
EXPORTS = "{ global: PyInit__C; local: *; };\n"
LIBRARY = "_C.so"


def write_ninja_file(
    choice: Choice, sources: Sequence[str], folder: Path, include_folders: Sequence[Path], threads: int
) -> Path:
    """Write build.ninja and the list of exports into `folder`; ninja then makes `LIBRARY` there.

    Run ninja from the root of the repository: `sources` are relative to it, and so is `folder`. The compiler's
    messages are kept beside each object as .log; they have the registers and spills of every kernel.
    `threads`: architectures that nvcc compiles at a time.
    """
    _write_if_new(folder / "exports.map", EXPORTS)
    objects = {source: folder / (source.replace("/", ".") + ".o") for source in sources}
    lines = [f"builddir = {_path(folder)}"]
    lines += _rule("cu", _compile_device(choice, threads), compiles=True)
    lines += _rule("cpp", _compile_host(choice, include_folders), compiles=True)
    lines += _rule("link", _link(choice, folder), compiles=False)
    for source, target in objects.items():
        lines.append(f"build {_path(target)}: {source.rpartition('.')[2]} {_path(source)}")
    inputs = " ".join(map(_path, objects.values()))
    lines.append(f"build {_path(folder / LIBRARY)}: link {inputs} | {_path(folder / 'exports.map')}")
    return _write_if_new(folder / "build.ninja", "\n".join(lines) + "\n")


def _write_if_new(file: Path, text: str) -> Path:
    """A file that stays as it is keeps its time, and nothing is made again because of it."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file


def _compile_device(choice: Choice, threads: int) -> list[str]:
    """With the compiler's report; the code is compressed, which makes it four times smaller."""
    gencode = [word for architecture in choice.architectures for word in ("-gencode", architecture.gencode)]
    report = ["-Xptxas", "-v", "-Xfatbin", "-compress-all", "--threads", str(threads)]
    return [*_compile(choice), "-O3", *report, *gencode, *choice.options.nvcc_flags]


def _compile_host(choice: Choice, include_folders: Sequence[Path]) -> list[str]:
    """What only plans and passes on; the binding of Python takes most of its time to be optimised."""
    assert choice.toolkit is not None
    names = " ".join(a.name for a in choice.architectures)
    ptx_names = " ".join(a.name for a in choice.architectures if a.ptx)
    definitions = {
        "EMA_OPS_ARCHITECTURES": names,
        "EMA_OPS_PTX_ARCHITECTURES": ptx_names,
        "EMA_OPS_NVCC_VERSION": choice.toolkit.version,
    }
    return [
        *_compile(choice),
        "-O1",
        "-Xcompiler=-Wall",
        *(f'-D{name}="{value}"' for name, value in definitions.items()),
        *(word for folder in include_folders for word in ("-isystem", str(folder))),
        *choice.options.nvcc_flags,
    ]


def _compile(choice: Choice) -> list[str]:
    """Headers of pip's packages are those of the system: they are new for every build, and their code is not."""
    assert choice.toolkit is not None
    packages = choice.toolkit.packages
    headers = ["-isystem", str(packages / "include")] if packages is not None else []
    return [str(choice.toolkit.nvcc), "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Icsrc", *headers]


def _link(choice: Choice, folder: Path) -> list[str]:
    """nvcc links too: it knows its own libraries; the runtime is static, the driver is found when it is needed."""
    assert choice.toolkit is not None
    library_folder = choice.toolkit.library_folder
    return [
        *(str(choice.toolkit.nvcc), "-shared", "-cudart", "static", "--no-device-link"),
        *([f"-L{library_folder}"] if library_folder is not None else []),
        *choice.options.nvcc_flags,
        *("-Xlinker", f"--version-script={folder / 'exports.map'}", "-Xlinker", "--strip-all"),
    ]


def _rule(name: str, words: Sequence[str], *, compiles: bool) -> list[str]:
    """A rule whose command is `words`; when one fails its messages are shown, else they stay in the .log.

    `times` adds the processor time of the compiler as the log's last line.
    """
    command = shlex.join(words).replace("$", "$$")
    if not compiles:
        return [f"rule {name}", f"  command = {command} $in -o $out", "  description = link $out"]
    return [
        f"rule {name}",
        f"  command = {{ {command} -MMD -MF $out.d -c $in -o $out && times; }} > $out.log 2>&1"
        " || { cat $out.log; exit 1; }",
        "  description = compile $in",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def _path(path: str | Path) -> str:
    """A path as ninja reads it."""
    return "".join("$" + letter if letter in "$ :" else letter for letter in str(path))
