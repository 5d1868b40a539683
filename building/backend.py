"""The build backend: setuptools, which with EMA_OPS_BUILD_CUDA=pip also asks for nvcc from pip's packages."""

from __future__ import annotations

import os
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from .toolkit import PIP_PACKAGES

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What setuptools asks for, and nvcc if it is wanted from pip."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _toolkit()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for an editable installation."""
    return build_meta.get_requires_for_build_editable(config_settings) + _toolkit()


def _toolkit() -> list[str]:
    return list(PIP_PACKAGES) if os.environ.get("EMA_OPS_BUILD_CUDA") == "pip" else []
