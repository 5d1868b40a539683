"""What the extras of the package bring, for commands that need one."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

_SEGMENTATION = {
    "PIL": "pillow",
    "filelock": "filelock",
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


def require(extra: str, only: Collection[str] | None = None) -> None:
    """Raise ValueError, naming what is missing, unless all of `extra` is installed; `only`: these modules of it."""
    packages = {module: EXTRAS[extra][module] for module in (EXTRAS[extra] if only is None else only)}
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}: expected `pip install 'ema_ops[{extra}]'`")
