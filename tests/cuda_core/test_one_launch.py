"""The whole loop in one launch: every way to launch it, images that stay apart, and what it does not serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backend_checks import assert_same_bits, check_forward, make_bases, make_features, run_loop, uniform
from emulated import EmulatedBackend, installed

half_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture
def loop(core):
    """The backend of a device with two multiprocessors; every plan must serve forward by one launch."""

    def look(plan):
        assert plan.loop.one_launch

    backend = EmulatedBackend(core, 2, one_launch=True)
    backend.change_plan = look
    with installed(backend):
        yield backend


@pytest.mark.parametrize(
    ("cluster", "clusters", "positions", "channels"),
    [
        (1, 1, 410, 256),  # more tiles than stages, an odd number of them
        (1, 1, 250, 512),
        (2, 1, 600, 200),
        (2, 3, 400, 264),  # the last cluster has less to do
        (4, 2, 33, 72),  # most blocks have nothing
        (16, 1, 300, 512),  # two warps to a base
        (16, 2, 70, 136),
    ],
)
@half_dtypes
def test_every_way_to_launch_it(loop, dtype, cluster, clusters, positions, channels):
    check_loop(loop, make_features((2, positions, channels), dtype), cluster, clusters)


@pytest.mark.parametrize(
    ("cluster", "clusters", "positions", "channels"),
    [(1, 1, 264, 512), (2, 3, 400, 72), (4, 2, 40, 260), (16, 2, 168, 136)],
)
@half_dtypes
def test_every_way_to_launch_images(loop, dtype, cluster, clusters, positions, channels):
    """Positions fastest; blocks end between the boxes of 64 positions that y is stored by."""
    check_loop(loop, make_features((2, channels, positions), dtype).mT, cluster, clusters)


def check_loop(loop, x, cluster, clusters):
    batch, positions, channels = x.shape

    def change(plan):
        assert plan.loop.one_launch
        plan.loop.cluster, plan.loop.clusters = cluster, clusters
        plan.loop.positions = -(-positions // (cluster * clusters * 8)) * 8

    loop.change_plan = change
    check_forward(x, make_bases(channels, 21), "cuda", weight=uniform(batch, positions, seed=4), num_iters=3)


def test_an_image_of_nan_leaves_its_neighbours_alone(loop):
    x, bases = make_features((3, 90, 72), torch.bfloat16), make_bases(3, 72, 20)
    clean = run_loop(x, bases, "cuda", num_iters=2)
    x[1] = torch.nan
    spoiled = run_loop(x, bases, "cuda", num_iters=2)
    assert spoiled[0][1].isnan().all()
    for neighbour in (slice(1), slice(2, 3)):
        assert_same_bits(clean, spoiled, neighbour)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_sums_of_any_size(loop, scale):
    """What float16 cannot hold has a factor beside it."""
    x = make_features((1, 70, 64), torch.bfloat16) * scale
    check_forward(x, make_bases(64, 5), "cuda", scale=1 / scale if scale > 1 else 1.0, eps=0.0)


def test_a_slice_of_channels(loop):
    x = make_features((2, 70, 200), torch.float16)[..., 8:80]
    check_forward(x, make_bases(72, 64), "cuda")


def test_a_slice_of_positions(loop):
    x = make_features((2, 72, 200), torch.bfloat16)[..., 16:120].mT
    check_forward(x, make_bases(72, 64), "cuda")


def test_emulated_blocks_leave_mappings_to_the_process(loop):
    """Of 65530: tens of thousands of threads at once have stacks, and what runs after them needs memory too."""
    check_loop(loop, make_features((2, 70, 72), torch.bfloat16), cluster=16, clusters=2)
    assert len(Path("/proc/self/maps").read_text().splitlines()) < 20_000


def test_what_it_does_not_serve(core):
    def served(one_launch=True, **fields):
        problem = core.Problem()
        fields = {"positions": 100, "channels": 512, "num_bases": 64, "boxed": True, **fields}
        for name, value in {"dtype": core.Dtype.bfloat16, **fields}.items():
            setattr(problem, name, value)
        return core.plan(problem, core.Device(132, 227 * 1024, hopper=True, one_launch=one_launch)).loop.one_launch

    assert served()
    assert served(positions_fastest=True)
    assert not served(one_launch=False)
    assert not served(boxed=False)
    assert not served(channels=513)
    assert not served(num_bases=65)
    assert not served(dtype=core.Dtype.float32)


@pytest.mark.parametrize("positions", [1, 64, 65, 500, 65 * 65, 2**20])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 8, 9, 16, 100])
def test_blocks_of_a_launch(core, images, positions):
    problem = core.Problem()
    problem.batch, problem.positions, problem.dtype = images, positions, core.Dtype.bfloat16
    plan = core.plan(problem, core.Device(132, 227 * 1024, one_launch=True)).loop
    blocks = plan.cluster * plan.clusters
    assert plan.cluster in (1, 2, 4, 8, 16)
    assert plan.positions % 8 == 0
    assert plan.positions * (blocks - plan.cluster) < positions <= plan.positions * blocks
    if plan.clusters > 1:  # they wait for each other, so all must run at the same time
        assert images * blocks <= 132 * 8 / 9
