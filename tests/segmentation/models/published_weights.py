"""Weights that are too large to keep, drawn again from key and shape; files with the shapes of weights alone."""

import zlib
from pathlib import Path

import numpy as np
import torch

from ema_ops.interop import convert_state_dict
from ema_ops.segmentation.models import EMANet

VECTORS = Path(__file__).parents[2] / "vectors"


def vectors(name):
    """The arrays of tests/vectors/NAME.npz as tensors, all but names."""
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def official_weights(shapes):
    """The weights behind official_emanet50_s8.npz, float64, from the keys and shapes of the official network."""
    return {key: torch.from_numpy(np.asarray(draw(key, tuple(shape)))) for key, shape in shapes.items()}


def draw(key, shape):
    """The numbers of one of them."""
    numbers = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return 1.0 + 0.1 * np.abs(numbers)
    if key.endswith("mu"):
        return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    if len(shape) == 4:
        return numbers * np.sqrt(2.0 / np.prod(shape[1:]))
    return 1.0 + 0.1 * numbers if key.endswith("weight") else 0.1 * numbers


def shapes_of(target, **options):
    """The state dict of an EMANet in the keys of `target`, ones that take no memory and no room in a file."""
    with torch.device("meta"):
        state = EMANet(head=target, **options).state_dict()
    state = {key: torch.ones((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    return convert_state_dict(state, target=target, scope="network")
