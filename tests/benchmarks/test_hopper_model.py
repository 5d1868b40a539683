"""The model of the Hopper kernels' time: never below the floor, and growing with the work."""

import pytest

from benchmarks.case import Case
from benchmarks.floor import H200, floor
from benchmarks.hopper import model


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("side", [33, 65, 129])
@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_no_prediction_is_below_the_floor(mode, side, batch):
    case = Case(batch, 512, side, side, 64, 3, "bfloat16", "channels_last")
    predicted = sum(getattr(model, mode)(model.Shape(batch, side * side)).values())
    assert predicted > floor(case, mode, H200).seconds * 1e6


def test_more_work_takes_longer():
    times = [sum(model.forward(model.Shape(batch, 65 * 65)).values()) for batch in (1, 8, 16, 32)]
    assert times == sorted(times)
    assert (
        times[-1] - times[-2]
        > floor(Case(16, 512, 65, 65, 64, 3, "bfloat16", "channels_last"), "forward", H200).seconds * 1e6
    )


@pytest.mark.parametrize("batch", [1, 8, 16])
def test_features_of_8_bits_take_less_than_to_widen_them_first(batch):
    shape = model.Shape(batch, 65 * 65)
    widened = 1.5 * shape.feature_bytes / model.MEMORY_RATE / model.CLOCK * 1e6
    for aligned in (True, False):
        eight, sixteen = (sum(model.forward(shape, aligned=aligned, eight_bits=few).values()) for few in (True, False))
        assert (
            floor(Case(batch, 512, 65, 65, 64, 3, "float8_e4m3fn", "channels_last"), "forward", H200).seconds * 1e6
            < eight
        )
        assert eight < sixteen + widened + 2


@pytest.mark.parametrize("batch", [1, 8, 16])
def test_one_launch_between_iterations_is_faster_than_four(batch):
    shape = model.Shape(batch, 65 * 65)
    assert model.between_iterations(shape, together=True) < model.between_iterations(shape, together=False)
    assert sum(model.unit(shape, together=True).values()) < sum(model.unit(shape, together=False).values())


@pytest.mark.parametrize(("batch", "faster"), [(1, False), (2, False), (8, True), (16, True)])
def test_pairs_of_blocks_end_the_unit_faster_where_l2_binds(batch, faster):
    shape = model.Shape(batch, 65 * 65)
    alone, pairs = (model.end_of_unit(shape, cluster) for cluster in (1, 2))
    assert (pairs < alone) == faster
    assert model.unit(shape)["end"] <= model.unit(shape, pairs=False)["end"]
    assert 1 < model.unit(shape, aligned=False)["end"] / model.unit(shape)["end"] < 1.3


@pytest.mark.parametrize(
    ("batch", "channels", "faster"), [(1, 512, False), (8, 512, True), (16, 512, True), (16, 640, False)]
)
def test_pairs_of_blocks_share_responsibilities_where_l2_binds(batch, channels, faster):
    shape = model.Shape(batch, 65 * 65, channels)
    blocks = batch * model.splits(shape)
    for count in (1, 6):
        alone, pairs = (model.products(shape, count, blocks, pairs=pairs) for pairs in (False, True))
        assert pairs <= alone
        assert (pairs < alone) == faster


def test_table_names_every_shape(capsys):
    model.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{mode} ({batch}, 65 x 65) {order}"
        for mode in ("forward", "forward of 8 bits", "backward", "unit")
        for order in ("channels last", "contiguous")
        for batch in (1, 8, 16)
    ]
