"""A network judged on a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import distributed as dist
from torch import nn

from ..data import SegmentationDataset, evaluation_samples
from .batches import equal_sizes, to_device
from .inference import Inference, evaluation_mode
from .memory import naming_pictures
from .metric import ConfusionCounter, Scores


class Stopped(Exception):
    """An evaluation ended on request, without a result."""


def evaluate(
    network: nn.Module,
    dataset: SegmentationDataset,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    mode: str = "whole",
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    batch: int = 1,
    workers: int = 0,
    precision: str = "float32",
    channels_last: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Scores:
    """The scores of `network` on `dataset`. Ranks of `torch.distributed` share the pictures and get the same scores.

    Every picture is judged at its own size and counted once. Up to rounding the result depends neither on `batch` (only
    pictures of one size go together) nor on `workers`, nor on the number of ranks.

    Args:
        network: normalised images [B, 3, H, W] to logits [B, C, H, W]; its training mode is restored afterwards.
        dataset: pictures and their masks.
        scales, flip, mode, window, stride, precision, channels_last: as in `Inference`.
        batch: most pictures at a time on a device.
        workers: processes that decode pictures; 0 for none.
        device: where to judge, the network is moved there; None for where it is.
        progress: called with the number of pictures of every batch of this rank.
        stop: asked before every batch of this rank; it judges none from the first yes on.

    Raises:
        Stopped: `stop` said yes in some rank; in all of them.
        ValueError, TypeError: an option does not fit, network and data set have different numbers of classes, or the
            network has logits that are NaN.
        OSError: a picture cannot be read, or does not fit into the memory of the device.
    """
    inference = Inference(scales, flip, mode, window, stride, precision, channels_last)
    if batch < 1:
        raise ValueError(f"batch is {batch}: expected at least 1")
    rank, world_size = _place()
    device = _device(network) if device is None else torch.device(device)
    network.to(device)
    counter = ConfusionCounter(dataset.num_classes, device)
    samples = evaluation_samples(dataset, rank=rank, world_size=world_size, workers=workers)
    with evaluation_mode(network):
        for group in equal_sizes(samples, batch, lambda sample: tuple(sample.image.shape)):
            if stop is not None and stop():
                break
            with naming_pictures([dataset.image_path(sample.name) for sample in group]):
                images = to_device([sample.image for sample in group], device)
                masks = to_device([sample.mask.to(torch.uint8) for sample in group], device)
                counter.update(inference.classes(network, images, dataset.num_classes), masks)
            if progress is not None:
                progress(len(group))
    if stop is not None and _any(stop(), device):
        raise Stopped
    return counter.compute()


def _any(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in some rank; all get the same answer."""
    total = torch.tensor(int(flag), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return bool(total.item())


def _place() -> tuple[int, int]:
    """Rank and number of ranks; (0, 1) without `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _device(network: nn.Module) -> torch.device:
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")
