"""Processes that share a batch take the same steps as one process that has it all."""

import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from training_runs import finish, losses, make_config, rows, run_train, start, start_ranks

from ema_ops.segmentation.data import open_dataset, training_batches
from ema_ops.segmentation.models import EMANet
from ema_ops.segmentation.training import train
from ema_ops.segmentation.training.distributed import world
from ema_ops.segmentation.training.optimizer import make_optimizer, set_learning_rate
from ema_ops.segmentation.training.step import TrainingStep

STEPS = 4


def take_steps(config, path, norm_layer=None):
    """Some steps in float64 on this rank's share; losses and state into `path` with the rank's number."""
    with world("cpu") as place:
        torch.manual_seed(3)
        norm = norm_layer or place.norm_layer(synchronised=True)
        network = EMANet(3, norm_layer=norm, average_group=place.group, **config.model.arguments).double()
        optimizer = make_optimizer(network, config.optimizer)
        set_learning_rate(optimizer, config.optimizer.lr)
        training = TrainingStep(network, optimizer, place, config.training)
        dataset = open_dataset("folder", config.data.root, "train", **config.data.options)
        batches = training_batches(dataset, crop=(24, 32), batch=4, seed=0, rank=place.rank, world_size=place.size)
        results = [training(next(batches), step) for step in range(1, STEPS + 1)]
        torch.save(
            {
                "losses": [(r.loss, r.auxiliary_loss, r.gradient_norm) for r in results],
                "network": network.state_dict(),
                "momentum": [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()],
            },
            path.with_suffix(f".{place.rank}"),
        )


