"""Trainings in several processes: none outlives the command, and none that was stopped counts as done."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from benchmarks.validation import jobs, run, trainings, variants
from ema_ops.segmentation.training import Summary

REPOSITORY = Path(__file__).parents[2]
WORK = """
import os, signal, time
from pathlib import Path

def work(path):
    if path.name == "broken":
        raise ValueError("broken")
    if path.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    part = path.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.replace(path)
    time.sleep(120)
"""
PARENT = """
import sys
from pathlib import Path
from benchmarks.validation.jobs import in_processes
from work import work

if __name__ == "__main__":
    list(in_processes(work, [Path(sys.argv[1]) / name for name in ("first", "second")], 2))
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The function `work` of a module that fresh interpreters find too."""
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "work", raising=False)
    import work

    return work.work


def wait(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found
    return found


def started(folder):
    """The numbers of the two processes, once both are at work."""
    paths = [folder / name for name in ("first", "second")]
    return all(path.exists() for path in paths) and [int(path.read_text()) for path in paths]


def is_alive(number):
    try:
        # a dead child that nobody asked for is no longer at work
        return "State:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_processes_end_with_their_parent(tmp_path, number):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "parent.py").write_text(PARENT)
    paths = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        # what a shell runs in the background ignores Ctrl-C, and so do its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    workers = wait(lambda: started(tmp_path))
    parent.send_signal(number)
    assert parent.wait(30) != 0
    wait(lambda: not any(map(is_alive, workers)), seconds=10)


def test_an_error_ends_all(tmp_path, work):
    before = time.monotonic()
    with pytest.raises(ValueError, match="broken"):
        list(jobs.in_processes(work, [tmp_path / "first", tmp_path / "broken"], 2))
    assert time.monotonic() - before < 60


def test_a_killed_process_is_told(tmp_path, work):
    with pytest.raises(BrokenProcessPool):
        list(jobs.in_processes(work, [tmp_path / name for name in ("first", "killed", "second")], 2))


def test_a_stopped_training_is_not_done(tmp_path, monkeypatch):
    """Ctrl-C ends the command; what the training came to is no outcome."""
    variant = variants.Variant("torch", 0)
    monkeypatch.setattr(trainings, "train", lambda *_, **__: Summary(1, None, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainings.train_all([variant], tmp_path, run.QUICK_BUDGET, device="cpu", jobs=1)
    assert not list(tmp_path.glob("*/outcome.json"))


def test_an_outcome_is_whole_or_not_there(tmp_path, monkeypatch):
    write = Path.write_text

    def half(path, text, *rest):
        write(path, text[: len(text) // 2], *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        trainings._write_json(tmp_path / "outcome.json", {"mean_iou": 0.5})
    assert not (tmp_path / "outcome.json").exists()
