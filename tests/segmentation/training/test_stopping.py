"""SIGTERM and Ctrl-C end a run after the step, with a checkpoint."""

import os
import signal
import time

import pytest
import torch
from training_runs import finish, losses, make_config, rows, run_train, start, start_ranks

from ema_ops.cli import main
from ema_ops.segmentation.evaluation import Inference
from ema_ops.segmentation.training import train
from ema_ops.segmentation.training.stopping import StopRequest

STEPS = ("training.steps=400", "training.validate_every=0", "training.save_every=1000")


def command(config, out):
    """`ema-ops train`; what it prints goes to `out`, its status is that of the process."""
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
    os._exit(main(["train", "--config", str(config.out.with_suffix(".yaml")), *set_options()]))


def set_options():
    return [word for change in STEPS for word in ("--set", change)]


def wait_for_steps(config, count):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (config.out / "log.csv").exists() and len(rows(config.out / "log.csv")) >= count:
            return
        time.sleep(0.005)
    pytest.fail("no steps")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_the_run_with_a_checkpoint(config, tmp_path, number, status):
    run = config(*STEPS)
    process = start(command, run, tmp_path / "said")
    wait_for_steps(run, 3)
    os.kill(process.pid, number)
    assert finish(process) == status
    done = len(losses(run.out))
    assert 3 <= done < 400
    assert f"stopped by signal {int(number)} after step {done}: --resume goes on" in (tmp_path / "said").read_text()


def test_one_process_told_stops_all(config):
    run = config(*STEPS)
    processes = start_ranks(2, run_train, run)
    wait_for_steps(run, 2)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert [finish(process) for process in processes] == [0, 0]
    assert len(losses(run.out)) < 400
    assert (run.out / "latest.pt").exists()


def signal_in_validation(config, resume, judged, rank=0):
    """`train` that gets SIGINT at the first picture it judges; `judged` gets a letter for each, of this process."""
    classes = Inference.classes
    own = int(os.environ.get("RANK", 0))

    def interrupted(*args):
        with judged.with_suffix(f".{own}").open("a") as file:
            file.write("x")
        if own == rank:
            os.kill(os.getpid(), signal.SIGINT)
        return classes(*args)

    Inference.classes = interrupted
    assert train(config, resume=resume).signal == signal.SIGINT


def test_signal_ends_a_validation(data, config, tmp_path):
    whole = make_config(data, tmp_path / "whole" / "run")
    assert finish(start(run_train, whole)) == 0
    run = config()
    # validations are due after 5, 10 and 12 steps; the second time one is due at once
    for times, resume in enumerate((False, True, True), start=1):
        assert finish(start(signal_in_validation, run, resume, tmp_path / "judged")) == 0
        # three pictures are there to judge
        assert (tmp_path / "judged.0").read_text() == times * "x"
        assert len(losses(run.out)) == 5
        assert rows(run.out / "validation.csv") == []
    assert finish(start(run_train, run, True)) == 0
    assert losses(run.out) == losses(whole.out)
    assert rows(run.out / "validation.csv") == rows(whole.out / "validation.csv")
    for name in ("latest.pt", "best.pt"):
        ours, theirs = (torch.load(one.out / name, weights_only=True)["network"] for one in (run, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_one_process_told_stops_the_validation_of_all(config, tmp_path):
    run = config()
    processes = start_ranks(2, signal_in_validation, run, False, tmp_path / "judged", 1)
    assert [finish(process) for process in processes] == [0, 0]
    assert (tmp_path / "judged.1").read_text() == "x"
    assert torch.load(run.out / "latest.pt", weights_only=True)["training"]["step"] == 5
    assert rows(run.out / "validation.csv") == []


def stop_twice(pause, said):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)
        said.write_text("still here")


@pytest.mark.parametrize(("pause", "status"), [(0, 0), (1.1, -signal.SIGINT)])
def test_second_signal_kills_unless_it_is_the_same_one(tmp_path, pause, status):
    assert finish(start(stop_twice, pause, tmp_path / "said")) == status
    assert (tmp_path / "said").exists() == (status == 0)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert stop.signal is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
