"""A small task, configs for it, and runs in processes of their own."""

import csv
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from ema_ops.segmentation.config import load_config
from ema_ops.segmentation.training import train
from ema_ops.segmentation.training.logging import Log

CLASSES = ("background", "red", "blue")
HEIGHT, WIDTH = 24, 32

# children are forked from a process that has imported everything and done nothing
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ema_ops.segmentation.training", "torch.utils.tensorboard", "torch._dynamo"])


def write_data(root: Path) -> Path:
    """Noise with a red and a blue rectangle: 11 pictures for training, 3 for validation, ignored left columns."""
    rng = np.random.default_rng(5)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    names = [f"picture{number}" for number in range(14)]
    for name in names:
        image = rng.integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for label, channel in ((1, 0), (2, 2)):
            top, left = rng.integers(0, HEIGHT - 10), rng.integers(0, WIDTH - 12)
            image[top : top + 10, left : left + 12] = 0
            image[top : top + 10, left : left + 12, channel] = 220
            mask[top : top + 10, left : left + 12] = label
        mask[:, :2] = 255
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "train.txt").write_text("\n".join(names[:11]))
    (root / "val.txt").write_text("\n".join(names[11:]))
    return root


def write_config(path: Path, data: Path, out: Path) -> Path:
    """A YAML file with a config of a run of 12 short steps."""
    content = {
        "out": str(out),
        "model": {"backbone": "small", "output_stride": 4, "num_bases": 4, "num_iters": 2, "channels": 16},
        "data": {
            "kind": "folder",
            "root": str(data),
            "options": {"classes": list(CLASSES)},
            "crop": [HEIGHT, WIDTH],
            "scales": [0.75, 1.5],
            "workers": 0,
        },
        "optimizer": {"lr": 0.05, "norm_momentum": 0.1, "schedule_every": 1},
        "training": {"steps": 12, "batch": 4, "validate_every": 5, "save_every": 3, "log_every": 1, "device": "cpu"},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def make_config(data: Path, out: Path, *sets: str):
    """That config with changes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return load_config(write_config(out.with_suffix(".yaml"), data, out), sets)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a run wrote, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[str]:
    """The loss of every step, digit for digit; every step is there once."""
    steps = rows(out / "log.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, len(steps) + 1))
    return [row["loss"] for row in steps]


def start(target, *args):
    """`target(*args)` in a process of its own."""
    process = CONTEXT.Process(target=_quietly, args=(target, *args))
    process.start()
    return process


def finish(process, timeout=60) -> int:
    """The exit status of `process`."""
    process.join(timeout)
    hangs = process.exitcode is None
    if hangs:
        # pytest would wait for it at its own end
        process.kill()
        process.join()
    assert not hangs, "the process hung"
    return process.exitcode


def _quietly(target, *args):
    # what data loading starts is forked, as in a process that a user starts
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    target(*args)


def run_train(config, resume=False):
    """`train`, for `start`."""
    train(config, resume=resume)


def run_train_slowly(config, resume):
    """`train` with steps of at least 20 ms, so that there is time to kill it in the middle."""
    add = Log.step

    def step(*args):
        time.sleep(0.02)
        add(*args)

    Log.step = step
    train(config, resume=resume)


def run_train_killed_in_save(config, resume, number, half_written):
    """`train` that dies by SIGKILL in its save number `number`: with half of the file, or before it is in its place."""
    saves, save, replace = [0], torch.save, os.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def half_of_it(content, path):
        saves[0] += 1
        save(content, path)
        if saves[0] == number and half_written:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def not_in_place(source, target):
        if saves[0] == number and str(target).endswith(".pt"):
            die()
        replace(source, target)

    torch.save, os.replace = half_of_it, not_in_place
    train(config, resume=resume)


def run_rank(rank, size, port, target, *args):
    """`target(*args)` as torchrun starts it: rank `rank` of `size`."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    target(*args)


def start_ranks(size, target, *args):
    """`size` processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(run_rank, rank, size, port, target, *args) for rank in range(size)]
