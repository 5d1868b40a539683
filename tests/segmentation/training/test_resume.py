"""A run killed at any moment goes on as if nothing had happened: bitwise the same losses."""

import random
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    CLASSES,
    finish,
    losses,
    make_config,
    rows,
    run_train,
    run_train_killed_in_save,
    run_train_slowly,
    start,
)

from ema_ops.segmentation.models.checkpoints import load_network
from ema_ops.segmentation.training import train

# dropout is on: its random numbers must be the same after a resume too
STEPS = "training.steps=40"


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    config = make_config(data, tmp_path_factory.mktemp("whole") / "run", STEPS)
    assert finish(start(run_train, config)) == 0
    assert len(losses(config.out)) == 40
    return config.out


def assert_same_run(out, whole):
    """Losses, validations and weights of two runs are bitwise the same."""
    assert losses(out) == losses(whole)
    assert rows(out / "validation.csv") == rows(whole / "validation.csv")
    for name in ("latest.pt", "best.pt"):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (out, whole))
        assert ours["training"]["step"] == theirs["training"]["step"]
        for key, value in theirs["network"].items():
            assert torch.equal(ours["network"][key], value), key


def kill_somewhere(process, out, rng):
    """Kill -9 when a random number of steps has been logged, and a random moment later."""
    start_at = len(rows(out / "log.csv")) if (out / "log.csv").exists() else 0
    wanted = start_at + rng.randint(1, 12)
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if (out / "log.csv").exists() and len(rows(out / "log.csv")) >= wanted:
            break
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.03))
    process.kill()
    return finish(process)


def test_killed_at_random_moments(config, whole):
    rng = random.Random(1)
    run = config(STEPS)
    kills = 0
    for _ in range(4):
        process = start(run_train_slowly, run, (run.out / "latest.pt").exists())
        kills += kill_somewhere(process, run.out, rng) == -signal.SIGKILL
    assert kills >= 3
    assert finish(start(run_train, run, True)) == 0
    assert_same_run(run.out, whole)


@pytest.mark.parametrize("half_written", [True, False])
def test_killed_in_the_middle_of_saving(config, whole, half_written):
    run = config(STEPS)
    assert finish(start(run_train_killed_in_save, run, False, 5, half_written)) == -signal.SIGKILL
    assert list(run.out.glob("*.part"))
    # what is there is whole, and of an earlier step than was reached
    saved = torch.load(run.out / "latest.pt", weights_only=True)["training"]["step"]
    assert saved < len(rows(run.out / "log.csv"))
    load_network(run.out / "latest.pt")
    assert finish(start(run_train_killed_in_save, run, True, 7, half_written)) == -signal.SIGKILL
    assert finish(start(run_train, run, True)) == 0
    assert list(run.out.glob("*.part")) == []
    assert_same_run(run.out, whole)


def test_harmless_settings_may_change(config, whole):
    run = config(STEPS)
    assert finish(start(run_train_killed_in_save, run, False, 20, False)) == -signal.SIGKILL
    changed = config(STEPS, "data.workers=2", "training.save_every=7", "training.log_every=3", "training.pictures=0")
    assert finish(start(run_train, changed, True)) == 0
    assert_same_run(run.out, whole)


def test_tensorboard_has_every_step_once(config):
    run = config("training.log_every=1")
    assert finish(start(run_train_killed_in_save, run, False, 4, False)) == -signal.SIGKILL
    assert finish(start(run_train, run, True)) == 0
    table = rows(run.out / "log.csv")
    steps, validations = events(run.out, "train"), events(run.out, "validation")
    assert [event.step for event in steps.Scalars("loss")] == list(range(1, 13))
    assert [event.value for event in steps.Scalars("loss")] == pytest.approx([float(row["loss"]) for row in table])
    assert {"loss", "lr", "gradient_norm", "images_per_second"} == set(steps.Tags()["scalars"])
    assert [event.step for event in validations.Scalars("mean_iou")] == [5, 10, 12]
    assert {f"iou/{name}" for name in CLASSES} < set(validations.Tags()["scalars"])
    assert len(validations.Images("picture11")) == 3


def events(out, board):
    accumulator = EventAccumulator(str(out / "tensorboard" / board), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def test_resume_needs_the_same_settings(config):
    train(config("training.steps=3"))
    with pytest.raises(
        ValueError, match=r"latest\.pt is of a run with other settings: .*optimizer\.lr was 0\.05 and is 0\.1"
    ):
        train(config("training.steps=3", "optimizer.lr=0.1"), resume=True)
    with pytest.raises(ValueError, match=r"training\.steps was 3 and is 4"):
        train(config("training.steps=4"), resume=True)


def test_resume_needs_the_same_pictures(config, data, tmp_path):
    train(config("training.steps=3"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("images", "masks", "val.txt"):
        (other / name).symlink_to(data / name)
    (other / "train.txt").write_text("\n".join(reversed((data / "train.txt").read_text().split())))
    with pytest.raises(ValueError, match=r"other pictures: expected those that .*other had"):
        train(config("training.steps=3", f"data.root={other}"), resume=True)


def test_resume_needs_a_checkpoint(config):
    with pytest.raises(FileNotFoundError, match=r"run/latest\.pt is missing"):
        train(config(), resume=True)


def test_resume_refuses_a_network_alone(config):
    run = config("training.steps=3")
    train(run)
    (run.out / "best.pt").replace(run.out / "latest.pt")
    with pytest.raises(ValueError, match=r"latest\.pt has no state of a training run"):
        train(run, resume=True)


def test_new_run_leaves_an_old_one_alone(config):
    run = config("training.steps=3")
    train(run)
    before = (run.out / "latest.pt").read_bytes()
    with pytest.raises(ValueError, match=r"latest\.pt exists: expected --resume .* or another --out"):
        train(run)
    assert (run.out / "latest.pt").read_bytes() == before


def test_resume_of_a_finished_run_does_nothing(config):
    run = config("training.steps=3")
    first = train(run)
    table = (run.out / "log.csv").read_bytes()
    assert train(run, resume=True) == first
    assert (run.out / "log.csv").read_bytes() == table
