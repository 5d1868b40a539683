"""`ema-ops info`: versions, devices, and which backends are usable or why not."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata

import torch

import ema_ops

HELP = "show versions, devices, and which backends are usable or why not"


def configure(parser: argparse.ArgumentParser) -> None:
    """`info` takes no options."""


def run(args: argparse.Namespace) -> int:
    """Print the report; always 0."""
    print(f"ema_ops {ema_ops.__version__}")
    print(f"python  {platform.python_version()}")
    print(f"torch   {torch.__version__}")
    print(f"triton  {_installed('triton')}")
    print(f"devices {', '.join(_devices())}")
    print(f"EMA_OPS_BACKEND {os.environ.get('EMA_OPS_BACKEND') or 'not set: the first usable backend that fits'}")
    for name, status in ema_ops.available_backends().items():
        print(f"backend {name:7} {'usable' if status.usable else 'not usable: ' + status.reason}")
    return 0


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.get_num_threads()} threads)", *gpus]
