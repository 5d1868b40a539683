"""The network of a run, before its first step."""

from __future__ import annotations

import sys

import torch

from ..config import Config
from ..models import EMANet
from ..models.backbone_weights import load_backbone_weights
from ..models.starting import start_from
from .distributed import World


def new_network(config: Config, num_classes: int, world: World, *, first: bool) -> EMANet:
    """The network of `config` on the device, with random weights.

    With `first`, it has those of the files that the run starts from; what does not fit and may be left out is told on
    stderr. Raises ValueError, TypeError or OSError when an option or a file does not fit.
    """
    torch.manual_seed(config.training.seed)
    model = config.model
    network = EMANet(
        num_classes,
        norm_layer=world.norm_layer(synchronised=config.training.sync_norm),
        average_group=world.group,
        **model.arguments,
    )
    if first and model.backbone_weights is not None:
        load_backbone_weights(network, model.backbone_weights)
    if first and model.weights is not None:
        left_out = start_from(network, model.weights, skip_unfitting=model.skip_unfitting)
        if left_out and world.is_main:
            print(f"note: not loaded from {model.weights}; {'; '.join(left_out)}", file=sys.stderr)
    if config.training.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(world.device)
