"""Options of `ema-ops evaluate` and `ema-ops predict` that say which network judges pictures, where and how."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ..layers import EMAttention
from ..problem import check_count

if TYPE_CHECKING:
    from ..segmentation.evaluation import Inference
    from ..segmentation.models.checkpoints import Checkpoint


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """The options that both commands have."""
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="file of ours, of the official code or of mmsegmentation")
    add(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        help="the paper's, with --flip: 0.5 0.75 1 1.25 1.5 1.75 (default: 1)",
    )
    add("--flip", action="store_true", help="judge the mirrored pictures too; probabilities are averaged")
    add("--mode", choices=("whole", "slide"), default="whole", help="whole pictures or windows (default: whole)")
    add("--window", type=int, nargs=2, metavar=("H", "W"), help="of mode slide")
    add("--stride", type=int, nargs=2, metavar=("H", "W"), help="of the windows (default: two thirds of a window)")
    add(
        "--output-stride",
        type=int,
        help="pixels per cell of the features (default: as trained; files of other implementations do not tell, so 8)",
    )
    add("--iters", type=int, help="iterations T of EM attention (default: as trained)")
    add("--batch", type=int, default=1, help="most pictures of one size at a time (default: 1)")
    add("--workers", type=int, default=2, help="processes that decode pictures (default: 2)")
    add("--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32")
    add("--channels-last", action="store_true", help="that memory order, often faster with tensor cores")
    add("--compile", action="store_true", help="torch.compile: slow to start, faster for many pictures")
    add("--device", help="cpu, cuda or cuda:0 (default: cuda if there is one)")


def inference(args: argparse.Namespace) -> Inference:
    """What the options say about scales, windows and precision. Raises ValueError for what does not fit."""
    from ..segmentation.evaluation import Inference

    return Inference(
        args.scales, args.flip, args.mode, args.window, args.stride, args.precision, channels_last=args.channels_last
    )


def load(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Checkpoint]:
    """The network of --checkpoint on `device`, as the options want it, and what its file held.

    Raises ValueError or OSError naming the file when it is none of the known kinds.
    """
    from ..segmentation.models.checkpoints import load_network

    overrides = {} if args.output_stride is None else {"output_stride": args.output_stride}
    network, checkpoint = load_network(args.checkpoint, **overrides)
    if args.iters is not None:
        iters = check_count("iters", args.iters)
        for module in network.modules():
            if isinstance(module, EMAttention):
                module.num_iters = iters
    network.to(device)
    if args.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if args.compile:
        # for any size: pictures of a data set have many
        return cast(nn.Module, torch.compile(network, dynamic=True)), checkpoint
    return network, checkpoint
