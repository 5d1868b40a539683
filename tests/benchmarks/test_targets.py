"""The table of targets from made-up measurements."""

import pytest

from benchmarks.ratios import lines, order_ratios, position_ratios
from benchmarks.results import COLUMNS, append
from benchmarks.targets import hopper_targets, rivals, targets, write

RECORDED = '{"test": "a", "outcome": "passed", "seconds": 1, "recorded": {"kept_over_promised": "1.000"}}'


def row(milliseconds, *, batch=16, side=65, mode="forward", peer="ema_ops/cuda", order="channels_last", **more):
    """A measured row; the graph's replay takes `milliseconds`, a call from Python a second longer."""
    case = {"batch": batch, "height": side, "width": side, "positions": side * side, "memory_order": order}
    sizes = {"channels": 512, "num_bases": 64, "num_iters": 3, "dtype": "bfloat16", "device": "made up"}
    times = {"graph_p50_ms": milliseconds, "p50_ms": milliseconds + 1000, "status": "ok"}
    given = {**case, **sizes, **times, "mode": mode, "peer": peer, **more}
    return {**dict.fromkeys(COLUMNS, ""), **{name: str(value) for name, value in given.items()}}


def found(rows, **properties):
    return {t.name: t for t in targets(rows, {name: [value] for name, value in properties.items()})}


def test_without_measurements_nothing_is_met():
    assert {t.met for t in targets([], {})} == {"not measured"}


@pytest.mark.parametrize(("value", "met"), [(2.5, "goal"), (2.9, "must"), (3.1, "no")])
def test_over_floor(value, met):
    target = found([row(0.1, graph_over_floor=value)])["forward (16, 65 x 65) over floor"]
    assert (target.measured, target.met) == (value, met)
    # another case, another peer and another mode are not meant
    for other in (
        {"batch": 1},
        {"side": 33},
        {"peer": "ema_ops/triton"},
        {"mode": "backward"},
        {"order": "contiguous"},
    ):
        assert found([row(0.1, graph_over_floor=value, **other)])[target.name].met == "not measured"


def test_a_row_without_a_graph_or_result_is_not_measured():
    name = "forward B = 1, 65 x 65, us"
    assert found([row(0.04, batch=1)])[name].measured == pytest.approx(40)
    assert found([row(0.04, batch=1, graph_p50_ms="")])[name].met == "not measured"
    assert found([row(0.04, batch=1, status="wrong result")])[name].met == "not measured"


def test_memory_orders_where_n_is_odd():
    rows = [row(1.0), row(1.2, order="contiguous"), row(1.0, side=64), row(9.0, side=64, order="contiguous")]
    assert [round(ratio, 3) for _, ratio in order_ratios(rows)] == [1.2, 9.0]
    target = found(rows)["contiguous, N odd, over channels-last"]
    assert (round(target.measured, 3), target.met) == (1.2, "must")
    assert "contiguous B=16 65x65 forward" in target.note


def test_the_worst_case_counts_against_triton():
    triton = {"peer": "ema_ops/triton"}
    rows = [row(1.0), row(2.0, **triton), row(1.2, mode="backward"), row(1.0, mode="backward", **triton)]
    target = found(rows)["time over that of the Triton backend"]
    assert (round(target.measured, 3), target.met) == (1.2, "no")
    assert target.note.endswith("backward")


def test_time_per_position_at_constant_work():
    rows = [row(1.0, batch=256, side=64), row(0.9, batch=16, side=256), row(1.15, batch=1, side=1024), row(7.0)]
    assert [round(ratio, 3) for _, ratio in position_ratios(rows)] == [0.9, 1.15]
    target = found(rows)["time per position, N = 4k to 1M, apart"]
    assert (round(target.measured, 3), target.met) == (1.15, "must")
    assert sum("per position" in line for line in lines(rows)) == 2


def test_the_last_measurement_of_a_case_counts():
    assert found([row(9.0, batch=1), row(0.03, batch=1)])["forward B = 1, 65 x 65, us"].met == "goal"


def test_hopper_takes_the_best_of_its_parts_and_never_the_portable_kernels():
    tiles, both = {"peer": "ema_ops/cuda:tiles"}, {"peer": "ema_ops/cuda:overlap,tiles"}
    rows = [row(0.01), row(0.09, **tiles), row(0.06, **both), row(0.04, batch=1, **both)]
    rows += [row(0.15, mode="unit", peer="ema_ops/cuda folded"), row(0.6, mode="unit", peer="official-compiled")]
    told = {t.name.removeprefix("Hopper: "): t for t in hopper_targets(rows)}
    forward = told["forward (16, 65 x 65), us"]
    assert (forward.measured, forward.met, forward.note) == (pytest.approx(60), "must", both["peer"])
    assert told["unit in evaluation (16, 65 x 65), us"].met == "must"
    assert told["unit over the official one compiled"].measured == pytest.approx(0.25)
    assert told["backward (16, 65 x 65), us"].met == "not measured"
    assert {t.met for t in hopper_targets([])} == {"not measured"}


def test_rivals_are_told_how_much_longer_they_take():
    ((case, times),) = rivals([row(1.0), row(5.0, peer="sdpa"), row(3.0, peer="ema_ops/triton")]).items()
    assert times == {"sdpa": 5.0}
    # a narrow case is another one, and no target is about it
    assert rivals([row(1.0, channels="64"), row(5.0, peer="sdpa", channels="64")]) == {}
    assert "65x65 forward" in case


def test_the_file_takes_all_folders_and_what_the_tests_recorded(tmp_path):
    append(tmp_path / "measurements.csv", [row(0.1, graph_over_floor=2.6), row(0.3, peer="sdpa")])
    append(
        tmp_path / "constant_work" / "measurements.csv", [row(1.0, batch=256, side=64), row(1.0, batch=1, side=1024)]
    )
    (tmp_path / "tests.jsonl").write_text(RECORDED)
    (tmp_path / "latency.csv").write_text(
        "peer,height,overhead_us\nema_ops/cuda,33,9\nema_ops/cuda,65,11.5\nema_ops/triton,65,1\n"
    )
    text = write(tmp_path)
    assert text == (tmp_path / "targets.md").read_text()
    assert "Measured on: made up" in text
    assert "65x65 forward | - | - | - | - | - | - | 3 | - |" in text
    assert "| forward (16, 65 x 65) over floor | 3 | 2.5 | 2.6 | must |" in text
    assert "| kept for backward over what is promised | 1 | - | 1 | must |" in text
    assert "| time per position, N = 4k to 1M, apart | 1.2 | 1.1 | 1 | goal |" in text
    assert "| Hopper: call over replay, forward B = 1, us | 25 | 12 | 11.5 | goal | ema_ops/cuda |" in text
    assert "| peak extra memory of forward over Y | 1.6 | - | - | not measured |" in text
