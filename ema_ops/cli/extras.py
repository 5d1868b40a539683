"""What the extras of the package bring, for commands that need one."""

from __future__ import annotations

import importlib.util

_SEGMENTATION = {
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "pydantic": "pydantic",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "torchmetrics": "torchmetrics",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
EXTRAS = {
    "bench": {"matplotlib": "matplotlib", "tqdm": "tqdm"},
    "segmentation": _SEGMENTATION,
    "video": {**_SEGMENTATION, "av": "av"},
    "demo": {**_SEGMENTATION, "jinja2": "jinja2", "skimage": "scikit-image", "sklearn": "scikit-learn"},
}
"""By extra: names to import, and of the packages that have them."""


def require(extra: str) -> None:
    """Raise ValueError, naming what is missing, unless all of `extra` is installed."""
    missing = [package for module, package in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}: expected `pip install 'ema_ops[{extra}]'`")
