"""Checkpoints of the official implementation and of mmsegmentation: their keys, and the options behind them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...interop import convert_state_dict
from ...layers import PRESETS
from .emanet import HEADS, EMANet
from .files import load_fitting, names, tensors_in
from .resnet import DEPTHS

Palette = tuple[tuple[int, int, int], ...]
"""Red, green and blue of each class, 0 to 255."""

WRAPPERS = {"official": "net", "mmsegmentation": "state_dict"}
"""Where a whole checkpoint keeps the weights."""

_PREFIXES = {"official": ("extractor.", "fc0.", "emau."), "mmsegmentation": ("decode_head.", "backbone.")}


def read_foreign(
    content: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Source, state with our keys and options of `EMANet`.

    What the weights cannot tell is as published: the dilations, the output stride 8, the interpolation, T = 3.

    Raises:
        ValueError: neither implementation's EMANet, or one that is not whole.
    """
    state = tensors_in(content, tuple(WRAPPERS.values()), path)
    source = _source(state, path)
    try:
        state = convert_state_dict(state, source=source, scope="network")
    except ValueError as error:
        raise ValueError(f"{path} is not an EMANet of the {source} implementation: {error}") from error
    options = _options(state, source, path)
    try:
        with torch.device("meta"):
            network = EMANet(**options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    load_fitting(network, {key: value.to("meta") for key, value in state.items()}, path)
    return source, state, options


def meta_classes(content: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Names of the classes in a file of mmsegmentation; None where there are not as many."""
    classes = _meta(content, "classes")
    if not isinstance(classes, (list, tuple)) or len(classes) != num_classes:
        return None
    return tuple(map(str, classes))


def meta_palette(content: Mapping[str, Any], num_classes: int) -> Palette | None:
    """Colours of the classes in a file of mmsegmentation; None where there are not as many, or it was other numbers."""
    return checked_palette(_meta(content, "palette"), num_classes)


def checked_palette(palette: Any, num_classes: int) -> Palette | None:
    """`palette` if it is `num_classes` colours, each red, green and blue from 0 to 255."""
    if not isinstance(palette, (list, tuple)) or len(palette) != num_classes:
        return None
    for colour in palette:
        if not isinstance(colour, (list, tuple)) or len(colour) != 3:
            return None
        if not all(type(value) is int and 0 <= value <= 255 for value in colour):
            return None
    return tuple((red, green, blue) for red, green, blue in palette)


def check_exportable(network: EMANet, target: str) -> None:
    """Whether the implementation `target` would compute what `network` does.

    Raises:
        ValueError: an option that it does not know.
    """
    if target not in HEADS:
        raise ValueError(f"target is {target!r}: expected one of {', '.join(map(repr, HEADS))}")
    theirs = HEADS[target]
    options = {"scale": 1.0, "num_heads": 1, **network.options}
    expected: dict[str, Any] = {
        "align_corners": theirs.align_corners,
        "stem_channels": theirs.stem_channels,
        "scale": 1.0,
        "num_heads": 1,
    }
    if target == "official":
        # mmsegmentation reads these from its configuration
        expected |= {"head": "official", "auxiliary": False, "multi_grid": list(theirs.multi_grid)}
    if options["backbone"] not in DEPTHS:
        raise ValueError(f"backbone is {options['backbone']!r}: {target} has {', '.join(map(repr, DEPTHS))}")
    for name, value in expected.items():
        if options[name] != value:
            raise ValueError(f"{name} is {options[name]!r}: {target} has {value!r}")


def _source(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> str:
    for source, prefixes in _PREFIXES.items():
        if all(any(key.startswith(prefix) for key in state) for prefix in prefixes):
            return source
    known = [f"{source} ({', '.join(f'{prefix}*' for prefix in prefixes)})" for source, prefixes in _PREFIXES.items()]
    raise ValueError(
        f"{path} is of another network, with {names(list(state))}: "
        f"expected a file of save_network, or the EMANet of {' or '.join(known)}"
    )


def _options(state: Mapping[str, Tensor], source: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    shapes = {
        key: _shape(state, key, rank, path)
        for key, rank in (
            ("classifier.weight", 4),
            ("reduce.conv.weight", 4),
            ("unit.attention.bases", 3),
            ("backbone.stem.6.weight", 4),
        )
    }
    num_classes, bottleneck_channels = shapes["classifier.weight"][:2]
    as_published = HEADS[source]
    return {
        "num_classes": num_classes,
        "backbone": _depth(state, path),
        "num_bases": shapes["unit.attention.bases"][2],
        "head": "mmsegmentation" if "concat.conv.weight" in state else "official",
        "channels": shapes["reduce.conv.weight"][0],
        "bottleneck_channels": bottleneck_channels,
        "auxiliary": "auxiliary.conv.weight" in state,
        "align_corners": as_published.align_corners,
        "multi_grid": list(as_published.multi_grid),
        "stem_channels": shapes["backbone.stem.6.weight"][0],
        **PRESETS[source],
    }


def _shape(state: Mapping[str, Tensor], key: str, rank: int, path: str | os.PathLike[str]) -> list[int]:
    if key not in state:
        raise ValueError(f"{path} is not a whole EMANet: {key} (our name for it) is missing")
    shape = list(state[key].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{path}: {key} (our name for it) has shape {shape}, expected {rank} sizes of at least 1")
    return shape


def _depth(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> str:
    counts = tuple(
        len({key.split(".")[2] for key in state if key.startswith(f"backbone.layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    for name, depths in DEPTHS.items():
        if counts == depths:
            return name
    known = ", ".join(f"{list(depths)} ({name})" for name, depths in DEPTHS.items())
    raise ValueError(f"{path} has {list(counts)} blocks in its four stages: expected {known}")


def _meta(content: Mapping[str, Any], name: str) -> Any:
    """What mmsegmentation keeps as meta.dataset_meta.NAME, and as meta.NAME in capitals before its version 1."""
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta")
    return dataset.get(name) if isinstance(dataset, Mapping) else meta.get(name.upper())
