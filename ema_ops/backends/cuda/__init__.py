"""The "cuda" backend: the compiled core `ema_ops._C`."""

from .backend import BACKEND, CudaBackend

__all__ = ["BACKEND", "CudaBackend"]
