"""The microbenchmark end to end at tiny sizes: rows, refusals, files and exit status."""

import csv
import dataclasses
import time

import pytest
import torch

from benchmarks import microbenchmark, units
from benchmarks.options import options
from benchmarks.peers import RIVALS
from benchmarks.results import COLUMNS, read
from ema_ops.cli import main

PEERS = ("official-detached", "official-exact", "sdpa")
TINY = ("bench", "--device", "cpu", "--channels", "8", "--bases", "4", "--sizes", "3x4", "--seconds", "0.001")


def tiny(out, **given):
    values = {"channels": 8, "sizes": ((3, 4),), "mode": ("forward",), "backends": ("torch",), "peers": ()}
    return options(device="cpu", bases=4, seconds=0.001, out=out, **{**values, **given})


def with_peer(monkeypatch, function, **changes):
    """Put `function` (inputs -> y) in the place of official-exact."""
    fake = dataclasses.replace(RIVALS["official-exact"], build=lambda case: function, **changes)
    monkeypatch.setitem(RIVALS, "official-exact", fake)


def test_command_writes_rows_table_and_plot(tmp_path, capsys):
    status = main(
        [*TINY, "--mode", "forward", "backward", "full", "--batch", "2", "--peers", *PEERS, "--out", str(tmp_path)]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    with (tmp_path / "measurements.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    rows = {(row["peer"], row["mode"]): row for row in read(tmp_path / "measurements.csv")}
    for name in ("ema_ops/torch", "sdpa"):
        for mode in ("forward", "backward", "full"):
            row = rows[name, mode]
            assert row["status"] == "ok", row["note"]
            assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
            assert float(row["extra_mib"]) > 0
            assert int(row["repeats"]) >= 3
            assert float(row["speedup_over_sdpa"]) > 0
    assert rows["official-exact", "forward"]["status"] == "not applicable"
    assert rows["official-detached", "backward"]["status"] == "not applicable"
    assert "no gradient" in rows["official-detached", "full"]["note"]
    ours = rows["ema_ops/torch", "full"]
    assert ours["checked_images"] == "2 of 2"
    assert float(ours["error_grad_x"]) <= float(ours["allowed_grad_x"])
    assert float(ours["over_floor"]) > 0
    assert ours["floor_source"].startswith("measured in this run")
    assert rows["sdpa", "forward"]["floor_ms"] == ""
    assert rows["sdpa", "forward"]["kernel"] in ("flash", "math")
    for column in ("utc", "device", "torch", "python", "ema_ops", "commit", "seed"):
        assert ours[column], column
    assert "ema_ops/torch" in printed.out
    assert "ema_ops/torch" in (tmp_path / "table.txt").read_text()
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 1
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


def test_wrong_result_is_refused(tmp_path, monkeypatch, capsys):
    with_peer(monkeypatch, lambda inputs: 1.001 * inputs.x, refuses=lambda *_: None)
    monkeypatch.setattr(microbenchmark, "time_workload", lambda *_: pytest.fail("a wrong result was timed"))
    assert microbenchmark.run(tiny(tmp_path, backends=(), peers=("official-exact",))) == 1
    row = read(tmp_path / "measurements.csv")[0]
    assert row["status"] == "wrong result"
    assert "error of y" in row["note"]
    assert float(row["error_y"]) > float(row["allowed_y"])
    assert row["p50_ms"] == ""
    assert "wrong result: official-exact forward" in capsys.readouterr().err


def test_wrong_gradient_is_refused(tmp_path, monkeypatch):
    right = RIVALS["official-exact"].build

    def shifted(case):
        function = right(case)

        def wrong_gradient(inputs):
            y = function(inputs)
            return y + 1e-3 * (inputs.x - inputs.x.detach())

        return wrong_gradient

    fake = dataclasses.replace(RIVALS["official-exact"], build=shifted)
    monkeypatch.setitem(RIVALS, "official-exact", fake)
    assert microbenchmark.run(tiny(tmp_path, peers=("official-exact",), mode=("full",))) == 1
    ours, wrong = read(tmp_path / "measurements.csv")
    assert ours["status"] == "ok"
    assert wrong["status"] == "wrong result"
    assert "grad_x" in wrong["note"]


def test_nan_is_wrong(tmp_path, monkeypatch):
    with_peer(monkeypatch, lambda inputs: inputs.x * float("nan"), refuses=lambda *_: None)
    assert microbenchmark.run(tiny(tmp_path, backends=(), peers=("official-exact",))) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_a_row(tmp_path, monkeypatch, error):
    def run_out(inputs):
        raise error

    with_peer(monkeypatch, run_out, refuses=lambda *_: None)
    assert microbenchmark.run(tiny(tmp_path, peers=("official-exact",))) == 0
    ours, out = read(tmp_path / "measurements.csv")
    assert ours["status"] == "ok"
    assert out["status"] == "out of memory"
    assert "memory" in out["note"]
    assert "out of memory" in (tmp_path / "table.txt").read_text()


def test_memory_that_is_not_there_fails_as_an_error(tmp_path, monkeypatch):
    with_peer(monkeypatch, lambda inputs: torch.zeros(1 << 46), refuses=lambda *_: None)
    assert microbenchmark.run(tiny(tmp_path, backends=(), peers=("official-exact",))) == 0
    assert read(tmp_path / "measurements.csv")[0]["status"] == "out of memory"


def test_a_peer_that_fails_is_a_row_and_a_status(tmp_path, monkeypatch):
    def fail(inputs):
        raise RuntimeError("no such kernel\nand more")

    with_peer(monkeypatch, fail, refuses=lambda *_: None)
    assert microbenchmark.run(tiny(tmp_path, peers=("official-exact",))) == 1
    ours, failed = read(tmp_path / "measurements.csv")
    assert ours["status"] == "ok"
    assert (failed["status"], failed["note"]) == ("failed", "RuntimeError: no such kernel")


def test_part_of_the_batch_is_checked_where_all_is_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.verify.CHECK_OPERATIONS", {"cpu": 1.0})
    assert microbenchmark.run(tiny(tmp_path, batch=(3,), mode=("full",))) == 0
    row = read(tmp_path / "measurements.csv")[0]
    assert row["checked_images"] == "1 of 3"
    assert row["note"] == "checked on the last 1 of 3 images"


def test_what_was_measured_before_an_interrupt_is_kept(tmp_path, monkeypatch):
    def interrupted(inputs):
        raise KeyboardInterrupt

    with_peer(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        microbenchmark.run(tiny(tmp_path, peers=("sdpa", "official-exact"), mode=("full",)))
    rows = read(tmp_path / "measurements.csv")
    assert [row["peer"] for row in rows] == ["ema_ops/torch", "sdpa"]
    assert float(rows[0]["speedup_over_sdpa"]) > 0


def test_a_gpu_has_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = [options(device=name).device for name in (None, "cuda", "cuda:1")]
    assert asked == [torch.device("cuda", 0), torch.device("cuda", 0), torch.device("cuda", 1)]


def test_time_limit_leaves_rows_that_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter(range(1000)).__next__)
    assert microbenchmark.run(tiny(tmp_path, peers=("sdpa",), time_limit=2.5, mode=("forward", "full"))) == 0
    statuses = [row["status"] for row in read(tmp_path / "measurements.csv")]
    assert statuses == ["ok", "not run", "not run", "not run"]


def test_unusable_backend_is_a_row_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("ema_ops.backends.eager.EagerBackend.unavailable", lambda self: "it is switched off")
    assert microbenchmark.run(tiny(tmp_path)) == 0
    row = read(tmp_path / "measurements.csv")[0]
    assert (row["status"], row["note"]) == ("not usable", "it is switched off")


def test_second_run_adds_rows_and_the_table_shows_the_last(tmp_path):
    for _ in range(2):
        assert microbenchmark.run(tiny(tmp_path)) == 0
    assert len(read(tmp_path / "measurements.csv")) == 2
    assert (tmp_path / "table.txt").read_text().count("ema_ops/torch") == 1


def test_file_with_other_columns_is_left_alone(tmp_path):
    (tmp_path / "measurements.csv").write_text("peer,time\n")
    with pytest.raises(ValueError, match="other columns"):
        microbenchmark.run(tiny(tmp_path))
    assert (tmp_path / "measurements.csv").read_text() == "peer,time\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--peers", "magic"), "peers is 'magic': expected one of official-detached"),
        (("--backends", "magic"), "backends is 'magic': expected one of"),
        (("--mode", "sideways"), "mode is 'sideways': expected one of forward, backward, full"),
        (("--dtype", "int8"), "dtype is 'int8': expected one of float32"),
        (("--memory-order", "spiral"), "memory_order is 'spiral': expected one of contiguous"),
        (("--device", "toaster"), "device is 'toaster': expected cpu"),
        (("--device", "meta"), "device is 'meta': expected cpu"),
        (("--device", "cuda:99"), "device is 'cuda:99': expected a present GPU"),
        (("--batch", "0"), "batch is 0: expected at least 1"),
        (("--channels", "-1"), "channels is -1: expected at least 1"),
        (("--bases", "0"), "bases is 0: expected at least 1"),
        (("--iters", "0"), "iters is 0: expected at least 1"),
        (("--sizes", "0x3"), "sizes is 0: expected at least 1"),
        (("--seed", "-1"), "seed is -1: expected 0 to 2147483647"),
        (("--seed", str(2**31)), "seed is 2147483648: expected 0 to 2147483647"),
        (("--seconds", "nan"), "seconds is nan: expected a finite number"),
        (("--time-limit", "-1"), "time_limit is -1.0: expected"),
        (("--peers", "--backends"), "peers and backends are both empty"),
    ],
)
def test_bad_option_gets_one_clear_line(tmp_path, capsys, wrong, message):
    assert main([*TINY, "--out", str(tmp_path), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_size_gets_a_clear_line(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--sizes", "65"])
    assert "size is '65': expected HEIGHTxWIDTH" in capsys.readouterr().err


def test_outside_the_repository_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ema_ops.checkout.__file__", str(tmp_path / "site" / "ema_ops" / "checkout.py"))
    monkeypatch.chdir(tmp_path)
    assert main([*TINY]) == 2
    assert "expected to run from the repository" in capsys.readouterr().err


def test_constant_work_has_as_many_positions_in_every_case(tmp_path):
    cases = tiny(tmp_path, shapes="constant-work").cases()
    assert {case.batch * case.positions for case in cases} == {2**20}
    assert {case.positions for case in cases} == {2**12, 2**14, 2**16, 2**18, 2**20}
    with pytest.raises(ValueError, match="shapes is 'some': expected one of constant-work"):
        tiny(tmp_path, shapes="some")


def test_the_ratio_of_memory_orders_is_printed(tmp_path, capsys):
    assert main([*TINY, "--mode", "forward", "--memory-order", "contiguous", "channels_last", "--peers", "--backends",
                 "torch", "--out", str(tmp_path)]) == 0  # fmt: skip
    assert "x over channels_last: ema_ops/torch float32 contiguous B=1 3x4 forward" in capsys.readouterr().out
    assert "x over channels_last" in (tmp_path / "table.txt").read_text()


def test_the_unit_is_a_mode(tmp_path):
    wanted = {"mode": ("forward", "unit"), "peers": ("official-detached", "sdpa"), "dtype": ("float32", "bfloat16")}
    asked = tiny(tmp_path, sizes=((9, 9),), **wanted)
    assert microbenchmark.run(asked) == 0
    rows = [row for row in read(tmp_path / "measurements.csv") if row["mode"] == "unit"]
    assert {row["peer"] for row in rows} == {"ema_ops/torch", "ema_ops/torch folded", "official-detached"}
    for row in rows:
        assert row["status"] == "ok", row["note"]
        assert 0 < float(row["error_y"]) <= float(row["allowed_y"])
        assert row["error_grad_x"] == ""
        # more than the loop alone: the second convolution
        loop = next(other for other in read(tmp_path / "measurements.csv") if other["mode"] == "forward")
        assert float(row["floor_ms"]) > float(loop["floor_ms"])


def test_a_wrong_unit_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_official", lambda unit, x, num_iters: x)
    assert microbenchmark.run(tiny(tmp_path, mode=("unit",), backends=(), peers=("official-detached",))) == 1
    (row,) = read(tmp_path / "measurements.csv")
    assert row["status"] == "wrong result"
    assert row["p50_ms"] == ""


def test_features_of_8_bits_are_a_dtype(tmp_path):
    asked = tiny(tmp_path, dtype=("float8_e4m3fn",), mode=("forward", "full"), peers=("official-detached",))
    assert microbenchmark.run(asked) == 0
    rows = {(row["peer"], row["mode"]): row for row in read(tmp_path / "measurements.csv")}
    ours = rows.pop(("ema_ops/torch", "forward"))
    assert (ours["status"], ours["checked_images"]) == ("ok", "1 of 1")
    assert {row["status"] for row in rows.values()} == {"not applicable"}
