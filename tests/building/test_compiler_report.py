"""The core for every architecture, judged by the compiler's own report: no spills, no stack, registers that fit."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
from compiler_report import block_sizes, demangle, processor_seconds, read_report

from building.choice import decide
from building.commands import core_sources
from building.ninja_file import LIBRARY

REGISTER_FILE = 65536  # registers of a multiprocessor, for all threads of a block


@pytest.fixture(scope="module")
def usages(core_folder):
    """Every kernel on every architecture."""
    sources = [source for source in core_sources() if source.endswith(".cu")]
    return [usage for source in sources for usage in read_report(log_of(core_folder, source))]


def test_report_is_complete(usages):
    """Every kernel was compiled for every architecture that the build chose."""
    chosen = {a.name for a in decide(os.environ).architectures}
    built = defaultdict(set)
    for usage in usages:
        built[usage.symbol].add(usage.architecture)
    assert built
    assert {symbol: names for symbol, names in built.items() if names != chosen} == {}


def test_no_spills_and_no_stack(usages):
    table(usages)
    bad = [usage for usage in usages if usage.stack or usage.spill_stores or usage.spill_loads]
    names = demangle([usage.symbol for usage in bad])
    lines = [
        f"sm_{u.architecture} {n}: {u.stack} B stack, {u.spill_stores} B stored, {u.spill_loads} B loaded"
        for u, n in zip(bad, names, strict=True)
    ]
    assert not lines, "\n".join(lines)


def test_registers_fit_the_block(usages, core_folder):
    triton = pytest.importorskip("triton", reason="cuobjdump comes with triton")
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    threads = block_sizes(cuobjdump, core_folder / LIBRARY)
    assert {(usage.symbol, usage.architecture) for usage in usages} == set(threads)
    wrong = [u for u in usages if _allocated(u.registers) * threads[u.symbol, u.architecture] > REGISTER_FILE]
    assert wrong == []


def test_no_warnings(core_folder):
    logs = list(core_folder.glob("*.log"))
    assert logs
    assert [line for log in logs for line in log.read_text().splitlines() if "warning" in line.lower()] == []


def test_time_of_the_build(core_folder):
    """Less than five minutes on two cores; judged by the processor's time, as the machine may be busy."""
    seconds = {source: processor_seconds(log_of(core_folder, source)) for source in core_sources()}
    for source, value in seconds.items():
        print(f"{value:7.1f} s  {source}")
    print(f"{sum(seconds.values()) / 2:7.1f} s  all, on two cores")
    assert sum(seconds.values()) / 2 < 300


def log_of(folder: Path, source: str) -> Path:
    """The compiler's messages about a source."""
    return folder / (source.replace("/", ".") + ".o.log")


def _allocated(registers: int) -> int:
    """Registers are given out in eights."""
    return -(-registers // 8) * 8


def table(usages) -> None:
    """Registers of every kernel, a column for each architecture; with a star where something was spilled."""
    architectures = list(dict.fromkeys(usage.architecture for usage in usages))
    rows = defaultdict(dict)
    for usage, name in zip(usages, demangle([usage.symbol for usage in usages]), strict=True):
        rows[name][usage.architecture] = f"{usage.registers}{'*' if usage.stack or usage.spill_loads else ''}"
    print("\nregisters " + " ".join(f"{name:>5}" for name in architectures))
    for name, row in rows.items():
        print(" " * 9 + " ".join(f"{row.get(architecture, '-'):>5}" for architecture in architectures), name)
