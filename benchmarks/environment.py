"""Where and when a measurement was made: the columns that are the same for a whole run."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

import ema_ops
from ema_ops.cli.info import installed_version

REPOSITORY = Path(__file__).resolve().parent.parent


def environment(device: torch.device) -> dict[str, str]:
    """Device, versions, commit and settings, by column."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "cuda": torch.version.cuda or torch.version.hip or "",
        "python": platform.python_version(),
        "ema_ops": ema_ops.__version__,
        "commit": commit(),
        "threads": str(torch.get_num_threads()),
        "float32_matmul": torch.get_float32_matmul_precision(),
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the model of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout, "-dirty" behind it with local changes. EMA_OPS_COMMIT where git cannot say."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = ""
    return found or os.environ.get("EMA_OPS_COMMIT") or "unknown"
