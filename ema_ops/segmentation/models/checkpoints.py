"""Networks to files and back, also to and from files of other implementations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...interop import convert_state_dict
from .emanet import EMANet
from .files import load_fitting, read_file, tensors_in
from .foreign import (
    WRAPPERS,
    Palette,
    check_exportable,
    checked_palette,
    meta_classes,
    meta_palette,
    read_foreign,
)

FORMAT = "ema_ops.segmentation"
VERSION = 1
_CONTENT: dict[str, type | tuple[type, ...]] = {"model": Mapping, "classes": (list, tuple), "network": Mapping}


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        source: "ema_ops", "official" or "mmsegmentation".
        state: the weights, with our keys.
        model: arguments of `EMANet`; of another implementation's file as far as its weights tell them, the rest as
            published.
        classes: names of the classes, None where the file has none.
        palette: their colours, None where the file has none.
        content: everything in the file.
    """

    source: str
    state: dict[str, Tensor]
    model: dict[str, Any]
    classes: tuple[str, ...] | None
    palette: Palette | None
    content: dict[str, Any]


def save_network(path: str | os.PathLike[str], network: EMANet, *, classes: Sequence[str], **more: Any) -> None:
    """Write `network` to `path`, readable with `torch.load(weights_only=True)`.

    The file is written in place; who needs the old one when the disk is full writes beside it and renames.

    Args:
        path: the file.
        network: an `EMANet`, not wrapped in anything.
        classes: their names, `num_classes` of them.
        **more: other parts of the file, of tensors and plain values: "data" (how its data was opened), "training",
            "palette" (red, green and blue, 0 to 255, of each class).

    Raises:
        ValueError, TypeError: an argument does not fit.
        OSError, RuntimeError: the file cannot be written.
    """
    if not isinstance(network, EMANet):
        raise TypeError(
            f"network is {type(network).__name__}: expected an EMANet, without DDP or torch.compile around it"
        )
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes is {classes!r}: expected a sequence of names")
    if len(classes) != network.options["num_classes"]:
        raise ValueError(f"classes has {len(classes)} names: expected num_classes = {network.options['num_classes']}")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(network.options),
        "classes": list(classes),
        "network": dict(network.state_dict()),
    }
    if taken := content.keys() & more.keys():
        raise ValueError(f"{', '.join(sorted(taken))} cannot be given: the network tells them")
    _check_plain(more)
    torch.save({**content, **more}, path)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A file of `save_network`, of the official implementation, or of mmsegmentation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of them; the message names the file and what was expected.
    """
    content = read_file(path)
    if "format" not in content:
        source, state, model = read_foreign(content, path)
        count = model["num_classes"]
        return Checkpoint(source, state, model, meta_classes(content, count), meta_palette(content, count), content)
    if content["format"] != FORMAT or content.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {content['format']!r}, version {content.get('version')!r}: "
            f"expected {FORMAT!r}, version {VERSION}"
        )
    for name, kind in _CONTENT.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{path} is damaged: {name!r} is {type(content.get(name)).__name__}")
    state = tensors_in(content, ("network",), path)
    classes = tuple(content["classes"])
    palette = checked_palette(content.get("palette"), len(classes))
    return Checkpoint("ema_ops", state, dict(content["model"]), classes, palette, content)


def load_network(path: str | os.PathLike[str], **overrides: Any) -> tuple[EMANet, Checkpoint]:
    """The network in a file, on the CPU and in evaluation mode, and what else the file held.

    Args:
        path: as in `read_checkpoint`.
        **overrides: arguments of `EMANet` that win over those of the file, such as `output_stride` or `backend`.

    Raises:
        FileNotFoundError, ValueError: as in `read_checkpoint`, or the weights do not fit the options.
    """
    checkpoint = read_checkpoint(path)
    try:
        network = EMANet(**{**checkpoint.model, **overrides})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    load_fitting(network, checkpoint.state, path)
    return network.eval(), checkpoint


def export_network(
    network: EMANet,
    path: str | os.PathLike[str],
    target: str = "official",
    *,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write `network` to `path` as a checkpoint of another implementation, "official" or "mmsegmentation".

    Their defaults for T, eps and the running bases are not in such a file. Only mmsegmentation's has names and colours
    of the classes; without `classes` and `palette` it has none either.

    Raises:
        ValueError: an unknown target, or one that would compute something else than `network`; not as many classes or
            colours as the network has.
        OSError, RuntimeError: the file cannot be written.
    """
    check_exportable(network, target)
    state = convert_state_dict(network.state_dict(), target=target, scope="network")
    beside: dict[str, Any] = {"step": 0}
    if target == "mmsegmentation":
        dataset: dict[str, Any] = {}
        if classes is not None:
            dataset["classes"] = [str(name) for name in classes]
        if palette is not None:
            dataset["palette"] = [[int(value) for value in colour] for colour in palette]
        for name, values in dataset.items():
            if len(values) != network.options["num_classes"]:
                expected = network.options["num_classes"]
                raise ValueError(f"{name} has {len(values)} entries: expected num_classes = {expected}")
        beside = {"meta": {"dataset_meta": dataset} if dataset else {}}
    torch.save({WRAPPERS[target]: state, **beside}, path)


def _check_plain(value: Any, where: str = "") -> None:
    """Only what `torch.load(weights_only=True)` reads again."""
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return
    if type(value) is dict:
        for key, part in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where or 'more'} has the key {key!r}: expected a name or a whole number")
            _check_plain(part, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple):
        for index, part in enumerate(value):
            _check_plain(part, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is {type(value).__name__}: expected tensors and plain values only")
