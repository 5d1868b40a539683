"""The check for a GPU, on a GPU that is not there: its script, its tests and its measurements run to their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import emulation
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
PYTHON = HERE / "bin" / "python"

# Python without torch: it answers as if all were well, writes down its arguments, and hangs where it is told to
ACTOR = """#!/bin/sh
echo "$EMA_OPS_HOPPER:$*" >> {log}
case "$*" in
  *{hanging}*) echo began; trap 'echo asked to end; exit 2' INT; while :; do sleep 0.1; done ;;
  *{failing}*) exit 7 ;;
  *get_device_capability*) echo 90a ;;
  *"from_pip=False).nvcc"*) echo nvcc ;;
  *"benchmarks.gpu_report"*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def actor(tmp_path):
    """Writes that Python; gives the environment for the script and what it was called with."""

    def make(hanging="-nothing-", failing="-nothing-", **variables):
        log, path = tmp_path / "calls.txt", tmp_path / "bin" / "python"
        path.parent.mkdir()
        path.write_text(ACTOR.format(log=log, hanging=hanging, failing=failing, python=sys.executable))
        path.chmod(0o755)
        tools = {"PATH": f"{HERE / 'bin'}:{os.environ['PATH']}", "PYTHON": str(path)}
        return {**os.environ, **tools, **variables}, log

    return make


def check(folder, *stages, environment=None, timeout=60):
    done = subprocess.run(
        ["bash", SCRIPT, folder, *stages], env=environment, capture_output=True, text=True, timeout=timeout
    )
    print(done.stdout, done.stderr)
    return done


def rehearsed(**more):
    # tests inside tests: nothing of the process of pytest-xdist that runs these
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **inherited, "REHEARSAL_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}", "PYTHON": str(PYTHON), "EMA_OPS_RANDOM_SECONDS": "1", **more,
    }  # fmt: skip


def test_all_stages_are_called(actor, tmp_path):
    environment, log = actor()
    done = check(tmp_path / "out", environment=environment)
    assert done.returncode == 0, done.stderr
    calls = log.read_text()
    for words in (
        ":-m pytest -q -rs -p no:cacheprovider -n 4 tests/gpu/test_hopper.py",
        "1:-m pytest -q -rs -p no:cacheprovider -n 4 tests/gpu -k cuda and not random",
        "tests/gpu/test_small_shapes.py -k cuda",
        "loop,overlap,tiles:-m ema_ops bench",
        "0:-m ema_ops bench",
        "-m benchmarks.latency",
        "-m benchmarks.ncu",
        "-m ema_ops validate",
        "-m benchmarks.folding",
        "tiles:-m benchmarks.precision",
    ):
        assert words in calls
    assert calls.count("setup.py --quiet build_ext --inplace") == 2
    parts = re.findall(r"^part (\S+): (\w+), \d+ s$", done.stdout, re.MULTILINE)
    assert {
        "build",
        "build_trapping",
        "experiments",
        "hopper",
        "hopper_overlap+tiles",
        "sanitizer_racecheck",
        "hopper_sanitizer_memcheck",
    } <= {name for name, _ in parts}
    assert {how for _, how in parts} == {"passed"}
    assert "rows: none" in done.stdout
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"log.txt", "results.tar.gz", "report.txt", "targets.md", "decision.md"}


def test_a_part_that_hangs_is_asked_to_end_and_the_others_run(actor, tmp_path):
    environment, _ = actor(hanging="test_random_shapes", failing="test_hopper", EMA_OPS_SECONDS="44")
    done = check(tmp_path / "out", "hopper", "random", environment=environment, timeout=90)
    assert done.returncode == 1
    for line in ("part hopper: FAILED with status 7", "part hopper_all: passed", "part random: FAILED with status 124"):
        assert line in done.stdout
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as packed:
        assert b"asked to end" in packed.extractfile("./random.txt").read()


def test_without_time_no_part_begins(actor, tmp_path):
    environment, log = actor(EMA_OPS_SECONDS="30")
    done = check(tmp_path / "out", "latency", "triton", environment=environment)
    assert "part latency: NOT RUN, 0 s\npart triton: NOT RUN, 0 s" in done.stdout
    assert "pytest -q" not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "Three plans"),
        ([], 2, "Usage"),
        (["{out}", "nonsense"], 2, "stage is 'nonsense': expected first, second, third or of experiments"),
    ],
)
def test_arguments(arguments, status, said, tmp_path):
    words = [word.format(out=tmp_path) for word in arguments]
    done = subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert said in done.stdout + done.stderr


def test_without_a_gpu_it_says_so(tmp_path):
    done = check(tmp_path, "latency", environment={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr


needs_emulation = pytest.mark.skipif(emulation.missing() is not None, reason=emulation.missing() or "")


@needs_emulation
def test_gpu_tests_run(tmp_path):
    """Some of each kind: memory, random shapes, graphs with the kernels for Hopper."""
    record = tmp_path / "record.jsonl"
    chosen = "(takes_and_keeps or random_calls) and cuda or follow_their_inputs"
    few = ["-k", chosen, "tests/gpu/test_memory.py", "tests/gpu/test_random_shapes.py"]
    environment = rehearsed(EMA_OPS_TEST_RECORD=str(record))
    done = subprocess.run(
        [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *few, "tests/gpu/test_hopper.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert record.read_text().count('"passed"') == 7


@pytest.mark.rehearsal
@needs_emulation
def test_the_whole_check(tmp_path):
    """Every stage but the trainings; the report has every target of a tiny run."""
    emulation.build_core()  # the script gives its first look at the GPU one minute
    stages = (
        "experiments hopper tests bench hopper_bench latency ncu sanitizer hopper_sanitizer triton random constant unit"
    )
    done = check(tmp_path, *stages.split(), environment=rehearsed(EMA_OPS_PATIENCE="10"), timeout=7200)
    assert done.returncode == 0, done.stdout[-5000:]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"log.txt", "results.tar.gz", "report.txt", "targets.md", "decision.md", "ncu.md"}
    lines = [line for line in (tmp_path / "targets.md").read_text().splitlines() if "not measured" in line]
    assert lines == []
