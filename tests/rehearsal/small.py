"""Tiny sizes in place of those of the GPU tests and benchmarks, which keep the names of what they stand for."""

from __future__ import annotations

import dataclasses

import pytest

# scripts with sizes of their own
SHRUNK = ("benchmarks.latency", "benchmarks.folding", "benchmarks.ncu", "benchmarks.precision")
# what the tests see on CPU tensors and not on a GPU, by the start of the test's name
DIFFERENT = {
    "test_values_on_a_gpu_are_checked_on_request_only": "values of CPU tensors are always checked",
    "test_tf32_products_where_pytorch_may_use_them": "PyTorch's own products on the CPU are never tf32",
    "test_the_same_bits_of_the_unit[tiles": "the small unit has too few blocks for pairs",
    "test_the_same_bits_a_hundred_times[tiles": "so have few channels",
    "test_small_loop_in_pairs_of_blocks[": "they cannot even be forced into pairs",
}


def shrink(shape: tuple[int, ...], keep_positions: bool = False) -> tuple[int, ...]:
    """[B, N, C, K] as small as its kind of shape allows: N odd or not, K beyond one kernel or not."""
    batch, positions, channels, bases = shape
    positions = positions if keep_positions or positions < 50 else 40 + positions % 8
    return batch, positions, min(channels, 24), 66 if bases > 64 else min(bases, 9)


def shrink_tests() -> None:
    """`draw_call` and `draw_unit` of the GPU tests draw the small shape of the one they are asked for."""
    import calls

    calls.MAIN = main = shrink(calls.MAIN)
    calls.REPEATS = 2
    calls.LARGEST = (60, 24, 70)

    def small(draw, place: int):
        def draw_small(*args, **kwargs):
            given = args[place] if len(args) > place else kwargs.pop("shape", main)
            return draw(*args[:place], shrink(given, "weight" in kwargs), *args[place + 1 :], **kwargs)

        return draw_small

    calls.draw_call, calls.draw_unit = small(calls.draw_call, 1), small(calls.draw_unit, 0)


def shrink_benchmarks() -> None:
    """Cases keep their labels and are measured tiny and briefly."""
    from benchmarks import floor, folding, latency, microbenchmark, ncu, options, precision

    labels = {}
    all_cases, row, checked = options.Options.cases, microbenchmark.Bench._row, options._checked

    def cases(self):
        found = []
        for case in all_cases(self):
            side = 5 if case.height % 2 else 4
            batch = min(case.batch, 2)
            tiny = dataclasses.replace(
                case, batch=batch, channels=64, height=side, width=side + len(labels), num_bases=4
            )
            labels[tiny] = case
            found.append(tiny)
        return found

    options.Options.cases = cases
    options._checked = lambda asked: dataclasses.replace(checked(asked), seconds=1e-4)
    microbenchmark.Bench._row = lambda self, case, mode, peer: row(self, labels.get(case, case), mode, peer)
    floor.COPY_BYTES, floor.MATRIX_SIDE = {"cuda": 1 << 16}, {"cuda": 32}
    measure = folding.measure
    folding.SHAPES, folding.measure = [(64, 5, 4)], lambda x, bases, mode, repeats: measure(x[:2], bases, mode, 1)
    draw, size = latency.draw, {"channels": 24, "height": 5, "width": 5, "num_bases": 4}
    latency.draw = lambda case, *args, **kwargs: draw(dataclasses.replace(case, **size), *args, **kwargs)
    latency.SIZES, latency.WARM_UP, latency.REPEATS = (65,), 1, 2
    precision.POSITIONS, precision.CHANNELS, precision.NUM_BASES = 33, 64, 4
    ncu.SIZES, ncu.SHAPES = (64, 5, 5, 4, 3), tuple((mode, min(batch, 2)) for mode, batch in ncu.SHAPES)


def pytest_collection_modifyitems(items):
    for item in items:
        for start, reason in DIFFERENT.items():
            if item.name.startswith(start):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
