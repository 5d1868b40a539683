"""Files are whole or not there; a full disk keeps the checkpoint before; a folder belongs to one run."""

import errno
import os
import resource
import signal

import pytest
import torch
from training_runs import CONTEXT, finish, rows, start

from ema_ops.segmentation.training import files, train
from ema_ops.segmentation.training.checkpoints import check_out
from ema_ops.segmentation.training.files import Folder, remove_parts, replacing
from ema_ops.segmentation.training.logging import Log, Table
from ema_ops.segmentation.training.step import TrainingStep


def test_content_is_replaced_at_once(tmp_path):
    path = tmp_path / "a.pt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_no_folder(config):
    run = config()
    run.out.touch()
    with pytest.raises(NotADirectoryError, match=r"out is .*run, a file: expected a folder"):
        train(run)


def write_and_fail(path, error):
    with replacing(path) as part:
        part.write_text("half")
        raise error


FAILURES = [
    (
        OSError(errno.ENOSPC, "No space left on device"),
        r"\(\[Errno 28\] No space left on device; \d+\.\d MiB are free there\)",
    ),
    # what torch.save says of a full disk
    (RuntimeError("file write failed\nat inline_container.cc"), r"\(file write failed; .*\)"),
]


@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_old_content_stays_when_writing_fails(tmp_path, error, reason):
    path = tmp_path / "a.pt"
    with pytest.raises(OSError, match=rf"a\.pt could not be written {reason}: there was none before it"):
        write_and_fail(path, error)
    path.write_text("old")
    with pytest.raises(
        OSError,
        match=rf"a\.pt could not be written {reason}: the one before it is kept",
    ):
        write_and_fail(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder_to_write_to(tmp_path):
    path = tmp_path / "nowhere" / "x.json"
    message = r"x\.json could not be written \(.*No such file.*\): there was none before it"
    with pytest.raises(OSError, match=message), replacing(path) as part:
        part.write_text("{}")


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "a", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_parts_of_killed_runs_are_removed(tmp_path):
    for name in ("latest.pt", "latest.pt.part", "config.yaml.part"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


def hold(path, taken, enough):
    folder = Folder(path)
    folder.take()
    taken.set()
    enough.wait(60)
    # without `leave`: the lock ends with the process


def test_a_folder_belongs_to_one_run(config, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    run = config("training.steps=2")
    taken, enough = CONTEXT.Event(), CONTEXT.Event()
    other = start(hold, run.out, taken, enough)
    assert taken.wait(60)
    with pytest.raises(OSError, match=rf"{run.out} is in use by another run: expected a folder of its own"):
        train(run)
    assert [path.name for path in run.out.iterdir()] == [".lock"]
    enough.set()
    assert finish(other) == 0
    assert train(run).step == 2
    # it has let go of it
    assert train(run, resume=True).step == 2


def test_the_run_before_may_end_while_one_waits_for_the_folder(config, monkeypatch):
    run, take = config(), Folder.take
    latest = run.out / "latest.pt"
    assert finish(start(stop_after, run, 4)) == 0
    early = latest.read_bytes()
    assert train(run, resume=True).step == 12
    late = latest.read_bytes()

    def take_after_the_other(folder):
        latest.write_bytes(late)
        take(folder)

    def no_step(*_):
        pytest.fail("a step that was done already")

    monkeypatch.setattr(Folder, "take", take_after_the_other)
    monkeypatch.setattr(TrainingStep, "__call__", no_step)
    latest.write_bytes(early)
    assert train(run, resume=True).step == 12
    for path in (latest, run.out / "best.pt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"latest\.pt exists: expected --resume"):
        train(run)


def train_until_the_disk_is_full(config, said):
    """No file may grow beyond half a checkpoint, which the system tells as it tells a full disk."""
    size = (config.out / "latest.pt").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    try:
        train(config, resume=True)
    except OSError as error:
        said.write_text(str(error))


def test_full_disk_keeps_the_checkpoint(config, tmp_path):
    run = config("training.steps=40")
    # half of a run, as a signal would have ended it
    assert finish(start(stop_after, run, 4)) == 0
    before = (run.out / "latest.pt").read_bytes()
    assert finish(start(train_until_the_disk_is_full, run, tmp_path / "said")) == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"{run.out}/latest.pt could not be written (")
    assert said.endswith("): the one before it is kept")
    assert (run.out / "latest.pt").read_bytes() == before
    assert list(run.out.glob("*.part")) == []
    assert finish(start(resumed, run)) == 0
    assert len(rows(run.out / "log.csv")) == 40


def resumed(config):
    assert train(config, resume=True).step == 40


def stop_after(config, count):
    add = Log.step

    def step(self, number, *rest):
        add(self, number, *rest)
        if number == count:
            os.kill(os.getpid(), signal.SIGTERM)

    Log.step = step
    assert train(config).signal == signal.SIGTERM


def test_checkpoints_are_read_without_pickle(config):
    run = config("training.steps=3")
    train(run)
    content = torch.load(run.out / "latest.pt", weights_only=True)
    assert {"format", "version", "model", "classes", "network", "palette", "data", "training"} == set(content)
    assert content["data"] == {
        "kind": "folder",
        "root": str(run.data.root),
        "split": "val",
        "options": {"classes": ["background", "red", "blue"]},
    }
    assert content["training"]["step"] == 3
    assert content["training"]["config"] == run.plain()
    assert "optimizer" not in torch.load(run.out / "best.pt", weights_only=True)["training"]
    with pytest.raises(ValueError, match=r"latest\.pt exists"):
        check_out(run.out, resume=False)


def test_table_keeps_rows_of_the_past(tmp_path):
    path = tmp_path / "log.csv"
    table = Table(path, ("loss", "other"), keep_until=0)
    for step in (1, 2, 3):
        table.add(step, 0.1 * step, None)
    table.close()
    with path.open("a") as file:
        file.write("4,0.")
    table = Table(path, ("loss", "other"), keep_until=2)
    table.add(3, 7.0, 8.0)
    table.close()
    assert path.read_text().split() == ["step,loss,other", "1,0.1,", "2,0.2,", "3,7.0,8.0"]


def test_row_cut_to_a_step_of_the_past_is_dropped(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n1")
    Table(path, ("loss",), keep_until=2).close()
    assert path.read_text().split() == ["step,loss", "1,0.5", "2,0.25"]


def test_table_of_a_new_run_is_empty(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,2\n")
    Table(tmp_path / "log.csv", ("loss",), keep_until=0).close()
    assert (tmp_path / "log.csv").read_text().split() == ["step,loss"]
