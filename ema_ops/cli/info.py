"""`ema-ops info`: versions, devices, the compiled core, and which backend serves a call and why the others do not."""

from __future__ import annotations

import argparse
import math
import os
import platform
from importlib import metadata

import torch

import ema_ops

from ..backends import MODULES, check_backend, choose, load, refusal
from ..layout import as_rows
from ..problem import DTYPES, FLOAT8, Problem, check_count

HELP = "show versions, devices, and which backends are usable or serve a given call, or why not"
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in (*DTYPES, FLOAT8)}
MAX_BITS = 59  # so that 64 bits count the bytes of any dtype
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options describe one call; without --shape there is none."""
    add = parser.add_argument
    add("--shape", type=sizes, metavar="B,C,H,W", help="a call on an image B,C,H,W or on tokens B,N,C")
    add("--bases", type=int, default=64, help="its number of bases K (default: 64)")
    add("--dtype", choices=DTYPE_NAMES, default="float32", help="of its features (default: float32)")
    add("--iters", type=int, default=3, help="its iterations T (default: 3)")
    add("--heads", type=int, default=1, help="its heads, which divide the channels (default: 1)")
    add("--memory-order", choices=MEMORY_FORMATS, default="contiguous", help="of an image (default: contiguous)")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0. Raises ValueError for a call that cannot be."""
    problem = None if args.shape is None else described(args)
    print(f"ema_ops {ema_ops.__version__}")
    print(f"python  {platform.python_version()}")
    print(f"torch   {torch.__version__}")
    print(f"triton  {installed_version('triton')}")
    print(f"core    {_core()}")
    print(f"devices {', '.join(map(_described_device, _devices()))}")
    print(f"EMA_OPS_BACKEND {_wanted()}")
    for name, status in ema_ops.available_backends().items():
        print(f"backend {name:7} {'usable' if status.usable else 'not usable: ' + status.reason}")
    if problem is not None:
        shape = ",".join(map(str, args.shape))
        print(f"call    {shape} {args.dtype}, {args.bases} bases, {args.iters} iterations, {args.memory_order}")
        for device in _devices():
            print(*explanation(problem._replace(device=device), DTYPE_NAMES[args.dtype] == FLOAT8), sep="\n")
    return 0


def sizes(text: str) -> tuple[int, ...]:
    """(16, 512, 65, 65) of "16,512,65,65"."""
    words = text.split(",")
    if len(words) not in (3, 4) or not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"shape is {text!r}: expected B,C,H,W or B,N,C such as 16,512,65,65")
    found = tuple(map(int, words))
    if math.prod(found) >= 2**MAX_BITS:
        raise argparse.ArgumentTypeError(f"shape is {text!r}: expected fewer than 2^{MAX_BITS} numbers")
    return found


def described(args: argparse.Namespace) -> Problem:
    """The problem that the options describe, on no device yet. Raises ValueError."""
    num_bases, heads = check_count("bases", args.bases), check_count("heads", args.heads)
    num_iters = check_count("iters", args.iters)
    is_image = len(args.shape) == 4
    if not is_image and args.memory_order != "contiguous":
        raise ValueError(f"memory-order is {args.memory_order}: expected contiguous for tokens B,N,C")
    x = torch.empty(args.shape, dtype=DTYPE_NAMES[args.dtype], device="meta")
    x = x.to(memory_format=MEMORY_FORMATS[args.memory_order])
    layout = "BCN" if is_image else "BNC"
    channels = x.shape[1 if is_image else -1]
    if channels % heads != 0:
        raise ValueError(f"heads is {heads}: expected a divisor of the {channels} channels")
    bases = torch.empty(heads, channels // heads, num_bases, device="meta")
    return Problem.build(as_rows(x, layout, heads), bases, num_iters=num_iters, grad_iters=num_iters)


def explanation(problem: Problem, float8: bool = False) -> list[str]:
    """Lines that say which backend serves `problem` on its device, and of each backend why it does or does not.

    With `float8`, its features have 8 bits.
    """
    chosen, lines = None, []
    try:
        backend = choose(problem, None)
        chosen = backend.name
        reads = "" if not float8 else ", as 8 bits" if backend.reads_float8(problem) else ", widened to bfloat16 first"
        lines.append(f"on {problem.device}: served by {chosen}{reads}")
    except ValueError as error:
        lines.append(f"on {problem.device}: raises ValueError: {error}")
    why = "chosen by EMA_OPS_BACKEND" if os.environ.get("EMA_OPS_BACKEND") else "the first that can"
    for name in MODULES:
        reason = refusal(load(name), problem)
        answer = "can" if reason is None else f"cannot: {reason}"
        lines.append(f"  {name:7} {why if name == chosen else answer}")
    return lines


def _core() -> str:
    core = getattr(load("cuda"), "core", None)
    if core is None:
        return "none (see the cuda backend)"
    ptx = f", PTX {' '.join(core.ptx_architectures)}" if core.ptx_architectures else ""
    return f"compiled by nvcc {core.nvcc_version} for {' '.join(core.architectures)}{ptx}"


def _wanted() -> str:
    wanted = os.environ.get("EMA_OPS_BACKEND") or None
    try:
        check_backend(wanted, "it")
    except ValueError as error:
        return f"wrong, every call will raise: {error}"
    return "not set: the first usable backend that fits" if wanted is None else wanted


def installed_version(package: str) -> str:
    """The version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[torch.device]:
    return [*(torch.device("cuda", i) for i in range(torch.cuda.device_count())), torch.device("cpu")]


def _described_device(device: torch.device) -> str:
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads != 1 else ''})"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device} {torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
