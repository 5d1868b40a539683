"""What each basis attends to: the responsibilities of EM attention as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..functional import em_attention, responsibilities
from ..layers import EMAUnit
from ..segmentation.data.generated.drawing import CLASSES
from ..segmentation.data.pictures import open_picture, upright
from .network import NUM_BASES, STRIDE, DemoNetwork

LONGEST_SIDE = 512
_SIMPLE_SCALE = 12.0


def load_picture(path: str | Path) -> Image.Image:
    """The picture at `path` as RGB, turned upright by its EXIF tag, transparency on white, at most 512 pixels long.

    Raises OSError naming the file when it is missing, damaged or no picture.
    """
    picture = upright(open_picture(path), path)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = _stretched(picture)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


@torch.no_grad()
def maps_of_network(network: DemoNetwork, picture: Image.Image) -> np.ndarray:
    """Responsibilities of the network's EM unit over `picture`, float32 [K, H, W] in 0 to 1 that sum to one over K.

    They are those of the unit's last bases. Raises TypeError when the context layer is no `EMAUnit`.
    """
    unit = network.context
    if not isinstance(unit, EMAUnit):
        raise TypeError(f"context is {type(unit).__name__}: expected EMAUnit")
    network.eval()
    features = unit.conv1(network.features(_tensor(picture) - 0.5))
    _, bases = unit.attention(features, return_bases=True)
    return _maps(features, bases.squeeze(1), unit.attention.scale, picture)


@torch.no_grad()
def maps_of_colours(picture: Image.Image, num_bases: int = NUM_BASES) -> np.ndarray:
    """Responsibilities [K, H, W] without any trained weights: EM attention over colour and position.

    The features of a pixel are its colour and place, centred and scaled to unit spread, with position at half weight,
    and a constant; the first bases are features of pixels spread evenly over the picture.
    """
    small = F.interpolate(_tensor(picture), size=_grid(picture), mode="area")
    height, width = small.shape[-2:]
    rows = torch.linspace(-1, 1, height).view(1, 1, height, 1).expand(1, 1, height, width)
    columns = torch.linspace(-1, 1, width).view(1, 1, 1, width).expand(1, 1, height, width)
    features = torch.cat([small, 0.5 * rows, 0.5 * columns], dim=1)
    spread, mean = torch.std_mean(features[:, :3], dim=(2, 3), keepdim=True, correction=0)
    features[:, :3] = (features[:, :3] - mean) / (spread + 1e-3)
    features = torch.cat([features, torch.full_like(rows, 0.5)], dim=1)
    features = F.normalize(features, dim=1)
    positions = features.flatten(2).transpose(1, 2)
    start = torch.linspace(0, positions.shape[1] - 1, num_bases).round().long()
    bases = positions[:, start].transpose(1, 2).contiguous()
    _, bases = em_attention(positions, bases, num_iters=10, scale=_SIMPLE_SCALE)
    return _maps(features, bases, _SIMPLE_SCALE, picture)


def load_network(path: Path) -> DemoNetwork:
    """The demo's trained network with EM attention from `path`, as `save_network` wrote it.

    Raises ValueError when the file is no such network.
    """
    network = DemoNetwork("EM attention", len(CLASSES))
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # torch.load raises whatever the unpickler or the archive reader does
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is not a network of this demo ({reason}): expected one that the demo wrote"
        ) from error
    return network


def save_network(network: DemoNetwork, path: Path) -> None:
    """Write the weights for `load_network`."""
    torch.save(network.state_dict(), path)


def _maps(features: Tensor, bases: Tensor, scale: float, picture: Image.Image) -> np.ndarray:
    """Responsibilities of `features` [1, C, h, w] and `bases` [1, C, K] at the size of the picture, [K, H, W]."""
    height, width = features.shape[-2:]
    attention = responsibilities(features.flatten(2).transpose(1, 2), bases, scale=scale)
    attention = attention.transpose(1, 2).unflatten(2, (height, width))
    size = (picture.height, picture.width)
    return F.interpolate(attention, size=size, mode="bilinear", align_corners=False)[0].numpy()


def _grid(picture: Image.Image) -> tuple[int, int]:
    return -(-picture.height // STRIDE), -(-picture.width // STRIDE)


def _tensor(picture: Image.Image) -> Tensor:
    """[1, 3, H, W] in 0 to 1."""
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()).float().div_(255).unsqueeze(0)


def _stretched(picture: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits with its own range stretched over 0 to 255."""
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return Image.fromarray((255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8))
