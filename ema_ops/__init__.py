"""Expectation-Maximization Attention (EMANet, ICCV 2019) as one fused operator."""

from .backends import BackendStatus, available_backends
from .functional import em_attention, em_reconstruct, em_step, responsibilities

__version__ = "0.1.0"

__all__ = [
    "BackendStatus",
    "available_backends",
    "em_attention",
    "em_reconstruct",
    "em_step",
    "responsibilities",
]
