"""ImageNet weights of a backbone alone, in the layouts in which they are published."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from .emanet import EMANet
from .files import load_fitting, read_file, tensors_in
from .resnet import ResNet
from .timm_backbone import TimmBackbone

# the deep stem: three convolutions at the top, or all but the last norm inside "conv1" (the official code, timm)
_FLAT_STEM = {"conv1.": "stem.0.", "bn1.": "stem.1.", "conv2.": "stem.3.", "bn2.": "stem.4.", "conv3.": "stem.6."}
_FLAT_STEM |= {"bn3.": "stem.7."}
_NESTED_STEM = {"conv1.": "stem.", "bn1.": "stem.7."}


def load_backbone_weights(network: EMANet, path: str | os.PathLike[str]) -> None:
    """Load the weights in `path` into the backbone of `network`.

    A ResNet's stem may be named conv1, bn1 .. conv3, bn3 or conv1.0 .. conv1.6, bn1 (timm's resnet50c and resnet50s
    are such) or stem.0 .. stem.7 (mmsegmentation). The classifier `fc` is left out; everything else must fit.
    Weights of a timm model are as timm publishes them, "*.safetensors" or not.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not fit; then nothing has been loaded.
    """
    state = tensors_in(read_file(path), ("state_dict", "model"), path)
    if isinstance(network.backbone, TimmBackbone):
        network.backbone.load(state, path)
        return
    if isinstance(network.backbone, ResNet):
        state = _with_our_stem(state, path)
    load_fitting(network.backbone, state, path)


def _with_our_stem(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    renamed: Mapping[str, str] = {}
    if "conv1.0.weight" in state:
        renamed = _NESTED_STEM
    elif "conv3.weight" in state:
        renamed = _FLAT_STEM
    elif "conv1.weight" in state:
        shape = list(state["conv1.weight"].shape)
        raise ValueError(f"{path} has a stem of one convolution {shape}: expected a deep stem, three 3x3 convolutions")
    converted = {}
    for key, value in state.items():
        if key.startswith("fc."):
            continue
        prefix = next((old for old in renamed if key.startswith(old)), "")
        converted[renamed.get(prefix, "") + key.removeprefix(prefix)] = value
    return converted
