"""`ema-ops train`: a training run from a config file or a recipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .extras import require
from .processes import tell_error

if TYPE_CHECKING:
    from ..segmentation.config import Config

HELP = "train a segmentation network from a config file or a recipe, alone or under torchrun"
_EXAMPLES = """examples:
  ema-ops train --recipes
  ema-ops data generate data/generated && ema-ops train --config generated
  ema-ops train --config voc_resnet101 --set data.root=VOCdevkit/VOC2012 model.backbone_weights=resnet101.pth
  ema-ops train --config mine.yaml --set model.weights=runs/voc_resnet101/best.pt model.skip_unfitting=true
  torchrun --nproc-per-node 4 -m ema_ops train --config voc_resnet101
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The run is described by the config; the options here say which one, and what is different this time."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("--config", required=True, metavar="FILE|RECIPE", help="a YAML file, or the name of a recipe")
    add(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="change settings, such as optimizer.lr=0.01",
    )  # fmt: skip
    add("--out", type=Path, help="folder for everything written (default: that of the config)")
    add("--resume", action="store_true", help="go on with the run in that folder, as if it had never been interrupted")
    add("--recipes", action=_ShowRecipes, help="show the recipes with the results others published for them, and exit")


def run(args: argparse.Namespace) -> int:
    """0; 1 when a loss was not finite; 130 or 143 when a signal stopped it. Raises ValueError or OSError naming the
    key or file at fault."""
    require("segmentation")
    from ..segmentation.config import load_config
    from ..segmentation.training import train

    config = load_config(args.config, args.set)
    if args.out is not None:
        config = config.model_copy(update={"out": args.out})
    # of several processes, on one machine or more, one tells how the run ended
    speaks = os.environ.get("RANK", "0") == "0"
    if speaks and (note := _note(config)):
        print(f"note: {note}", file=sys.stderr)
    try:
        summary = train(config, resume=args.resume)
    except FloatingPointError as error:
        tell_error(f"ema-ops train: {error}")
        return 1
    if summary.signal is not None:
        if speaks:
            print(f"stopped by signal {summary.signal} after step {summary.step}: --resume goes on from there")
        return 128 + summary.signal
    if speaks:
        best = "" if summary.best is None else f", best mIoU {summary.best.mean_iou:.4f} at step {summary.best.step}"
        print(f"{summary.step} steps done{best}: {config.out}")
    return 0


def _note(config: Config) -> str:
    """What is no mistake and yet hardly meant, if anything."""
    momentum, steps = config.optimizer.norm_momentum, config.training.steps
    kept = (1 - momentum) ** steps
    if kept < 0.5:
        return ""
    return (
        f"with optimizer.norm_momentum={momentum:g} the statistics of the norms are still {kept:.0%} those of the "
        f"start after {steps} steps, so validation says little: expected more steps, or a momentum such as 0.1"
    )


class _ShowRecipes(argparse.Action):
    """Prints and exits, as --help does, so that --config may be missing."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            require("segmentation")
        except ValueError as error:
            parser.error(str(error))
        from ..segmentation.config import load_config, recipes

        for name in recipes():
            config = load_config(name)
            print(f"{name}: {config.model.backbone}, {config.data.kind}, {config.training.steps} steps")
            if config.published is not None:
                figures = ", ".join(f"{value} ({what})" for what, value in config.published.miou.items())
                print(f"    mIoU {figures}: {config.published.source}")
                print(f"    {config.published.status}")
        parser.exit()
