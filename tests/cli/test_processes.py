"""Of several processes that fail alike, the first of a machine speaks; the others leave it time to."""

import pytest
import torch

from ema_ops.cli import main, processes


@pytest.fixture
def waited(monkeypatch):
    """The seconds that were waited, without waiting."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return seconds


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "no memory: expected more memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"), "Tried 2 GiB: expected more memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory: expected more"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB: expected more memory"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "is killed by signal: Killed: expected",
        ),
    ],
)
def test_no_memory_on_the_machine_is_one_line(monkeypatch, capsys, error, told):
    def run(_):
        raise error

    monkeypatch.setattr("ema_ops.cli.info.run", run)
    assert main(["info"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ema-ops info: ")
    assert told in said
    assert said.count("\n") == 1


def test_other_errors_are_faults_of_ours(monkeypatch):
    def run(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("ema_ops.cli.info.run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info"])


MISTAKE = ["predict", "no.png", "--checkpoint", "no.pt", "--out", "no"]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, True),
        ({"RANK": "5", "LOCAL_RANK": "1"}, False),
        ({"RANK": "3"}, False),
    ],
)
def test_others_than_the_first_wait_before_they_speak(waited, monkeypatch, capsys, environment, first):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(MISTAKE) == 2
    assert waited == ([] if first else [processes.PATIENCE])
    # an error that the first one does not have is not lost
    assert "ema-ops predict: " in capsys.readouterr().err


def test_interruption_is_told_by_the_first(waited, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ema_ops.cli.info.run", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "ema-ops info: interrupted\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["info"]) == 130
    assert capsys.readouterr().err == ""
    assert waited == []
