"""The plan, a pure function of a shape and a device: the limits of the device and the memory promised hold."""

from __future__ import annotations

import pytest
from emulated import DEVICES, KIB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

E_STEPS = ("e_step", "iteration", "gradient", "first_gradient", "last_gradient", "value_gradient")
ENTRIES = (
    "em_forward", "em_backward", "em_step", "em_step_backward", "em_reconstruct", "em_reconstruct_backward",
    "em_attend", "em_unit",
)  # fmt: skip
GRID_LIMIT = 2**31 - 1


def make_problem(core, *, dtype="bfloat16", **fields):
    problem = core.Problem()
    problem.dtype = getattr(core.Dtype, dtype)
    fields = {"value_channels": fields.get("channels", 1), "num_iters": 3, "grad_iters": 3, **fields}
    for name, value in fields.items():
        setattr(problem, name, value)
    return problem


def paper(core, **fields):
    """One picture of 65 x 65 with 512 channels and 64 bases, or `fields` instead."""
    return make_problem(core, **{"positions": 65 * 65, "channels": 512, "num_bases": 64, **fields})


def device(core, name):
    return core.Device(*DEVICES[name])


def e_step_bytes(problem, plan, has_sums):
    """The shared memory that the kernels of an E-step lay out."""
    rows = 64 if problem.num_bases <= 64 else 256
    return (
        plan.feature_slots * 8 * KIB
        + plan.row_slots * rows * 128 * (2 if has_sums else 1)
        + (8 * KIB if plan.fused else 0)
        + (2 if rows == 64 else 6) * KIB
    )


