"""Pictures of a network at work, for TensorBoard."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...functional import responsibilities
from ...layers import EMAUnit
from ..data import IGNORE, SegmentationDataset, normalize
from ..evaluation.inference import evaluation_mode

_BASES = 4
"""Maps of so many bases stand beside a picture."""


@torch.no_grad()
def judged_pictures(network: nn.Module, dataset: SegmentationDataset, count: int) -> dict[str, np.ndarray]:
    """The first `count` pictures of `dataset`, uint8 [H, n * W, 3] by name.

    From left to right: the picture, its mask and the prediction in the colours of the data set (white: ignored), and
    the responsibilities of the bases with the largest share, if the network has an `EMAUnit`, black 0 to white 1.
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
    """Logits [1, C, H, W] of one image [1, 3, H, W], and maps [H, W] of the responsibilities of some bases."""
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
    largest = shares.mean((0, 1)).topk(min(_BASES, shares.shape[-1])).indices
    maps = shares.mean(0)[:, largest].T.unflatten(1, x.shape[2:])
    resized = torch.nn.functional.interpolate(maps[None], size=images.shape[2:], mode="bilinear", align_corners=False)
    return logits, list(resized[0].clamp(0, 1))
