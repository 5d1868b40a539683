"""How many compilers run at a time: no more than there are cores, nor than free memory holds."""

from __future__ import annotations

import os
from pathlib import Path

BYTES_PER_JOB = 2 << 30
GROUP = Path("/sys/fs/cgroup")


def default_jobs(cores: int, free_bytes: int) -> int:
    """At least 1, at most one a core, and `BYTES_PER_JOB` of free memory each."""
    return max(1, min(cores, free_bytes // BYTES_PER_JOB))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory() -> int:
    """Bytes that are available on this Linux machine and, in a container, within its limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(available, free_in_group(GROUP, available))


def free_in_group(group: Path, unlimited: int) -> int:
    """What the control group's memory limit leaves, page cache not counted; `unlimited` if there is none."""
    try:
        limit = (group / "memory.max").read_text().strip()
        current = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except FileNotFoundError:
        return unlimited
    return unlimited if limit == "max" else int(limit) - current + int(stat["inactive_file"])
