"""The "triton" backend: fused kernels for NVIDIA and AMD devices. Importing this package does not import triton."""

from .backend import BACKEND

__all__ = ["BACKEND"]
