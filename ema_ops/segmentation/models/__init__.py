"""`EMANet`, its backbones and its files."""

from .emanet import EMANet

__all__ = ["EMANet"]
