"""The kernels for Hopper against float64: shapes they serve, small ones first, in a build that traps endless waits."""

import pytest
import torch
from calls import MAIN, ORDERS, REPEATS, check_loop, draw_call, draw_unit, place, same_bits
from examples import features, unit_bases
from judge import assert_close_to_reference
from unit_checks import check_unit, run_unit

from ema_ops import em_attention, reference
from ema_ops.backends import cuda

# N = 136 and 200: all rows of both memory orders are whole units of 16 bytes; columns of the others start anywhere
SMALL = [(1, 1, 64, 5), (2, 31, 64, 64), (2, 136, 72, 9), (1, 200, 128, 64), (3, 136, 264, 33), (2, 200, 512, 64)]


@pytest.fixture(params=["tiles", "overlap", "loop", "tiles,overlap,loop"])
def parts(request, monkeypatch):
    """What is on, in every combination; plans made with other parts are forgotten."""
    if cuda.BACKEND.unavailable() is not None:
        pytest.skip(f"backend cuda: {cuda.BACKEND.unavailable()}")
    if torch.cuda.get_device_capability() != (9, 0) or "90a" not in cuda.BACKEND.core.architectures:
        pytest.skip("no Hopper, or a core without 90a")
    monkeypatch.setenv("EMA_OPS_HOPPER", request.param)
    cuda.BACKEND.planned.cache_clear()
    yield request.param
    cuda.BACKEND.planned.cache_clear()


def see_plans(monkeypatch, see):
    """`see` is called with every plan, and may change it."""
    make = cuda.BACKEND.make_plan

    def make_plan(described, device):
        plan = make(described, device)
        see(plan)
        return plan

    monkeypatch.setattr(cuda.BACKEND, "make_plan", make_plan)


@pytest.fixture
def plans(parts, monkeypatch):
    """The plans that the calls of a test are launched with."""
    seen = []
    see_plans(monkeypatch, seen.append)
    return seen


def starts_anywhere(shape, order):
    """Whether no boxes of features with positions fastest can be copied; one position is a row in either order."""
    return order == "columns" and shape[1] > 1 and shape[1] % 8 != 0


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_loop(parts, plans, dtype, shape, order):
    check_loop(draw_call("cuda", shape, dtype, order), on="cpu")
    assert all(plan.overlap == ("overlap" in parts) for plan in plans)
    assert any(plan.m_step.hopper for plan in plans) == ("tiles" in parts)
    assert any(plan.any_rows for plan in plans) == ("tiles" in parts and starts_anywhere(shape, order))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1, 64, 5), (2, 33, 70, 9), (3, 136, 264, 33), MAIN], ids=str)
@pytest.mark.parametrize("parts", ["overlap", "tiles", "tiles,overlap,loop"], indirect=True)
def test_features_of_8_bits(parts, plans, shape, order):
    batch, positions, channels, num_bases = shape
    x = place(features(batch, positions, channels, dtype=torch.float32).to(torch.float8_e4m3fn), order, "cuda")
    bases = unit_bases(channels, num_bases, dtype=torch.float32)
    ours = em_attention(x, bases.cuda(), backend="cuda")
    assert all(plan.eight_bits == ("tiles" in parts) for plan in plans[:1])
    exact, plain = (reference.em_attention(x.cpu().to(d), bases.to(d)) for d in (torch.float64, torch.bfloat16))
    for name, got, *yardsticks in zip(("y", "bases"), ours, exact, plain, strict=True):
        assert_close_to_reference(got.cpu(), *yardsticks, name=name)


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_unit(parts, plans, dtype, shape, order):
    check_unit(*draw_unit(shape, dtype, order), "cuda", on="cpu", num_iters=2)
    # the position of a single column has a stride of 1, of which there are no boxes either
    served = "tiles" in parts and (order == "rows" or shape[1] > 1)
    assert any(plan.unit_tail.hopper for plan in plans) == served
    assert any(plan.unit_tail.any_rows for plan in plans) == ("tiles" in parts and starts_anywhere(shape, order))


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("parts", ["tiles", "tiles,overlap,loop"], indirect=True)
def test_small_unit_in_pairs_of_blocks(parts, plans, monkeypatch, shape, order):
    """Its end by two blocks that share loads, where plans have blocks alone: the second may have no positions."""

    def use_pairs(plan):
        plan.unit_tail.splits, plan.unit_tail.cluster = 1, 2

    see_plans(monkeypatch, use_pairs)
    check_unit(*draw_unit(shape, torch.bfloat16, order), "cuda", on="cpu", num_iters=2)
    assert plans


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(1, 1, 256, 5), (2, 31, 136, 64), (2, 200, 512, 64)], ids=str)
@pytest.mark.parametrize("parts", ["tiles", "tiles,overlap,loop"], indirect=True)
def test_small_loop_in_pairs_of_blocks(parts, plans, monkeypatch, shape, order):
    """Two blocks share responsibilities, where plans have blocks alone; those of one may be beyond the image."""

    def use_pairs(plan):
        plan.reconstruction.cluster = plan.grad_x.cluster = 2

    see_plans(monkeypatch, use_pairs)
    check_loop(draw_call("cuda", shape, torch.bfloat16, order), on="cpu")
    assert plans


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_the_same_bits_of_the_unit(parts, plans, order):
    x, parameters = draw_unit((4, 64 * 64, 512, 64), order=order)
    first = check_unit(x, parameters, "cuda")
    assert any(plan.unit_tail.cluster == 2 for plan in plans) == ("tiles" in parts)
    for _ in range(REPEATS):
        assert same_bits(run_unit(x, parameters, backend="cuda"), first)


def test_weights(parts):
    weight = torch.rand(2, 200, generator=torch.Generator().manual_seed(5)).cuda()
    for num_iters, grad_iters in ((1, 1), (3, 3), (4, 2)):
        call = draw_call("cuda", (2, 200, 256, 40), weight=weight, num_iters=num_iters, grad_iters=grad_iters)
        check_loop(call, on="cpu", case=f"T = {num_iters}, {grad_iters} with gradient")


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("positions", [65 * 65, 64 * 64])
def test_the_same_bits_a_hundred_times(parts, plans, positions, order):
    call = draw_call("cuda", (4, positions, 512, 64), order=order)
    check_loop(call)
    assert any(plan.grad_x.cluster == 2 for plan in plans) == ("tiles" in parts)
    first = call()
    for _ in range(REPEATS):
        assert same_bits(call(), first)


def test_a_nan_image_leaves_its_neighbours_alone(parts):
    call = draw_call("cuda", MAIN)
    expected = call()
    with torch.no_grad():
        call.x[1].fill_(float("nan"))
    kept, results = [0, 2, 3], call()
    assert same_bits([result[kept] for result in results[:3]], [result[kept] for result in expected[:3]])


def test_replays_of_a_graph_follow_their_inputs(parts):
    call, other = draw_call("cuda", MAIN), draw_call("cuda", MAIN, seed=7)
    expected = other()
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    call.copy_(other)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert same_bits(results, expected)


def test_calls_one_behind_the_other(parts):
    """Each reads what the one in front of it wrote last, with nothing between their kernels."""
    call = draw_call("cuda", (1, 300, 256, 64))
    expected = call()
    for _ in range(50):
        y = call()[0].detach()
        with torch.no_grad():
            call.x.copy_(y.mul(0).add(call.x))
    assert same_bits(call(), expected)
