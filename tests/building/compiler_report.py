"""What nvcc said about every kernel: registers, stack, spills, and the threads of a block it was compiled for."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
ATTRIBUTE = re.compile(
    r"^arch = sm_(?P<architecture>\w+)"
    r"|^\.nv\.info\.(?P<symbol>\w+)"
    r"|EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(?P<sizes>(0x[0-9a-f]+ ?){3})",
    re.MULTILINE,
)


class Usage(NamedTuple):
    """One kernel on one architecture; stack and spills in bytes of a thread."""

    symbol: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def read_report(log: Path) -> list[Usage]:
    """The kernels in the messages of one compilation. Raises ValueError if one is not fully described."""
    text = log.read_text()
    found = []
    for part in text.split("Compiling entry function")[1:]:
        entry, memory, registers = (p.search(f"Compiling entry function{part}") for p in (ENTRY, MEMORY, REGISTERS))
        if entry is None or memory is None or registers is None:
            raise ValueError(f"{log} has {part!r}: expected stack, spills and registers of a kernel")
        found.append(Usage(entry[1], entry[2], int(registers[1]), *map(int, memory.groups())))
    return found


def processor_seconds(log: Path) -> float:
    """User and system time of one compilation, from the last line of its messages, such as 1m3.250s 0m2.100s."""
    found = re.findall(r"(\d+)m([\d.]+)s", log.read_text().splitlines()[-1])
    if len(found) != 2:
        raise ValueError(f"{log} ends without the times of the compiler: expected two such as 1m3.250s")
    return sum(60 * int(minutes) + float(seconds) for minutes, seconds in found)


def block_sizes(cuobjdump: Path, library: Path) -> dict[tuple[str, str], int]:
    """Threads of a block that each (kernel, architecture) in a library was compiled for."""
    dump = subprocess.run([cuobjdump, "-elf", library], capture_output=True, text=True, check=True).stdout
    found, architecture, symbol = {}, "", ""
    for line in ATTRIBUTE.finditer(dump):
        if line["sizes"]:
            found[symbol, architecture] = math.prod(int(size, 16) for size in line["sizes"].split())
        else:
            architecture, symbol = line["architecture"] or architecture, line["symbol"] or symbol
    return found


def demangle(symbols: list[str]) -> list[str]:
    """Kernels as their authors wrote them, without namespaces and arguments."""
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return [re.sub(r"^void |\(anonymous namespace\)::|ema::|\(ema::.*\)$", "", name) for name in done.splitlines()]
