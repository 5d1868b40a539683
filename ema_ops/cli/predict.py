"""`ema-ops predict`: masks and overlays of a picture, a folder of pictures or a video."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .extras import require
from .inference_options import add_inference_options, inference, load

if TYPE_CHECKING:
    from ..segmentation.evaluation.drawing import Painter
    from ..segmentation.evaluation.predict import Predictor
    from ..segmentation.training.distributed import World

HELP = "write palette masks and overlays of a picture, a folder of pictures (also under torchrun) or a video"
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".avi",
    ".webm",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".wmv",
    ".flv",
    ".ogv",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Results lie in the folders `masks` and `overlays` of --out, by the name of their picture."""
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT", help="a picture, a folder (with all folders in it) or a video")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--alpha", type=float, default=0.6, help="strength of the colours in overlays, 0 to 1 (default: 0.6)")
    add("--masks", action="store_true", help="of a video, write the mask of every frame too")
    add_inference_options(parser)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when a picture could not be read or a video is cut short; the rest is done.

    Raises ValueError or OSError for bad input.
    """
    require("segmentation")
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input} does not exist: expected a picture, a folder or a video")
    is_video = args.input.is_file() and args.input.suffix.lower() in VIDEO_SUFFIXES
    if is_video:
        require("video")
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"out is {args.out}, a file: expected a folder")
    if args.input.is_dir() and args.out.resolve() == args.input.resolve():
        raise ValueError(f"out is {args.out}, the folder of the pictures: expected another one")
    from ..segmentation.training.distributed import UNTIL_ALL_ARE_DONE, world

    with world(args.device, timeout=UNTIL_ALL_ARE_DONE) as here:
        if is_video and here.size > 1:
            raise ValueError(f"{args.input} is a video, for {here.size} processes: expected one process")
        predictor, painter = _tools(args, here.device)
        args.out.mkdir(parents=True, exist_ok=True)
        if is_video:
            return _predict_video(args, predictor, painter)
        return _predict_pictures(args, predictor, painter, here)


def _tools(args: argparse.Namespace, device: torch.device) -> tuple[Predictor, Painter]:
    """What judges and what draws, as the options say."""
    from ..segmentation.data import VOC_CLASSES, voc_palette
    from ..segmentation.data.labels import class_names
    from ..segmentation.evaluation.drawing import Painter
    from ..segmentation.evaluation.predict import Predictor

    settings = inference(args)
    network, checkpoint = load(args, device)
    num_classes = checkpoint.model["num_classes"]
    names = class_names(checkpoint.classes, num_classes, VOC_CLASSES)
    palette = voc_palette()
    if checkpoint.palette is not None:
        palette[:num_classes] = checkpoint.palette
    painter = Painter(names, palette, args.alpha)
    return Predictor(network, num_classes, settings, device, args.batch), painter


def _predict_pictures(args: argparse.Namespace, predictor: Predictor, painter: Painter, here: World) -> int:
    """The pictures of this process; how many of all were broken, all say at the end."""
    from tqdm import tqdm

    from ..segmentation.evaluation.pictures import find_pictures
    from ..segmentation.evaluation.predict import predict_pictures

    is_folder = args.input.is_dir()
    paths = find_pictures(args.input, leave_out=args.out) if is_folder else [args.input]
    root = args.input if is_folder else args.input.parent
    share = len(paths[here.rank :: here.size])
    with tqdm(total=share, desc="prediction", unit="picture", disable=None if here.is_main else True) as bar:

        def done(path: Path, error: str) -> None:
            if error:
                bar.write(f"ema-ops predict: {error}", file=sys.stderr)
            bar.update()

        broken = predict_pictures(
            predictor,
            painter,
            paths,
            root,
            args.out,
            rank=here.rank,
            world_size=here.size,
            workers=args.workers,
            done=done,
        )
    # at the end only: torchrun ends all processes as soon as one has failed
    broken = int(here.total(torch.tensor(broken)).item())
    if here.is_main:
        print(f"{len(paths) - broken} of {len(paths)} pictures: {args.out / 'masks'}, {args.out / 'overlays'}")
    return 1 if broken else 0


def _predict_video(args: argparse.Namespace, predictor: Predictor, painter: Painter) -> int:
    from tqdm import tqdm

    from ..segmentation.evaluation.video import predict_video

    with tqdm(desc="prediction", unit="frame", disable=None) as bar:

        def started(frames: int | None) -> None:
            bar.reset(total=frames)

        result = predict_video(
            predictor,
            painter,
            args.input,
            args.out,
            masks=args.masks,
            started=started,
            done=lambda frame: bar.update(),
        )
    print(f"{result.frames} frames: {result.path}")
    if result.expected is not None and result.frames < result.expected:
        print(f"ema-ops predict: {args.input} is cut short, it should have {result.expected} frames", file=sys.stderr)
        return 1
    return 0
