"""The report of the GPU check: counts, failed parts, and the rows where we lose."""

from benchmarks import gpu_report
from benchmarks.results import COLUMNS, append

JUNIT = '<testsuites><testsuite tests="7" failures="1" errors="0" skipped="2"/></testsuites>'


def rows():
    empty = dict.fromkeys(COLUMNS, "")
    case = {"dtype": "bfloat16", "memory_order": "contiguous", "batch": "1", "positions": "81", "mode": "full"}
    slow = {"peer": "ema_ops/torch", "status": "ok", "p50_ms": "2", "speedup_over_sdpa": "0.5"}
    return [empty | case | slow, empty | case | {"peer": "sdpa", "status": "out of memory"}]


def test_report_counts_and_names_what_is_slower(tmp_path, capsys):
    append(tmp_path / "measurements.csv", rows())
    (tmp_path / "tests.xml").write_text(JUNIT)
    (tmp_path / "random.xml").touch()
    assert gpu_report.main([str(tmp_path), "tests=1", "bf16=0"]) == 1
    text = (tmp_path / "report.txt").read_text()
    assert text in capsys.readouterr().out
    for line in (
        "tests: 4 passed, 1 failed, 0 errors, 2 skipped",
        "random: left no counts (see random.txt)",
        "rows: 1 ok, 1 out of memory",
        "part tests: FAILED with status 1",
        "part bf16: passed",
        "slower: ema_ops/torch bfloat16 contiguous B=1 N=81 full: sdpa 0.5x (times as fast)",
    ):
        assert line in text


def test_report_without_any_result_still_is_written(tmp_path):
    assert gpu_report.main([str(tmp_path), "tests=0"]) == 0
    text = (tmp_path / "report.txt").read_text()
    assert "rows: none" in text
    assert "not measured" in text
