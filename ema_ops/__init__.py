"""Expectation-Maximization Attention (EMANet, ICCV 2019) as one fused operator."""

from . import interop, reference
from .backends import BackendStatus, available_backends
from .functional import em_attention, em_reconstruct, em_step, responsibilities
from .layers import PRESETS, EMAttention, EMAUnit

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "BackendStatus",
    "EMAUnit",
    "EMAttention",
    "available_backends",
    "em_attention",
    "em_reconstruct",
    "em_step",
    "interop",
    "reference",
    "responsibilities",
]
