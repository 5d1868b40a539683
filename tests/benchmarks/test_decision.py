"""What is to be turned on for Hopper, from made-up measurements and tests."""

from pathlib import Path

import pytest
from test_targets import row

from benchmarks.hopper.decision import DEFAULTS, faster_from, gains, measured, write
from benchmarks.records import Outcome

ROOT_LINES = [f"{name} = NEVER" for name in DEFAULTS]


def rows(tiles, both):
    """The times with `tiles` and with `overlap,tiles` over those of the portable kernels, by batch."""
    found = []
    for batch in tiles:
        found.append(row(1.0, batch=batch, peer="ema_ops/cuda"))
        found.append(row(tiles[batch], batch=batch, peer="ema_ops/cuda:tiles"))
        found.append(row(both[batch], batch=batch, peer="ema_ops/cuda:overlap,tiles"))
    return found


def outcomes_of(outcome="passed"):
    test = "tests/gpu/test_hopper.py::test_small_loop[{}-dtype0]"
    return {"hopper": [Outcome(test.format("tiles"), outcome), Outcome(test.format("overlap"), "passed")]}


def test_a_part_is_proposed_from_where_it_always_gains(tmp_path):
    measurements = rows({1: 1.1, 8: 0.9, 16: 0.7}, {1: 1.0, 8: 0.8, 16: 0.6})
    text = write(measurements, outcomes_of(), tmp_path / "decision.md")
    assert (tmp_path / "decision.md").read_text() == text
    assert "| tiles | right: 1 tests | 2 of 3 cases |" in text
    assert f"`FORWARD_TILES = from({8 * 65 * 65})`" in text
    assert "`BACKWARD_TILES = NEVER`" in text
    assert f"`OVERLAP = from({65 * 65})`" in text
    assert "`LOOP = NEVER`" in text
    assert "| forward bfloat16 channels_last B=16 65x65 | 1000 | 700 (0.7x) | 600 (0.6x) | overlap,tiles |" in text


@pytest.mark.parametrize(
    ("outcome", "words"), [("failed", "WRONG: 1 of 1 tests"), ("never ended", "unclear: 1 of 1 tests never ended")]
)
def test_what_was_wrong_or_stopped_is_never_proposed(outcome, words, tmp_path):
    text = write(rows({16: 0.5}, {16: 0.4}), outcomes_of(outcome), tmp_path / "decision.md")
    assert f"| tiles | {words}" in text
    assert "`FORWARD_TILES = NEVER`" in text
    assert "`OVERLAP = from(67600)`" in text


def test_what_was_not_tested_is_not_proposed(tmp_path):
    text = write(rows({16: 0.5}, {16: 0.4}), {}, tmp_path / "decision.md")
    assert "from(" not in text
    assert "not tested" in text


def test_noise_is_no_gain():
    times = measured(rows({16: 0.99}, {16: 0.98}))
    assert faster_from(gains(times, "tiles", ("forward",))) is None


def test_of_the_unit_the_faster_way_counts():
    found = measured([row(2.0, mode="unit"), row(1.5, mode="unit", peer="ema_ops/cuda folded")])
    assert [list(times.values()) for times in found.values()] == [[1500.0]]


def test_the_lines_are_those_of_the_core():
    text = (Path(__file__).parents[2] / "csrc" / "hopper" / "defaults.h").read_text()
    assert all(f"constexpr int64_t {line};" in text for line in ROOT_LINES)


def test_features_of_8_bits_decide_nothing():
    slow = [row(time, peer=f"ema_ops/cuda{on}", dtype="float8_e4m3fn") for on, time in (("", 1.0), (":tiles", 2.0))]
    assert gains(measured(rows({16: 0.7}, {16: 0.6}) + slow), "tiles", ("forward",)).keys() == {
        ("forward", "channels_last", 16, 65, "bfloat16")
    }
