"""Pictures of a network at work, for TensorBoard."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...functional import responsibilities
from ...layers import EMAUnit
from ..data import IGNORE, SegmentationDataset, normalize
from ..evaluation.inference import evaluation_mode

_BASES = 4
"""Maps of so many bases stand beside a picture."""


@torch.no_grad()
def judged_pictures(network: nn.Module, dataset: SegmentationDataset, count: int) -> dict[str, np.ndarray]:
    """The first `count` pictures of `dataset`, uint8 [H, n * W, 3] by name.

    From left to right: the picture, its mask and the prediction in the colours of the data set (white: ignored), and,
    if the network has an `EMAUnit`, the responsibilities of the bases that vary most over the picture, each stretched
    from its lowest (black) to its highest (white).
    """
    device = next(network.parameters()).device
    dtype = next(network.parameters()).dtype
    pictures = {}
    with evaluation_mode(network):
        for index in range(min(count, len(dataset))):
            image, mask = dataset[index]
            logits, maps = _judged(network, normalize(image).to(device, dtype)[None])
            prediction = logits.argmax(1)[0].cpu().numpy()
            tiles = [
                (image * 255).round().byte().permute(1, 2, 0).numpy(),
                np.where((mask == IGNORE)[..., None], np.uint8(255), dataset.palette[mask.numpy()]),
                dataset.palette[prediction],
                *((m.cpu().numpy() * 255).round().astype(np.uint8)[..., None].repeat(3, axis=2) for m in maps),
            ]
            pictures[dataset.names[index]] = np.concatenate(tiles, axis=1)
    return pictures


def _judged(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [1, C, H, W] of one image [1, 3, H, W], and maps [H, W] of some bases, 0 to 1."""
    unit = getattr(network, "unit", None)
    if not isinstance(unit, EMAUnit):
        return network(images), []
    seen: list[Tensor] = []
    with unit.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        logits = network(images)
    x = seen[0]
    _, bases = unit.attention(x, None, None, True)
    heads = x.unflatten(1, (bases.shape[1], -1)).flatten(3).transpose(2, 3).contiguous()
    shares = responsibilities(heads, bases.to(heads.dtype), scale=unit.attention.scale)[0].float()
    chosen = shares.std(1).mean(0).topk(min(_BASES, shares.shape[-1])).indices
    maps = shares.mean(0)[:, chosen].T
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    maps = ((maps - low) / (high - low).clamp_min(1e-12)).unflatten(1, x.shape[2:])
    return logits, list(F.interpolate(maps[None], size=images.shape[2:], mode="bilinear", align_corners=False)[0])
