"""Counters of ncu: its file read, its refusals told."""

import time
from pathlib import Path

from benchmarks import ncu


def fake(monkeypatch, tmp_path, body):
    script = tmp_path / "bin" / "ncu"
    script.parent.mkdir()
    script.write_text(body)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")


def test_without_ncu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ncu.main([str(tmp_path)]) == 3
    assert "there is no ncu in PATH" in capsys.readouterr().out
    assert (tmp_path / "ncu.md").read_text() == "No counters: there is no ncu in PATH.\n"


def test_where_counters_may_not_be_read_it_stops_at_once(tmp_path, monkeypatch, capsys):
    fake(monkeypatch, tmp_path, "#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM - the user has no permission'\nexit 1\n")
    assert ncu.main([str(tmp_path)]) == 3
    assert capsys.readouterr().out.count("\n") == 2
    assert "may not be read" in (tmp_path / "ncu.md").read_text()


def test_a_run_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    fake(monkeypatch, tmp_path, "#!/bin/sh\necho 'no such metric'\nexit 2\n")
    assert ncu.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("status 2: no such metric") == len(ncu.SHAPES) * len(ncu.PARTS)


def test_a_run_that_takes_too_long_is_ended_with_all_it_started(tmp_path, monkeypatch):
    child = tmp_path / "child"
    fake(monkeypatch, tmp_path, f"#!/bin/sh\nsleep 97 & echo $! > {child}\nwait\n")
    monkeypatch.setattr(ncu, "SECONDS", 1)
    assert ncu.profile(str(tmp_path / "bin" / "ncu"), tmp_path / "x.csv", "forward", 1, "0") == "stopped after 1 s"
    status = Path("/proc", child.read_text().strip(), "stat")
    deadline = time.monotonic() + 5
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_table(tmp_path):
    """Units are brought to microseconds and megabytes; a metric that is not there leaves a dash."""
    metrics = ncu.METRICS["us"], ncu.METRICS["memory, %"], ncu.METRICS["read, MB"]
    rows = [
        ("Kernel Name", *metrics),
        ("", "nsecond", "%", "Kbyte"),
        ("_ZN3ema12e_step_kernelEv", "12,345", "50.5", "69,200"),
    ]
    lines = ["==PROF== Connected to process 1", *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "forward-16-off.csv").write_text("\n".join(lines))
    table = ncu.write_table(tmp_path)
    assert "**forward-16-off**: 12.3 us, 1 kernels" in table
    assert "| e_step_kernel | 12.3 | 50.5 | 69.2 | - | - | - | - |" in table
