"""`ema-ops data`: check a data set before training, make the generated one, list the kinds."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .extras import require

if TYPE_CHECKING:
    from ..segmentation.data import Report

HELP = "find every broken file of a data set, or make the generated set"


def configure(parser: argparse.ArgumentParser) -> None:
    """Three actions; with none the help is printed."""
    parser.set_defaults(print_help=parser.print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    check = actions.add_parser("check", help="read every picture and mask and tell what is wrong, naming the file")
    check.add_argument("root", type=Path, help="folder of the data set")
    check.add_argument("--kind", default="voc", help="its kind, one that `ema-ops data list` names (default: voc)")
    check.add_argument("--split", help="which part (default: train, for a folder all)")
    check.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the kind, such as num_classes=5 or 'classes=[cat, dog]'; may be repeated",
    )
    check.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes that read")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")

    generate = actions.add_parser("generate", help="make a small task that needs context: digits on photographs")
    generate.add_argument("root", type=Path, help="folder to make; new or empty")
    generate.add_argument("--train", type=int, default=2000, help="training pictures (default: 2000)")
    generate.add_argument("--val", type=int, default=200, help="validation pictures (default: 200)")
    generate.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")

    actions.add_parser("list", help="the kinds of data sets, how they lie on disk, and their options")


def run(args: argparse.Namespace) -> int:
    """0; 1 when `check` found something wrong. Raises ValueError, TypeError or OSError for bad arguments."""
    if args.action is None:
        args.print_help()
        return 0
    require("segmentation")
    if args.action == "check":
        return _check(args)
    if args.action == "generate":
        return _generate(args)
    return _list()


def _check(args: argparse.Namespace) -> int:
    from ..segmentation.data import check_dataset
    from ..segmentation.data.kinds import check_options, default_split

    split = default_split(args.kind) if args.split is None else args.split
    options = dict(map(parsed_option, args.option))
    check_options(args.kind, options)
    report = check_dataset(args.kind, args.root, split, workers=args.workers, progress=sys.stderr.isatty(), **options)
    for problem in report.problems:
        print(problem)
    for line in _table(report):
        print(line)
    found = [name for name, pixels in zip(report.classes, report.pixels.tolist(), strict=True) if pixels]
    if len(report.classes) > 1 and len(found) == 1 and report.ignored:
        print(f"note: all labels are {found[0]!r}; 255 is for pixels to ignore, not for a class", file=sys.stderr)
    count = len(report.problems)
    print(f"{args.root} {split}: {report.num_images} pictures, {count or 'no'} problem{'s' if count != 1 else ''}")
    if args.json is not None:
        args.json.write_text(json.dumps(_as_json(args.kind, args.root, split, report), indent=2) + "\n")
    return 1 if report.problems else 0


def _generate(args: argparse.Namespace) -> int:
    require("demo")
    from tqdm import tqdm

    from ..segmentation.data.generated import build

    for name, value, least in (("train", args.train, 1), ("val", args.val, 1), ("seed", args.seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}: expected {least} or more")
    if args.root.exists() and (not args.root.is_dir() or any(args.root.iterdir())):
        raise ValueError(f"{args.root} is there already: expected a new or empty folder")
    with tqdm(total=args.train + args.val, desc="generate", unit="picture", disable=not sys.stderr.isatty()) as bar:
        try:
            build(args.root, train=args.train, val=args.val, seed=args.seed, progress=bar.update)
        # a full disk names no file, while what we raise ourselves does
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(f"{args.root} cannot be written to: {error}") from error
    print(f"{args.root}: {args.train} pictures to train on, {args.val} to validate (kind: generated)")
    return 0


def _list() -> int:
    from ..segmentation.data import KINDS
    from ..segmentation.data.kinds import option_names

    for kind, dataset in KINDS.items():
        text = inspect.getdoc(dataset) or ""
        print(f"{kind}: {text.partition('Args:')[0].strip()}")
        print(f"\n    options: {', '.join(option_names(kind)) or 'none'}\n")
    return 0


def parsed_option(text: str) -> tuple[str, Any]:
    """("num_classes", 5) of "num_classes=5"; the value is YAML. Raises ValueError naming what is not like this."""
    from ..segmentation.yaml_values import parse_yaml

    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ValueError(f"option is {text!r}: expected KEY=VALUE")
    try:
        return key, parse_yaml(value)
    except ValueError:
        raise ValueError(f"option {key} is {value!r}: expected a value as YAML writes it") from None


def _table(report: Report) -> list[str]:
    """How often each class occurs; nothing for a data set that could not be opened."""
    if not report.classes:
        return []
    total = max(int(report.pixels.sum()) + report.ignored, 1)
    width = max(len("class"), *map(len, report.classes))
    lines = [f"label  {'class':{width}}  {'pixels':>13}   share  pictures"]
    for label, name in enumerate(report.classes):
        pixels, images = int(report.pixels[label]), int(report.images[label])
        lines.append(f"{label:5}  {name:{width}}  {pixels:13}  {pixels / total:6.2%}  {images:8}")
    lines.append(f"       {'ignored':{width}}  {report.ignored:13}  {report.ignored / total:6.2%}")
    return lines


def _as_json(kind: str, root: Path, split: str, report: Report) -> dict[str, Any]:
    classes = [
        {"name": name, "pixels": int(pixels), "pictures": int(images)}
        for name, pixels, images in zip(report.classes, report.pixels, report.images, strict=True)
    ]
    return {
        "kind": kind,
        "root": str(root),
        "split": split,
        "pictures": report.num_images,
        "problems": list(report.problems),
        "classes": classes,
        "ignored_pixels": report.ignored,
    }
