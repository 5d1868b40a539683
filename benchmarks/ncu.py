"""What limits each kernel in the main shapes, by Nsight Compute: bandwidth, tensor cores, bytes.

    python -m benchmarks.ncu FOLDER

runs itself once more under ncu for every shape and every choice of EMA_OPS_HOPPER, keeps the counters as FOLDER/*.csv
and writes FOLDER/ncu.md. Without ncu, or where counters may not be read, it says so and ends with status 3. The status
is 1 where a run failed.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from .case import Case, draw
from .peers import ours
from .units import ours as our_unit
from .workload import workload

SHAPES = (("forward", 16), ("backward", 16), ("unit", 16), ("forward", 1))
SIZES = (512, 65, 65, 64, 3)  # C, height, width, K, T
PARTS = ("0", "overlap,tiles", "loop,overlap,tiles")
# column of the table -> metric
METRICS = {
    "us": "gpu__time_duration.sum",
    "memory, %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "read, MB": "dram__bytes_read.sum",
    "written, MB": "dram__bytes_write.sum",
    "L2, %": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor cores, %": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "SM, %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
}
# to microseconds and megabytes
UNITS = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1, "us": 1, "msecond": 1e3, "ms": 1e3}
UNITS |= {"byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1, "Gbyte": 1e3, "%": 1}
SECONDS = 60  # of one run


def main(argv: list[str] | None = None) -> int:
    """The table, or as `--inside` what ncu looks at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder")
    parser.add_argument("--inside", nargs=2, metavar=("MODE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.inside is not None:
        run_once(options.inside[0], int(options.inside[1]))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    tool = shutil.which("ncu")
    if tool is None:
        return _without(options.out, "there is no ncu in PATH")
    status = 0
    for parts in PARTS:
        for mode, batch in SHAPES:
            name = f"{mode}-{batch}-{'off' if parts == '0' else parts.replace(',', '-')}"
            reason = profile(tool, options.out / f"{name}.csv", mode, batch, parts)
            print(f"{name}: {reason or 'done'}", flush=True)
            if reason is not None and "counters" in reason:
                return _without(options.out, reason)
            write_table(options.out)
            status = status if reason is None else 1
    return status


def run_once(mode: str, batch: int) -> None:
    """A call of the "cuda" backend that ncu sees, behind one that it does not."""
    device = torch.device("cuda")
    case = Case(batch, *SIZES, "bfloat16", "channels_last")
    inputs = draw(case, device, seed=0)
    peer = our_unit("cuda", fold=True) if mode == "unit" else ours("cuda")
    work = workload(peer, peer.build(case), inputs, mode)
    work.run()
    prepared = work.prepare()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    work.step(prepared)
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()


def profile(tool: str, path: Path, mode: str, batch: int, parts: str) -> str | None:
    """The counters of one call into `path`; None, or why there are none. Clocks stay as they are."""
    command = [
        tool, "--csv", "--page", "raw", "--clock-control", "none", "--profile-from-start", "off",
        "--kernel-name-base", "mangled", "--kernel-name", "regex:3ema", "--metrics", ",".join(METRICS.values()),
        "--log-file", str(path), sys.executable, "-m", "benchmarks.ncu", str(path.parent), "--inside", mode, str(batch),
    ]  # fmt: skip
    # in a group of its own, for ncu leaves what it looks at running when it is killed
    with subprocess.Popen(
        command, env={**os.environ, "EMA_OPS_HOPPER": parts}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"stopped after {SECONDS} s"
    said = "\n".join([output, path.read_text() if path.exists() else ""])
    if "ERR_NVGPUCTRPERM" in said or "Failed to initialize the profiler" in said:
        return "the hardware counters may not be read on this machine"
    if process.returncode != 0:
        return f"status {process.returncode}: {said.strip().splitlines()[-1] if said.strip() else 'no output'}"
    return None if read_counters(path) else "no kernel of ours was seen"


def read_counters(path: Path) -> list[dict[str, str]]:
    """The kernels in the order of their launches, with the columns of the table."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if not rows:
        return []
    units, *kernels = rows
    return [{"kernel": _short(row["Kernel Name"]), **{k: _in_units(row, units, m) for k, m in METRICS.items()}}
            for row in kernels]  # fmt: skip


def write_table(folder: Path) -> str:
    """Write `ncu.md` from all files of the folder; returns the text."""
    lines = ["Every kernel of one call, C = 512, K = 64, T = 3, 65 x 65, bfloat16, channels last, alone on the GPU."]
    for path in sorted(folder.glob("*.csv")):
        kernels = read_counters(path)
        lines += ["", f"**{path.stem}**: {_sum(k['us'] for k in kernels):.1f} us, {len(kernels)} kernels", ""]
        lines += [f"| kernel | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
        lines += [f"| {' | '.join(kernel.values())} |" for kernel in kernels]
    text = "\n".join(lines) + "\n"
    (folder / "ncu.md").write_text(text)
    return text


def _without(folder: Path, reason: str) -> int:
    (folder / "ncu.md").write_text(f"No counters: {reason}.\n")
    print(f"no counters: {reason}")
    return 3


def _short(kernel: str) -> str:
    found = re.search(r"[a-z][a-z_]*_kernel", kernel)
    return found[0] if found else kernel[:60]


def _in_units(row: dict[str, str], units: dict[str, str], metric: str) -> str:
    try:
        return f"{float(row[metric].replace(',', '')) * UNITS[units[metric]]:.1f}"
    except (KeyError, ValueError):
        return "-"


def _sum(values: Iterable[str]) -> float:
    return sum(float(value) for value in values if value != "-")


if __name__ == "__main__":
    sys.exit(main())