@pytest.fixture
def one_and_two(config, tmp_path):
    """What one process and each of two came to, without dropout, whose random numbers differ between processes."""

    def run(*sets, norm_layer=None, sets_of_two=()):
        one, two = config("model.dropout=0", *sets), config("model.dropout=0", *sets, *sets_of_two)
        processes = [
            start(take_steps, one, tmp_path / "one", norm_layer),
            *start_ranks(2, take_steps, two, tmp_path / "two", norm_layer),
        ]
        assert [finish(process) for process in processes] == [0, 0, 0]
        return [torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1")]

    return run


@pytest.mark.parametrize("head", ["official", "mmsegmentation"])
def test_two_processes_equal_one(one_and_two, head):
    one, *two = one_and_two(f"model.head={head}")
    assert one["losses"][0][0] != one["losses"][-1][0]
    assert (one["losses"][0][1] is None) == (head == "official")
    for rank in two:
        torch.testing.assert_close(rank, one, rtol=1e-10, atol=1e-12)
    # running bases and statistics are among what was compared, and they have moved
    moved = {key for key in one["network"] if key.endswith(("bases", "running_mean", "running_var"))}
    assert "unit.attention.bases" in moved
    assert len(moved) > 5
    torch.testing.assert_close(two[0], two[1], rtol=0, atol=0)


def test_two_processes_that_accumulate_equal_one(one_and_two):
    # norms that see one picture at a time, and bases that do not run: the others see the parts of a batch one by one
    sets = ("model.layer.learnable_bases=true", "model.head=mmsegmentation")
    one, *two = one_and_two(*sets, norm_layer=partial(nn.GroupNorm, 2), sets_of_two=["training.accumulate=2"])
    assert one["losses"][0][0] != one["losses"][-1][0]
    for rank in two:
        torch.testing.assert_close(rank, one, rtol=1e-9, atol=1e-12)


def test_synchronised_norm_is_that_of_the_whole_batch(tmp_path):
    torch.manual_seed(0)
    torch.save(
        {"x": torch.randn(5, 6, 4, 3).double() * 3 + 100, "grad": torch.randn(5, 6, 4, 3).double()}, tmp_path / "in"
    )
    processes = start_ranks(2, normalise, tmp_path)
    assert [finish(process) for process in processes] == [0, 0]
    given = torch.load(tmp_path / "in")
    x = given["x"].requires_grad_()
    norm = nn.BatchNorm2d(6, momentum=0.2).double()
    y = norm(x)
    y.backward(given["grad"])
    ranks = [torch.load(tmp_path / f"out{rank}") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([rank["y"] for rank in ranks]), y.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.cat([rank["grad"] for rank in ranks]), x.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(rank["weight"] for rank in ranks), norm.weight.grad, rtol=1e-10, atol=1e-10)
    for rank in ranks:
        torch.testing.assert_close(rank["state"], norm.state_dict(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(rank["judged"], norm.eval()(x).detach(), rtol=1e-10, atol=1e-10)


def normalise(folder):
    """Two of five pictures on rank 0, three on rank 1."""
    with world("cpu") as place:
        given = torch.load(folder / "in")
        mine = slice(0, 2) if place.is_main else slice(2, 5)
        x = given["x"][mine].clone().requires_grad_()
        norm = place.norm_layer(synchronised=True)(6).double()
        norm.momentum = 0.2
        y = norm(x)
        y.backward(given["grad"][mine])
        result = {"y": y.detach(), "grad": x.grad, "weight": norm.weight.grad, "state": norm.state_dict()}
        torch.save({**result, "judged": norm.eval()(given["x"]).detach()}, folder / f"out{place.rank}")


def test_a_whole_run_in_two_processes(data, tmp_path):
    """Validation (three pictures, shared unevenly), one writer, resume by another number of processes."""
    sets = ("model.dropout=0", "training.batch=4", "training.seed=2")
    one, two = (make_config(data, tmp_path / name, *sets) for name in ("one", "two"))
    processes = [start(run_train, one), *start_ranks(2, run_train, two)]
    assert [finish(process) for process in processes] == [0, 0, 0]
    assert [float(loss) for loss in losses(two.out)] == pytest.approx([float(x) for x in losses(one.out)], rel=1e-3)
    judged = [[float(row["mean_iou"]) for row in rows(run.out / "validation.csv")] for run in (one, two)]
    assert judged[0] == pytest.approx(judged[1], abs=0.02)
    assert {path.name for path in one.out.iterdir()} == {path.name for path in two.out.iterdir()}
    assert train(two, resume=True).step == 12


ENDED = """
import sys
from pathlib import Path
from ema_ops.cli import main

def gloo():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(f"still there: {gloo()}" if gloo() else status)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for threads in /proc")
def test_threads_of_the_group_end_with_the_run(config, tmp_path):
    """At the end of the interpreter it may be too late for them; an interpreter that is fresh has imported nothing."""
    run = config("training.steps=2")
    (tmp_path / "ended.py").write_text(ENDED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = str(Path(__file__).parents[3])
    words = [sys.executable, tmp_path / "ended.py", "train", "--config", run.out.with_suffix(".yaml")]
    processes = [
        subprocess.Popen(
            [*words, "--set", "training.steps=2"],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said


def test_more_processes_than_pictures_to_validate(config, data, tmp_path):
    root = tmp_path / "one_picture"
    root.mkdir()
    for name in ("images", "masks", "train.txt"):
        (root / name).symlink_to(data / name)
    (root / "val.txt").write_text("picture12")
    run = config(f"data.root={root}", "training.steps=2")
    processes = start_ranks(2, run_train, run)
    assert [finish(process) for process in processes] == [0, 0]
    assert len(rows(run.out / "validation.csv")) == 1


def test_batch_must_be_shared_evenly(config, tmp_path):
    processes = start_ranks(2, refused, config("training.batch=6", "training.accumulate=2"), tmp_path)
    assert [finish(process) for process in processes] == [0, 0]


def refused(config, folder):
    with pytest.raises(ValueError, match=r"training\.batch is 6: expected a multiple of 4, the 2 processes times"):
        train(config)
    # who leaves early tears the connection that the other one may still be making
    (folder / f"refused{os.environ['RANK']}").touch()
    while len(list(folder.glob("refused*"))) < 2:
        time.sleep(0.01)


def test_failure_of_the_writer_stops_all(config, tmp_path):
    processes = start_ranks(2, cannot_save, config("training.steps=3"), tmp_path)
    assert [finish(process) for process in processes] == [0, 0]
    assert "latest.pt could not be written (No space" in (tmp_path / "error0").read_text()
    assert (tmp_path / "error1").read_text() == "stopped, because process 0 failed; its message says why"


def cannot_save(config, folder):
    def full(content, path):
        raise OSError("No space left on device")

    torch.save = full
    with pytest.raises(OSError, match=r"could not be written|stopped") as caught:
        train(config)
    (folder / f"error{os.environ['RANK']}").write_text(str(caught.value))


def test_failure_of_one_process_stops_all(config, tmp_path):
    processes = start_ranks(2, one_fails, config("training.steps=3"), tmp_path)
    assert [finish(process) for process in processes] == [0, 0]
    assert (tmp_path / "error0").read_text() == "stopped, because another process is gone; its message says why"
    assert (tmp_path / "error1").read_text() == "picture7.png cannot be read"


def one_fails(config, folder):
    take = TrainingStep.__call__
    rank = int(os.environ["RANK"])

    def fail(training, batch, step):
        if rank == 1 and step == 2:
            raise OSError("picture7.png cannot be read")
        return take(training, batch, step)

    TrainingStep.__call__ = fail
    # pytest.raises would keep the frames of the error, and with them the connection
    try:
        train(config)
    except OSError as error:
        (folder / f"error{rank}").write_text(str(error))
        os._exit(0)


def test_unknown_device_is_named(config):
    with pytest.raises(ValueError, match=r"device is 'cuda:9': expected a device that is there, PyTorch sees \d+ GPUs"):
        train(config("training.device=cuda:9"))
    for name in ("gpu", "meta"):
        with pytest.raises(ValueError, match=rf"device is '{name}': expected cpu, cuda or cuda:1"):
            train(config(f"training.device={name}"))


def test_too_few_gpus_are_seen_by_all_processes(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    message = "device is 'cuda' for 4 processes: expected a device that is there, PyTorch sees 2 GPUs"
    with pytest.raises(ValueError, match=message):
        train(config("training.device=cuda"))


def test_one_gpu_is_not_for_several_processes(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"device is 'cuda:0' for 4 processes: expected 'cuda', the GPU of each local"):
        train(config("training.device=cuda:0"))
