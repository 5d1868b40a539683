"""`ema-ops evaluate`: a network judged on a data set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import parsed_option
from .extras import require
from .inference_options import add_inference_options, inference, load

if TYPE_CHECKING:
    from ..segmentation.data import SegmentationDataset
    from ..segmentation.models.checkpoints import Checkpoint

HELP = "judge a network on a data set: IoU and accuracy of every class, mIoU, confusion matrix (also under torchrun)"


def configure(parser: argparse.ArgumentParser) -> None:
    """The data set is the validation part of what the network was trained on, unless options say another."""
    add = parser.add_argument
    add("--kind", help="of the data set: voc, context, coco_stuff, cityscapes, folder or generated")
    add("--root", type=Path, help="folder of the data set")
    add("--split", help="such as val")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set, such as classes=[sky,sea]")
    add("--out", type=Path, help="folder for scores.json, table.txt and confusion.png (default: beside the checkpoint)")
    add_inference_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table and write the report; 0. Raises ValueError or OSError for bad input."""
    require("segmentation")
    from tqdm import tqdm

    from ..segmentation.data import open_dataset
    from ..segmentation.evaluation import evaluate
    from ..segmentation.evaluation.report import text_table, write_report
    from ..segmentation.training.distributed import UNTIL_ALL_ARE_DONE, world

    options = vars(inference(args))
    with world(args.device, timeout=UNTIL_ALL_ARE_DONE) as here:
        network, checkpoint = load(args, here.device)
        place = _dataset_place(args, checkpoint)
        dataset = open_dataset(place["kind"], place["root"], place["split"], **place["options"])
        difference = _check_classes(args.checkpoint, checkpoint, dataset)
        if difference and here.is_main:
            print(f"note: {difference}", file=sys.stderr)
        out = args.out or args.checkpoint.parent / f"{args.checkpoint.stem}_evaluation"
        # now, so that an evaluation of hours cannot end with no place for its result
        out.mkdir(parents=True, exist_ok=True)
        share = len(range(here.rank, len(dataset), here.size))
        with tqdm(total=share, desc="evaluation", unit="picture", disable=None if here.is_main else True) as bar:
            scores = evaluate(
                network,
                dataset,
                **options,
                batch=args.batch,
                workers=args.workers,
                device=here.device,
                progress=bar.update,
            )
        if here.is_main:
            print(text_table(scores, dataset.classes))
            settings = {
                "checkpoint": str(args.checkpoint),
                "data": {**place, "pictures": len(dataset)},
                "iters": args.iters,
                "output_stride": args.output_stride,
                "compile": args.compile,
                **options,
            }
            for path in write_report(out, scores, dataset.classes, settings):
                print(path)
    return 0


def _dataset_place(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """kind, root, split and options of the data set: those given, else those of the checkpoint."""
    from ..segmentation.data.kinds import check_options

    stored = checkpoint.content.get("data") if checkpoint.source == "ema_ops" else None
    stored = stored or {}
    place = {
        "kind": args.kind or stored.get("kind"),
        "root": str(args.root or stored.get("root") or "") or None,
        "split": args.split or stored.get("split") or "val",
    }
    for name, value in place.items():
        if value is None:
            raise ValueError(f"{args.checkpoint} does not tell its data set: expected --{name}")
    if args.root is None and not Path(stored["root"]).exists():
        raise FileNotFoundError(
            f"{args.checkpoint} was trained on the data in {stored['root']}, which is not there: expected --root"
        )
    # options of another kind of data set would mean nothing
    options = dict(stored.get("options") or {}) if place["kind"] == stored.get("kind") else {}
    options |= map(parsed_option, args.option)
    check_options(str(place["kind"]), options)
    return {**place, "options": options}


def _check_classes(path: Path, checkpoint: Checkpoint, dataset: SegmentationDataset) -> str:
    """What differs in the names of the classes, if anything: other spellings of the same classes are common.

    Raises ValueError when their numbers differ.
    """
    count = checkpoint.model["num_classes"]
    if count != dataset.num_classes:
        raise ValueError(f"{path} has {count} classes: expected {dataset.num_classes}, as the data set has")
    for label, (theirs, ours) in enumerate(zip(checkpoint.classes or (), dataset.classes, strict=False)):
        if theirs != ours:
            return f"class {label} is {theirs!r} in {path} and {ours!r} in the data set"
    return ""
