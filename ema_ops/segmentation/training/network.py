"""The network of a run, before its first step."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from ..config import Config
from ..models import EMANet
from ..models.backbone_weights import load_backbone_weights
from ..models.starting import start_from
from .distributed import World


def new_network(config: Config, classes: Sequence[str], world: World, *, first: bool) -> EMANet:
    """The network of `config` for `classes` on the device, with random weights.

    With `first`, it has those of the files that the run starts from; what is left out of them is told on stderr.
    Raises ValueError, TypeError or OSError when an option or a file does not fit.
    """
    torch.manual_seed(config.training.seed)
    model = config.model
    network = EMANet(
        len(classes),
        norm_layer=world.norm_layer(synchronised=config.training.sync_norm),
        average_group=world.group,
        **model.arguments,
    )
    if first and model.backbone_weights is not None:
        try:
            load_backbone_weights(network, model.backbone_weights)
        except ValueError as error:
            raise ValueError(f"{error}; a file of a whole network is for model.weights") from None
    if first and model.weights is not None:
        notes = start_from(network, model.weights, skip_unfitting=model.skip_unfitting, classes=classes)
        for note in notes if world.is_main else ():
            print(f"note: {note}", file=sys.stderr)
    if config.training.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(world.device)
