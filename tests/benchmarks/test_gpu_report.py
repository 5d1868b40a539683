"""The report of the GPU check: parts, tests that failed or never ended, and the rows where we lose."""

import json

from benchmarks import gpu_report
from benchmarks.records import outcomes, properties, read_parts
from benchmarks.results import COLUMNS, append


def rows():
    empty = dict.fromkeys(COLUMNS, "")
    sizes = {"channels": "16", "height": "9", "width": "9", "num_bases": "4", "num_iters": "3"}
    case = {"dtype": "bfloat16", "memory_order": "contiguous", "batch": "1", "positions": "81", "mode": "full", **sizes}
    slow = {"peer": "ema_ops/torch", "status": "ok", "p50_ms": "2", "extra_mib": "1", "speedup_over_sdpa": "0.5"}
    return [empty | case | slow, empty | case | {"peer": "sdpa", "status": "out of memory"}]


def record(test, outcome, **recorded):
    return json.dumps({"test": test, "outcome": outcome, "seconds": 0.1, "recorded": recorded}) + "\n"


def test_report_counts_and_names_what_is_slower(tmp_path, capsys):
    folder, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    append(folder / "bench" / "measurements.csv", rows())
    (folder / "parts.csv").write_text("tests,1,12\nbench,0,7\nncu,not run,0\n")
    (folder / "tests.jsonl").write_text(
        record("one", "started") + record("one", "passed") + record("two", "started") + record("two", "failed")
        + record("three", "started") + '{"test": "thr'
    )  # fmt: skip
    assert gpu_report.main([str(folder), str(out)]) == 1
    text = (folder / "report.txt").read_text()
    assert text in capsys.readouterr().out
    for line in (
        "tests: 1 passed, 1 failed, 1 never ended, 0 skipped",
        "  failed: two",
        "  never ended: three",
        "rows: 1 ok, 1 out of memory",
        "part tests: FAILED with status 1, 12 s",
        "part bench: passed, 7 s",
        "part ncu: NOT RUN, 0 s",
        "slower: ema_ops/torch bfloat16 contiguous B=1 N=81 full: sdpa 0.5x (times as fast)",
    ):
        assert line in text
    assert {path.name for path in out.iterdir()} == {"report.txt", "targets.md", "decision.md"}
    assert len(list(folder.glob("*.png"))) == 1


def test_report_without_any_result_still_is_written(tmp_path):
    assert gpu_report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.txt").read_text()
    assert "rows: none" in text
    assert "not measured" in text


def test_reports_of_earlier_calls_below_are_not_taken_for_this_one(tmp_path):
    folder, out = tmp_path / "all", tmp_path / "out"
    for path in (folder / "first", out):
        path.mkdir(parents=True)
    for name in ("report.txt", "targets.md", "decision.md", "ncu.md"):
        (folder / "first" / name).write_text("of an earlier call")
    gpu_report.main([str(folder), str(out)])
    assert {path.name: path.read_text() == "of an earlier call" for path in out.iterdir()} == {
        "report.txt": False,
        "targets.md": False,
        "decision.md": False,
        "ncu.md": True,
    }


def test_a_test_that_fails_in_any_phase_has_failed(tmp_path):
    lines = record("one", "started") + record("one", "passed", ratio="1.5", note="words") + record("one", "failed")
    (tmp_path / "a.jsonl").write_text(lines)
    assert [test.outcome for test in outcomes(tmp_path)["a"]] == ["failed"]
    (tmp_path / "a.jsonl").write_text(record("one", "failed") + record("one", "passed"))
    assert [test.outcome for test in outcomes(tmp_path)["a"]] == ["failed"]


def test_numbers_that_tests_recorded(tmp_path):
    lines = record("one", "passed", ratio="1.5", note="words") + record("two", "passed", ratio="2")
    (tmp_path / "a.jsonl").write_text(lines)
    assert properties(outcomes(tmp_path)["a"]) == {"ratio": [1.5, 2.0]}


def test_parts_of_several_calls(tmp_path):
    for call in ("1", "2"):
        (tmp_path / call).mkdir()
        (tmp_path / call / "parts.csv").write_text(f"build,0,{call}\n")
    assert [part.seconds for part in read_parts(tmp_path)] == [1, 2]
