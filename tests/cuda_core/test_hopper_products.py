"""The products of csrc/hopper and the end of the unit: numbers that float16 cannot hold, images that stay apart, every
way to launch them.
"""

from __future__ import annotations

import pytest
import torch
from backend_checks import assert_same_bits, check, make_bases, make_features, normal, run, run_loop
from emulated import EmulatedBackend, installed
from unit_checks import check_unit, make_parameters, run_unit

LARGEST = 65504  # of float16
PRODUCTS, M_STEPS = ("reconstruction", "grad_x", "value_grad_x"), ("m_step", "value_m_step")


@pytest.fixture
def hopper(core):
    """The backend of a device with two multiprocessors; every plan must serve products by csrc/hopper."""

    def look(plan):
        assert all(getattr(plan, name).hopper for name in (*PRODUCTS, *M_STEPS, "unit_tail"))

    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = look
    with installed(backend):
        yield backend


def test_gradients_saturate_in_float16(hopper):
    # small features, so that the gradient of the logits stays in range
    inputs = {"x": make_features((1, 40, 72), torch.float16) / 64, "bases": make_bases(72, 5)}
    grads = normal(1, 72, 5, seed=5) * 1e5, None
    actual = run("step", inputs, grads, backend="cuda")["gradient of x"]
    exact = run("step", inputs, grads, dtype=torch.float64)["gradient of x"]
    beyond = exact.abs() > 1.01 * LARGEST
    assert 0 < beyond.sum() < beyond.numel()
    assert torch.equal(actual[beyond], LARGEST * exact[beyond].sign().half())
    torch.testing.assert_close(actual.double(), exact.clamp(-LARGEST, LARGEST), rtol=0.01, atol=0.01 * LARGEST)


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_an_image_of_nan_leaves_its_neighbours_alone(hopper, layout):
    x, bases = make_features((3, 72, 72), torch.bfloat16, layout), make_bases(3, 72, 20)
    clean = run_loop(x, bases, "cuda", num_iters=2)
    x[1] = torch.nan
    spoiled = run_loop(x, bases, "cuda", num_iters=2)
    assert spoiled[0][1].isnan().all()
    assert spoiled[2][1].isnan().all()
    for neighbour in (slice(1), slice(2, 3)):
        assert_same_bits(clean, spoiled, neighbour)


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_an_image_of_nan_leaves_the_unit_of_its_neighbours_alone(hopper, layout):
    x = make_features((3, 1, 72, 72), torch.bfloat16, layout)
    parameters = make_parameters(72, 20, torch.bfloat16)
    clean = run_unit(x, parameters, backend="cuda", num_iters=1)
    x[1] = torch.nan
    spoiled = run_unit(x, parameters, backend="cuda", num_iters=1)
    assert spoiled[0][1].isnan().all()
    for neighbour in (slice(1), slice(2, 3)):
        assert_same_bits(clean, spoiled, neighbour)


def use_splits(plan):
    """The end of the unit by blocks alone."""
    plan.unit_tail.cluster = 1
    for name in (*PRODUCTS, *M_STEPS, "unit_tail"):
        getattr(plan, name).splits = 3


def use_few_slots(plan):
    """As little shared memory as the kernels run with; right operands come again with every tile. The unit in pairs."""
    for name in PRODUCTS:
        products = getattr(plan, name)
        products.slots, products.resident, products.shared_memory = 1, False, (64 + 32) * 1024 + 128
    for name in M_STEPS:
        m_step = getattr(plan, name)
        m_step.shared_memory = (m_step.shared_memory - 128) // m_step.slots + 128
        m_step.slots = 1
    plan.unit_tail.slots, plan.unit_tail.shared_memory = 1, (40 + 96) * 1024 + 128
    assert plan.unit_tail.cluster == 2


@pytest.mark.parametrize("change", [use_splits, use_few_slots])
@pytest.mark.parametrize("layout", ["rows", "image"])
def test_every_plan_gives_right_results(hopper, layout, change):
    hopper.change_plan = change
    inputs = {
        "x": make_features((1, 400, 136), torch.bfloat16, layout),
        "logit_bases": make_bases(136, 33),
        "value_bases": normal(264, 33, seed=3),
    }
    grad = make_features((1, 400, 264), torch.bfloat16, layout, seed=6)
    check("reconstruct", inputs, (grad,), "cuda")
    x = make_features((1, 1, 400, 264), torch.bfloat16, layout)
    check_unit(x, make_parameters(264, 33, torch.bfloat16), "cuda", num_iters=1)


@pytest.mark.parametrize(("layout", "positions"), [("rows", 130), ("image", 200)])
def test_the_same_bits_by_blocks_that_share_responsibilities(hopper, layout, positions):
    """With all right operands on chip, and with those that come again; one block may load lines beyond the image."""
    inputs = {"x": make_features((1, positions, 256), torch.float16, layout), "bases": make_bases(256, 33)}
    grads = normal(1, 256, 33, seed=5), None

    def gradient(cluster, change):
        def change_products(plan):
            change(plan)
            assert plan.grad_x.cluster == 2
            plan.grad_x.cluster = cluster

        hopper.change_plan = change_products
        hopper.planned.cache_clear()
        return run("step", inputs, grads, backend="cuda")["gradient of x"]

    alone = gradient(1, use_splits)
    for change in (use_splits, use_few_slots):
        assert torch.equal(gradient(2, change), alone)


@pytest.mark.parametrize("positions", [1, 31, 129])
def test_units_of_any_size(hopper, positions):
    """The same bits by blocks alone and by two that share loads, of which the second may have no positions."""
    x, parameters = make_features((2, 1, positions, 8), torch.float16), make_parameters(8, 3, torch.float16)

    def check_in(cluster):
        def change(plan):
            plan.unit_tail.splits, plan.unit_tail.cluster = 1, cluster

        hopper.change_plan = change
        hopper.planned.cache_clear()
        return check_unit(x, parameters, "cuda", num_iters=2)

    assert_same_bits(check_in(1), check_in(2))


def test_a_weight_from_any_address_on(hopper):
    x, parameters = make_features((1, 1, 40, 64), torch.bfloat16), make_parameters(64, 5, torch.bfloat16)
    expected = run_unit(x, parameters, backend="cuda")
    memory = torch.zeros(64 * 64 + 1, dtype=torch.bfloat16)
    shifted = memory[1:].view(64, 64).copy_(parameters["weight2"])
    assert_same_bits(expected, run_unit(x, parameters | {"weight2": shifted}, backend="cuda"))


def test_slices_are_read_and_written_in_place(hopper):
    """Boxes of a picture within a larger one, of a head within its neighbours."""
    wide = make_features((2, 90, 160), torch.float16)
    inputs = {"x": wide[:, 8:80, 16:88], "bases": make_bases(2, 72, 9)}
    check("attention", inputs, (normal(2, 72, 72, seed=2, dtype=torch.float16), None), "cuda", num_iters=2)
    heads = make_features((2, 2, 70, 40), torch.float16, "heads inside")
    check("attention", {"x": heads, "bases": make_bases(2, 40, 9)}, (normal(*heads.shape, seed=2).half(), None), "cuda")
