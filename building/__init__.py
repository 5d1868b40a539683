"""How the compiled core `ema_ops._C` is built: used by setup.py and by the build backend, never installed.

Needs setuptools, pybind11 and ninja, and for the core itself nvcc and a C++ compiler; it knows no torch.
"""
