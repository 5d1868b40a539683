"""Every kernel, compiled as on a real device for every architecture: no spills, enough shared memory, tensor cores.

Needs no GPU, but a process without the interpreter: `pytest tests/triton_compile`.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

if os.environ.get("TRITON_INTERPRET", "0") != "0":
    raise pytest.UsageError("TRITON_INTERPRET is set: run `pytest tests/triton_compile` by itself, without it")

from cases import all_cases, calls, sweep_cases
from compiling import compile_case, record

from ema_ops.backends.triton import settings

CASES = [*all_cases(), *(pytest.param(case, marks=pytest.mark.sweep) for case in sweep_cases())]


@pytest.fixture(scope="session")
def pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="session")
def compiling(pool, request):
    """Case to future `Usage`: all chosen ones are under way while the first is looked at."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.originalname == "test_kernel"]
    return {case: pool.submit(compile_case, case) for case in chosen}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case, compiling):
    usage = compiling[case].result()
    assert usage.spills == 0, usage
    assert usage.shared <= settings.SHARED_MEMORY[case.architecture] * 1024, usage
    if case.has_product and case.is_16_bit:
        assert usage.tensor_instructions, usage
    if case.loads_vectors:
        assert usage.loads_vectors, usage


@pytest.mark.parametrize("order", ["BHNC", "BHCN"])
def test_no_new_binary_for_another_batch_or_number_of_positions(order):
    shape = (48, 16, torch.bfloat16, order, 2)
    binaries = [
        {case for call in calls(*shape, batch=batch, positions=positions) for case in record("sm_90", call)}
        for batch, positions in ((1, 64), (2, 64), (3, 1040), (16, 72))
    ]
    assert all(other == binaries[0] for other in binaries)