def check_e_step(core, problem, plan, limit, *, has_sums, has_values):
    tiles, width = -(-problem.positions // 64), 32 if problem.dtype == core.Dtype.float32 else 64
    chunks = -(-problem.channels // width) + (-(-problem.value_channels // width) if has_values else 0)
    assert 1 <= plan.splits <= tiles
    assert problem.batch * problem.heads * plan.splits <= GRID_LIMIT
    assert plan.shared_memory == e_step_bytes(problem, plan, has_sums) <= limit
    if plan.fused:
        assert problem.dtype != core.Dtype.float32
        assert problem.num_bases <= 64
        assert chunks <= plan.feature_slots
        assert chunks <= 8
        assert plan.rows_resident or plan.row_slots >= 2
    else:
        assert plan.row_slots >= 1
        assert plan.feature_slots >= (2 if plan.rows_resident else 1)
        assert plan.rows_resident or plan.feature_slots == plan.row_slots <= 4
    if plan.rows_resident:
        assert plan.row_slots == chunks


def check_unit_tail(core, problem, plan, limit):
    """Responsibilities and a chunk of channels stay; pieces of 512 bytes of y come, and x at the end takes 32 KiB."""
    size = 4 if problem.dtype == core.Dtype.float32 else 2
    kept = 64 * size * -(-problem.num_bases // 64) * 64 + 8 * KIB
    assert 1 <= plan.slots <= 3
    assert 32 * KIB <= plan.shared_memory == kept + plan.slots * 512 // size * 128 <= limit
    assert (
        problem.batch * problem.heads * -(-problem.positions // 64) * -(-problem.channels * size // 512) <= GRID_LIMIT
    )


def check_m_step(problem, plan, channels, limit):
    bases, padded_channels = -(-problem.num_bases // 64) * 64, -(-channels // 64) * 64
    group = min(8 // (bases // 64) * 64, padded_channels)
    assert 1 <= plan.slots <= 3
    assert plan.shared_memory == plan.slots * 128 * (bases + group) <= limit
    assert 1 <= plan.splits <= -(-problem.positions // 64)
    assert problem.batch * problem.heads * plan.splits * -(-padded_channels // group) <= GRID_LIMIT


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(1, 5000),
    heads=st.integers(1, 8),
    positions=st.integers(1, 2**20),
    channels=st.integers(1, 1024),
    value_channels=st.integers(1, 1024),
    num_bases=st.integers(1, 256),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    weighted=st.booleans(),
    name=st.sampled_from(sorted(DEVICES)),
)
def test_every_plan_keeps_the_limits(core, name, **fields):
    problem, limit = make_problem(core, **fields), DEVICES[name][1]
    plan = core.plan(problem, device(core, name))
    for step in E_STEPS:
        has_sums, has_values = step.endswith("gradient") and step[0] != "v", step in ("last_gradient", "value_gradient")
        check_e_step(core, problem, getattr(plan, step), limit, has_sums=has_sums, has_values=has_values)
    for step in ("e_step", "first_gradient", "last_gradient", "value_gradient"):
        assert not getattr(plan, step).fused
    check_m_step(problem, plan.m_step, problem.channels, limit)
    check_m_step(problem, plan.value_m_step, problem.value_channels, limit)
    check_unit_tail(core, problem, plan.unit_tail, limit)
    for entry in ENTRIES:
        assert getattr(core, f"{entry}_bytes")(problem, plan) > 0


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_fused(core, name, dtype):
    half, on = dtype != "float32", device(core, name)
    assert core.plan(paper(core, dtype=dtype), on).iteration.fused == half
    assert not core.plan(paper(core, dtype=dtype, num_bases=65), on).iteration.fused
    assert not core.plan(paper(core, dtype=dtype, channels=513), on).iteration.fused
    # two chunks of rows beside all features: too much for the smallest shared memory
    assert core.plan(paper(core, dtype=dtype), on).gradient.fused == (half and DEVICES[name][1] > 106 * KIB)
    assert core.plan(paper(core, dtype=dtype, channels=256), on).gradient.fused == half


def test_splits_weigh_the_bytes_of_their_slots(core):
    """On 132 multiprocessors 132 images are not split, one is, but not 132 ways; 16 fill them once."""
    on = device(core, "9.0")

    def splits(**fields):
        return core.plan(paper(core, **fields), on).iteration.splits

    assert splits(batch=132) == 1
    assert 16 <= splits(batch=1) < 100
    assert splits(batch=16) == 8
    assert splits(batch=5000) == 1
    assert splits(positions=1) == 1


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize("step", ["e_step", "iteration", "gradient", "last_gradient", "m_step"])
def test_work_is_spread_over_the_multiprocessors(core, batch, step):
    """No multiprocessor has much more to do than its share of the tiles."""
    plan = getattr(core.plan(paper(core, batch=batch, positions=129 * 129), device(core, "9.0")), step)
    blocks, tiles = batch * plan.splits, -(-129 * 129 // 64)
    busiest = -(-blocks // 132) * -(-tiles // plan.splits)
    assert busiest <= 1.3 * batch * tiles / 132 + 2


def test_a_larger_picture_costs_no_more_for_a_position(core):
    """From 4 thousand to a million positions the slots of partial sums stay below the features in size."""
    for positions in (2**12, 2**14, 2**16, 2**18, 2**20):
        batch = 2**20 // positions
        problem = paper(core, batch=batch, positions=positions)
        plan = core.plan(problem, device(core, "9.0"))
        features = batch * positions * 512 * 2
        assert batch * plan.iteration.splits * 64 * 512 * 4 < 0.1 * features


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("name", DEVICES)
def test_peak_memory(core, name, dtype, size, weighted):
    """16 images: forward 1.6 times y with all results, backward with grad_x 2.2 times x."""
    problem = paper(core, batch=16, dtype=dtype, weighted=weighted)
    plan = core.plan(problem, device(core, name))
    features, matrices = 16 * 65 * 65 * 512 * size, 16 * 512 * 64 * 4
    # three bases of the path and the last, masses and lengths
    kept = 4 * matrices + 2 * 3 * 16 * 64 * 4
    assert features + kept + core.em_forward_bytes(problem, plan) <= 1.6 * features
    assert features + matrices + core.em_backward_bytes(problem, plan) <= 2.2 * features


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("one_launch", [False, True])
def test_peak_memory_on_hopper(core, one_launch, order):
    """The same limits for its kernels, which also keep products of the gradient of y."""
    problem = paper(core, batch=16, positions=64 * 64, boxed=True, weighted=True, positions_fastest=order == "columns")
    plan = core.plan(problem, core.Device(132, 227 * KIB, hopper=True, one_launch=one_launch))
    assert plan.iteration.hopper
    assert plan.gradient.hopper
    assert plan.loop.one_launch == one_launch
    features, matrices = 16 * 64 * 64 * 512 * 2, 16 * 512 * 64 * 4
    kept = 4 * matrices + 2 * 3 * 16 * 64 * 4
    assert features + kept + core.em_forward_bytes(problem, plan) <= 1.6 * features
    assert features + matrices + core.em_backward_bytes(problem, plan) <= 2.2 * features


def test_slots_of_float16(core):
    """Half the bytes of float32 and a power for every 64 channels; for bfloat16 by the kernels of csrc/hopper alone."""
    hopper, portable = core.Device(132, 227 * KIB, hopper=True), core.Device(132, 227 * KIB)
    problems = {dtype: paper(core, dtype=dtype, batch=16, boxed=True) for dtype in ("bfloat16", "float16")}
    plans = {dtype: core.plan(problem, hopper) for dtype, problem in problems.items()}
    for step in ("iteration", "gradient", "m_step", "value_m_step", "reconstruct_gradient"):
        assert getattr(plans["bfloat16"], step).half_slots
        assert not getattr(plans["float16"], step).half_slots
        assert not getattr(core.plan(problems["bfloat16"], portable), step).half_slots
    plan = plans["bfloat16"].iteration
    used = core.em_step_bytes(problems["bfloat16"], plans["bfloat16"])
    float32_used = core.em_step_bytes(problems["float16"], plans["float16"])
    assert plan.splits == plans["float16"].iteration.splits
    assert float32_used - used == 16 * plan.splits * 64 * (512 * 2 - 512 // 64 * 4)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("name", DEVICES)
def test_memory_of_the_unit(core, name, dtype, size):
    """Beside y less than half of it: there is no tensor of N x C between the convolutions."""
    problem = paper(core, batch=16, dtype=dtype, weighted=True)
    features = 16 * 65 * 65 * 512 * size
    assert core.em_unit_bytes(problem, core.plan(problem, device(core, name))) <= 0.5 * features


@pytest.mark.parametrize(("name", "blocks", "slots"), [("8.0", 2, 2), ("9.0", 2, 3), ("8.6", 1, 2)])
def test_blocks_of_the_unit_share_a_multiprocessor(core, name, blocks, slots):
    """Where two fit; each is charged 1 KiB, which a multiprocessor has more than one block may use."""
    plan = core.plan(paper(core), device(core, name)).unit_tail
    assert plan.slots == slots
    assert (DEVICES[name][1] + KIB) // (plan.shared_memory + KIB) == blocks


def test_sizes_beyond_int32(core):
    """Responsibilities of 4 million positions for 200 bases are 4 GB in float32."""
    problem = make_problem(core, batch=4, positions=2**20, channels=64, num_bases=200, dtype="float32")
    plan = core.plan(problem, device(core, "9.0"))
    assert core.em_backward_bytes(problem, plan) > 6 * 4 * 2**20 * 256 * 4


def test_a_plan_is_the_same_every_time(core):
    problem, on = paper(core), device(core, "8.0")
    first, second = core.plan(problem, on), core.plan(problem, on)
    for step in E_STEPS:
        for field in ("splits", "fused", "feature_slots", "row_slots", "rows_resident", "shared_memory"):
            assert getattr(getattr(first, step), field) == getattr(getattr(second, step), field)


PRODUCTS, M_STEPS = ("reconstruction", "grad_x", "value_grad_x"), ("m_step", "value_m_step")


def test_products_that_hopper_serves(core):
    """Boxed features of 16 bits and up to 64 bases, on Hopper where it is wanted."""

    def served(*properties, **fields):
        plan = core.plan(paper(core, **{"boxed": True, **fields}), core.Device(*properties))
        return {getattr(plan, name).hopper for name in (*PRODUCTS, *M_STEPS)}

    on = 132, 227 * KIB, True
    assert served(*on) == served(*on, dtype="float16", channels=1024, num_bases=1) == {True}
    assert served(*on[:2]) == served(*on, boxed=False) == served(*on, num_bases=65) == {False}
    assert served(132, 226 * KIB, True) == {False}
    assert served(*on, dtype="float32") == {False}


@pytest.mark.parametrize("grad_iters", [0, 1, 3, 4, 5, 100])
@pytest.mark.parametrize("channels", [1, 64, 200, 256, 512, 520, 1024])
def test_products_on_hopper_keep_the_limits(core, channels, grad_iters):
    problem = paper(core, channels=channels, grad_iters=grad_iters, boxed=True)
    plan = core.plan(problem, core.Device(132, 227 * KIB, True))
    for name, products in zip(PRODUCTS, (1, 2 * grad_iters, 1), strict=True):
        found = getattr(plan, name)
        used = found.slots + (products if found.resident else found.slots)
        assert found.shared_memory == 64 * KIB + used * 16 * KIB + 128 <= 227 * KIB
        assert found.slots >= 2
        assert 16 * found.slots <= 128
        assert 1 <= found.splits <= -(-(65**2) // 128)
        assert found.resident == (products <= 8)
    stage = 128 * (64 + (512 if channels > 256 else 256))
    assert plan.m_step.shared_memory == plan.m_step.slots * stage + 128 <= 227 * KIB
    assert 3 <= plan.m_step.slots <= 6
    assert plan.end_iteration == (channels <= 512)
    assert plan.unit_tail.hopper == (channels % 8 == 0)
    if plan.unit_tail.hopper:
        assert plan.unit_tail.shared_memory == plan.unit_tail.slots * 40 * KIB + 96 * KIB + 128 <= 227 * KIB
        assert plan.unit_tail.slots == 3
        assert 1 <= plan.unit_tail.splits <= -(-(65**2) // (128 * plan.unit_tail.cluster))


def test_the_unit_on_hopper_needs_no_boxes_of_images(core):
    """Its end reads rows that start anywhere, and what is between iterations no features at all."""
    on = core.Device(132, 227 * KIB, True)
    boxed, image, rows = (
        core.plan(paper(core, batch=16, may_copy=True, **fields), on)
        for fields in ({"boxed": True, "positions_fastest": True}, {"positions_fastest": True}, {})
    )
    assert image.unit_tail.hopper
    assert (boxed.unit_tail.any_rows, image.unit_tail.any_rows) == (False, True)
    assert not rows.unit_tail.hopper
    assert boxed.end_iteration and image.end_iteration and rows.end_iteration  # noqa: PT018
    assert image.unit_tail.shared_memory == boxed.unit_tail.shared_memory + 8 * KIB <= 227 * KIB
    for field in ("slots", "splits", "cluster"):
        assert getattr(image.unit_tail, field) == getattr(boxed.unit_tail, field)


@pytest.mark.parametrize(
    ("multiprocessors", "fields", "expected"),
    [
        (132, {"batch": 16}, (2, 2)),
        (132, {"batch": 8}, (2, 4)),
        (132, {"batch": 12}, (2, 5)),  # 8 turns, for 7 alone
        (132, {"batch": 2}, (1, 17)),  # 68 blocks
        (132, {}, (1, 34)),
        (132, {"batch": 64, "positions": 128}, (1, 1)),  # one tile: the second block of a pair would have nothing
        (132, {"batch": 64, "positions": 129}, (2, 1)),
        (132, {"batch": 44, "positions": 320}, (1, 3)),  # 2 turns alone, 4 in pairs
        (2, {"batch": 16}, (2, 1)),
        (1, {"batch": 16}, (1, 1)),  # no room for two
    ],
)
def test_pairs_of_blocks_at_the_end_of_the_unit(core, multiprocessors, fields, expected):
    """Two blocks share loads where they would wait for L2 alone, and have not much more to do together."""
    plan = core.plan(paper(core, boxed=True, **fields), core.Device(multiprocessors, 227 * KIB, True)).unit_tail
    assert (plan.cluster, plan.splits) == expected


@pytest.mark.parametrize(
    ("multiprocessors", "fields", "expected"),
    [
        (132, {"batch": 16}, (2, 2)),
        (132, {"batch": 8}, (2, 4)),
        (132, {}, (1, 17)),  # 68 blocks
        (132, {"batch": 16, "channels": 640}, (1, 3)),  # 5 groups of channels
        (132, {"batch": 64, "channels": 128}, (1, 2)),
        (3, {"batch": 2, "channels": 256}, (2, 1)),  # one pair at a time: 2 turns, as alone
        (1, {"batch": 16}, (1, 1)),  # no room for two
    ],
)
def test_pairs_of_blocks_that_share_responsibilities(core, multiprocessors, fields, expected):
    """Two neighbouring groups of channels, where many blocks would wait for L2."""
    plan = core.plan(paper(core, boxed=True, **fields), core.Device(multiprocessors, 227 * KIB, True))
    for products in (plan.reconstruction, plan.grad_x):
        assert (products.cluster, products.splits) == expected


def test_e_steps_that_hopper_serves(core):
    """As for the products, of up to 512 channels: with the M-step or alone."""

    def served(*properties, **fields):
        plan = core.plan(paper(core, **{"boxed": True, **fields}), core.Device(*properties))
        return {plan.iteration.hopper, plan.e_step.hopper}

    on = 132, 227 * KIB, True
    assert served(*on) == served(*on, dtype="float16", channels=8, num_bases=1, positions=1) == {True}
    assert served(*on[:2]) == served(*on, boxed=False) == served(*on, num_bases=65) == {False}
    assert served(*on, channels=513) == served(*on, dtype="float32") == served(132, 226 * KIB, True) == {False}


@pytest.mark.parametrize("channels", [1, 64, 72, 128, 200, 256, 264, 512])
@pytest.mark.parametrize("positions_fastest", [False, True])
def test_e_steps_on_hopper_keep_the_limits(core, channels, positions_fastest):
    problem = paper(core, channels=channels, boxed=True, positions_fastest=positions_fastest)
    plan = core.plan(problem, core.Device(132, 227 * KIB, True))
    compiled = next(count for count in (64, 128, 256, 512) if channels <= count)
    for found in (plan.iteration, plan.e_step):
        stages = found.feature_slots * 32 * (2 * compiled + 128)
        assert found.shared_memory == stages + 32 * 128 + 32 * 8 * 4 + 64 * 4 + 128 <= 227 * KIB
        assert 6 <= found.feature_slots <= 8
        assert 1 <= found.splits <= -(-(65**2) // 32)
    assert plan.iteration.fused
    assert not plan.e_step.fused
    # every picture of the batch fills its share of the multiprocessors, with few slots
    batch = core.plan(paper(core, channels=channels, boxed=True, batch=16), core.Device(132, 227 * KIB, True))
    assert batch.iteration.splits == 8


def test_copies_of_any_rows(core):
    """With positions fastest there are none forward and one backward; in the other order one and two."""

    def workspace(**fields):
        problem = paper(core, batch=16, **fields)
        plan = core.plan(problem, core.Device(132, 227 * KIB, True))
        return plan, core.em_forward_bytes(problem, plan), core.em_backward_bytes(problem, plan)

    _, forward, backward = workspace(boxed=True)
    copy = 16 * 512 * (65 * 65 + 15) * 2
    plan, *with_columns = workspace(boxed=False, may_copy=True, positions_fastest=True)
    assert (plan.copies, plan.any_rows) == (False, True)
    assert with_columns == [forward, backward + copy]
    for fields in ({"positions_fastest": False, "channels": 511}, {"positions_fastest": True, "channels": 513}):
        plan, *_ = workspace(boxed=False, may_copy=True, **fields)
        assert (plan.copies, plan.any_rows) == (True, False)


def test_rows_that_are_read_once(core):
    """With positions fastest the E-step reads any rows, without a copy; what needs boxes stays portable."""

    def served(**fields):
        problem = paper(core, batch=16, num_iters=1, **fields)
        plan = core.plan(problem, core.Device(132, 227 * KIB, True))
        assert not plan.copies
        assert not any(getattr(plan, name).hopper for name in (*GRADIENTS, *M_STEPS, "reconstruct_gradient", "grad_x"))
        return {part.hopper for part in (plan.e_step, plan.iteration, plan.reconstruction)}

    assert served(positions_fastest=True) == {True}
    assert served(positions_fastest=False) == served(positions_fastest=True, num_bases=65) == {False}
    plan = core.plan(paper(core, positions_fastest=True), core.Device(132, 227 * KIB))
    assert not plan.iteration.hopper
    boxed, unboxed = (paper(core, num_iters=1, positions_fastest=True, boxed=boxed) for boxed in (True, False))
    used = [
        core.em_forward_bytes(each, core.plan(each, core.Device(132, 227 * KIB, True))) for each in (boxed, unboxed)
    ]
    assert used[0] == used[1]


GRADIENTS = ("gradient", "first_gradient", "last_gradient", "value_gradient")


def test_gradients_that_hopper_serves(core):
    """Boxed features of 16 bits in both orders, up to 512 channels and 64 bases."""

    def served(**fields):
        plan = core.plan(paper(core, **{"boxed": True, **fields}), core.Device(132, 227 * KIB, True))
        return [getattr(plan, name).hopper for name in (*GRADIENTS, "reconstruct_gradient")]

    assert all(served())
    assert all(served(dtype="float16", channels=8, num_bases=1, positions_fastest=True))
    assert all(served(boxed=False, may_copy=True, positions_fastest=True))
    for fields in ({"channels": 520}, {"num_bases": 65}, {"dtype": "float32"}, {"boxed": False}):
        assert not any(served(**fields))
    assert served(value_channels=520) == [True, True, False, False, False]


@pytest.mark.parametrize("positions", [1, 33, 65 * 65])
@pytest.mark.parametrize(("channels", "compiled"), [(1, 64), (72, 128), (200, 256), (264, 512), (512, 512)])
def test_gradients_on_hopper_keep_the_limits(core, channels, compiled, positions):
    plan = core.plan(paper(core, channels=channels, positions=positions, boxed=True), core.Device(132, 227 * KIB, True))
    for name in GRADIENTS:
        found = getattr(plan, name)
        assert found.row_slots == (1 if name == "value_gradient" else 2)
        # four tiles, numbers and barriers, rows of bases, stages of 32 positions
        stages = (128 * found.row_slots + 64 * found.feature_slots) * compiled
        assert found.shared_memory == 21 * KIB + stages <= 227 * KIB
        assert found.feature_slots in (2, 4, 6, 8)
        assert 1 <= found.splits <= -(-positions // 32)
        assert found.fused == (name != "first_gradient")
    found = plan.reconstruct_gradient
    assert found.shared_memory == 2 * KIB + 128 * compiled + found.slots * (128 * compiled + 4 * KIB) <= 227 * KIB
    assert 2 <= found.slots <= 8
    assert 1 <= found.splits <= -(-positions // 32)


def test_by_default_no_part_for_hopper_is_on(core):
    """Until a GPU has shown one right and faster: see csrc/hopper/defaults.h."""
    problem = paper(core, batch=16, heads=1, boxed=True)
    asked, left_to_the_core = (
        core.plan(problem, core.Device(*DEVICES["9.0"], hopper=True, overlap=True, one_launch=True, by_default=choose))
        for choose in (False, True)
    )
    assert not core.hopper_by_default
    for plan, on in ((asked, True), (left_to_the_core, False)):
        parts = plan.iteration, plan.gradient, plan.m_step, plan.reconstruct_gradient, plan.grad_x, plan.unit_tail
        assert {part.hopper for part in parts} == {on}
        assert (plan.overlap, plan.loop.one_launch, plan.end_iteration) == (on, on, on)
