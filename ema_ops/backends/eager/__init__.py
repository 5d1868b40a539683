"""The "torch" backend: the loop and its gradient in plain PyTorch, on any device and dtype.

No graph is recorded inside an operator, so the gradient is written out (docs/mathematics.md). 16-bit features are
computed in float32.
"""

from .backend import BACKEND, EagerBackend

__all__ = ["BACKEND", "EagerBackend"]
