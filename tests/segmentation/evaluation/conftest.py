"""A small network with random weights, and pictures and masks of several sizes on disk."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.data import open_dataset
from ema_ops.segmentation.models import EMANet, save_network

CLASSES = ("background", "disc", "stripe")
SIZES = ((24, 31), (24, 31), (17, 40), (24, 31), (33, 20), (24, 31), (17, 40))


def blobs(generator, height, width):
    """A smooth random picture uint8 [H, W, 3]."""
    coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def network():
    """An EMANet whose classes all win somewhere, and whose unit weighs enough to tell iterations apart."""
    torch.manual_seed(3)
    network = EMANet(len(CLASSES), "small", 4, num_bases=8, channels=16, scale=10.0)
    torch.nn.init.constant_(network.unit.norm.weight, 10)
    torch.nn.init.normal_(network.classifier.weight)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.classifier.bias.sub_(network.eval()(images).mean(dim=(0, 2, 3)))
    return network


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory):
    """The file of that network."""
    path = tmp_path_factory.mktemp("checkpoint") / "network.pt"
    save_network(path, network, classes=CLASSES)
    return path


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Seven pictures and masks in the layout of the kind "folder"."""
    generator = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("dataset")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(blobs(generator, height, width)).save(root / "images" / f"{number}.png")
        mask = generator.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (height, width))
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def dataset(root):
    """These seven, opened."""
    return open_dataset("folder", root, "all", classes=list(CLASSES))


@pytest.fixture
def fail_at(monkeypatch):
    """Makes forward number `count` of every EMANet from now on raise `error`."""

    def fail(count, error):
        calls, forward = [0], EMANet.forward

        def counted(*args, **options):
            calls[0] += 1
            if calls[0] == count:
                raise error
            return forward(*args, **options)

        monkeypatch.setattr(EMANet, "forward", counted)

    return fail


@pytest.fixture
def two_processes():
    """Runs `ema-ops` with the same words in two processes; status, stdout and stderr of each."""

    def run(*words):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        # what torchrun tells its processes
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "ema_ops", *words],
                env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
                cwd=Path(__file__).parents[3],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        outputs = [process.communicate(timeout=240) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]

    return run


@pytest.fixture
def compiled(monkeypatch):
    """Lets `torch.compile` trace and generate no code; the sizes that it traced."""
    sizes = []

    def backend(graph, inputs):
        sizes.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.dim() == 4])
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield sizes
    torch.compiler.reset()
