"""Weights of the official implementation and of mmsegmentation in our network: the same numbers come out.

What they computed lies in tests/vectors, made by their own code. The official network's weights are too large to
keep; they are drawn again from key and shape.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ema_ops import PRESETS, EMAttention
from ema_ops.interop import convert_state_dict
from ema_ops.segmentation.models import EMANet, read_checkpoint
from ema_ops.segmentation.models.blocks import ConvNormReLU

from ..environment import REPOSITORY

VECTORS = REPOSITORY / "tests" / "vectors"


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference, relative to the largest number compared, and what is allowed."""

    what: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; a NaN is not."""
        return self.error <= self.limit


def checks() -> list[Check]:
    """Every comparison with other implementations."""
    return [*_official_network(), *_mmsegmentation_head(), *_mmsegmentation_module()]


def vectors(name: str) -> dict[str, Tensor]:
    """The arrays of tests/vectors/NAME.npz as tensors, all but names."""
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def official_weights(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The weights behind `official_emanet50_s8.npz`, float64, from the keys and shapes of the official network."""
    return {key: torch.from_numpy(np.asarray(_draw(key, tuple(shape)))) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return 1.0 + 0.1 * np.abs(drawn)
    if key.endswith("mu"):
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    if len(shape) == 4:
        return drawn * np.sqrt(2.0 / np.prod(shape[1:]))
    return 1.0 + 0.1 * drawn if key.endswith("weight") else 0.1 * drawn


def _official_network() -> list[Check]:
    numbers = vectors("official_emanet50_s8")
    network = EMANet(backbone="resnet50", output_stride=8, **PRESETS["official"]).double().eval()
    theirs = convert_state_dict(network.state_dict(), target="official", scope="network")
    weights = official_weights({key: value.shape for key, value in theirs.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pth"
        torch.save({"net": weights, "step": 30000}, path)
        network.load_state_dict(read_checkpoint(path).state)
    image = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, 97, 97)))
    with torch.no_grad():
        logits = network(image)
    back = convert_state_dict(network.state_dict(), target="official", scope="network")
    differing = sum(not torch.equal(back[key], weights[key]) for key in weights) + len(back.keys() ^ weights.keys())
    return [
        # the vector is stored in float32
        Check("logits of the official EMANet, ResNet-50, output stride 8", _error(logits, numbers["logits"]), 1e-6),
        Check(f"of its {len(weights)} tensors, those that differ after the way there and back", differing, 0),
    ]


def _mmsegmentation_head() -> list[Check]:
    numbers = vectors("mmseg_emahead")
    theirs = {f"decode_head.{k.removeprefix('state.')}": v for k, v in numbers.items() if k.startswith("state.")}
    state = convert_state_dict(theirs, source="mmsegmentation", scope="network")
    in_channels, (_, channels, num_bases) = numbers["x"].shape[1], state["unit.attention.bases"].shape
    num_classes, last_channels = state["classifier.weight"].shape[:2]
    network = EMANet(
        num_classes,
        "small",
        num_bases=num_bases,
        head="mmsegmentation",
        channels=channels,
        bottleneck_channels=last_channels,
        auxiliary=False,
        **PRESETS["mmsegmentation"],
    )
    # the vector has features of another width than the small backbone
    network.reduce = ConvNormReLU(in_channels, channels, norm_layer=nn.BatchNorm2d)
    network.concat = ConvNormReLU(in_channels + last_channels, last_channels, norm_layer=nn.BatchNorm2d)
    network.double().eval().load_state_dict({**network.state_dict(), **state})
    with torch.no_grad():
        logits = network.classify(numbers["x"])
    return [Check("logits of mmsegmentation's EMAHead", _error(logits, numbers["eval.logits"]), 1e-12)]


def _mmsegmentation_module() -> list[Check]:
    numbers = vectors("mmseg_emahead")
    channels, num_bases = numbers["state.ema_module.bases"].shape[1:]
    layer = EMAttention(channels, num_bases, **PRESETS["mmsegmentation"]).double().eval()
    layer.bases.copy_(numbers["state.ema_module.bases"])
    y = layer(numbers["module.feats"])
    found = [Check("features of mmsegmentation's module", _error(y, numbers["module.eval"]), 1e-12)]
    layer.train()
    for step in (1, 2):
        y = layer(step * numbers["module.feats"])
        found += [
            Check(f"the same in training, step {step}", _error(y, numbers[f"module.train{step}"]), 1e-12),
            Check(f"running bases after step {step}", _error(layer.bases, numbers[f"module.bases_after{step}"]), 1e-12),
        ]
    return found


def _error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
