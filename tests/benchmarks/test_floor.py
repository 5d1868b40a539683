"""The floor is the table of the mathematics document: an H200, bfloat16, K = 64, T = 3."""

import pytest
import torch

from benchmarks.case import Case
from benchmarks.floor import H200, floor, measure_rates, rates_of, times

# batch, channels, height; microseconds of memory and arithmetic, forward then backward
TABLE = [
    (16, 512, 65, (32, 39), (48, 96)),
    (1, 512, 65, (2.0, 2.5), (3.0, 6.0)),
    (8, 512, 97, (36, 44), (54, 106)),
    (1, 512, 129, (7.9, 9.7), (12, 24)),
    (1, 512, 1024, (499, 611), (749, 1483)),
]


def case(batch, channels, side, dtype="bfloat16"):
    return Case(batch, channels, side, side, 64, 3, dtype, "contiguous")


@pytest.mark.parametrize(("batch", "channels", "side", "forward", "backward"), TABLE)
def test_times_are_those_of_the_table(batch, channels, side, forward, backward):
    for mode, expected in (("forward", forward), ("backward", backward)):
        found = [1e6 * seconds for seconds in times(case(batch, channels, side), mode, H200)]
        # the table has two significant digits
        assert found == pytest.approx(expected, rel=0.025)
        least = floor(case(batch, channels, side), mode, H200)
        assert (1e6 * least.seconds, least.bound) == (pytest.approx(max(found)), "arithmetic")


def test_full_is_the_sum_of_both_passes():
    passes = [floor(case(16, 512, 65), mode, H200).seconds for mode in ("forward", "backward")]
    assert floor(case(16, 512, 65), "full", H200).seconds == sum(passes)


def test_float32_moves_twice_the_bytes():
    narrow, wide = (times(case(1, 64, 9, dtype), "forward", H200)[0] for dtype in ("bfloat16", "float32"))
    assert wide == 2 * narrow


def test_memory_bound_case_says_so():
    assert floor(Case(1, 64, 9, 9, 1, 1, "float32", "contiguous"), "forward", H200).bound == "memory"


def test_rates_are_measured_where_no_constants_are_known():
    rates = measure_rates(torch.device("cpu"), "float32", 1 << 20, 64)
    assert rates.source == "measured in this run"
    assert rates.bandwidth > 0
    assert rates.operations > 0


def test_h200_constants_hold_for_bfloat16_only(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("benchmarks.floor.measure_rates", lambda *_: "measured")
    assert rates_of(torch.device("cuda"), "bfloat16") is H200
    assert rates_of(torch.device("cuda"), "float32") == "measured"


def test_features_of_8_bits_are_read_as_such_and_written_as_16():
    narrow, wide = (times(case(1, 64, 9, dtype), "forward", H200) for dtype in ("float8_e4m3fn", "bfloat16"))
    assert narrow == (wide[0] * 3 / 4, wide[1])
