"""What a step costs: time and peak memory of the whole network with each context module, at the paper's crop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ema_ops.segmentation.models import EMANet

from ..memory import extra_memory
from ..workload import Workload
from .contexts import CONTEXTS

MODES = ("training step", "evaluation")
NUM_CLASSES = 21


@dataclass(frozen=True)
class Setting:
    """The network and its input; `backbone`, `batch`, and the edge of the square picture in pixels."""

    backbone: str = "resnet50"
    batch: int = 2
    edge: int = 513
    repeats: int = 3


@dataclass(frozen=True)
class Cost:
    """One measured row: median milliseconds, and MiB at the peak of a step beyond what lies there between steps.

    That is the network, the batch and, in training, the gradients and the state of the optimizer.
    """

    context: str
    mode: str
    milliseconds: float
    peak_mib: float


def costs(setting: Setting, device: torch.device, progress: Callable[[str], object] = lambda _: None) -> list[Cost]:
    """Every context in both modes. The contexts take turns, so that what else slows the machine meets all.

    `progress` is called before every run with what runs.
    """
    rows = []
    for mode in MODES:
        steps: dict[str, Callable[[], Tensor]] = {}
        peaks: dict[str, int] = {}
        times: dict[str, list[float]] = {}
        for name in CONTEXTS:
            progress(f"{mode}: {name}, memory")
            steps[name] = _step(name, mode, setting, device)
            # the first run makes the optimizer state and fills caches
            steps[name]()
            peaks[name] = extra_memory(_workload(steps[name]), device)
            times[name] = []
        for _ in range(setting.repeats):
            for name, step in steps.items():
                progress(f"{mode}: {name}, time")
                times[name].append(_milliseconds(step, device))
        rows += [Cost(name, mode, statistics.median(times[name]), peaks[name] / 2**20) for name in steps]
    return rows


def _step(context: str, mode: str, setting: Setting, device: torch.device) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    network = EMANet(NUM_CLASSES, setting.backbone)
    network.unit = CONTEXTS[context](network.options["channels"])
    network.to(device)
    images = torch.randn(setting.batch, 3, setting.edge, setting.edge, device=device)
    masks = torch.randint(NUM_CLASSES, (setting.batch, setting.edge, setting.edge), device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def train() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(images), masks)
        loss.backward()
        optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate() -> Tensor:
        return network(images)

    network.train(mode == MODES[0])
    return train if mode == MODES[0] else evaluate


def _workload(step: Callable[[], Tensor]) -> Workload:
    return Workload(lambda: None, lambda _, keep=False: (step(), None))


def _milliseconds(step: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)
