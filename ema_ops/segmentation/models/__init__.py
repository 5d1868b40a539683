"""`EMANet`, its backbones and its files."""

from .backbone_weights import load_backbone_weights
from .checkpoints import Checkpoint, export_network, load_network, read_checkpoint, save_network
from .emanet import EMANet
from .receptive_field import receptive_field
from .starting import start_from

__all__ = [
    "Checkpoint",
    "EMANet",
    "export_network",
    "load_backbone_weights",
    "load_network",
    "read_checkpoint",
    "receptive_field",
    "save_network",
    "start_from",
]
