"""The parts that measure: memory, percentiles, the check and the kernel's name."""

import pytest
import torch

from benchmarks.case import Case, draw
from benchmarks.formulas import EM, SELF, self_attention
from benchmarks.measure import time_workload
from benchmarks.memory import extra_memory
from benchmarks.verify import find_truth, judge
from benchmarks.workload import Workload
from ema_ops.out_of_memory import is_out_of_memory

CPU = torch.device("cpu")
CASE = Case(2, 16, 5, 7, 4, 3, "float32", "contiguous")
KIB = 1 << 10
SCALARS = 64  # bytes that PyTorch takes for the numbers in an expression


def test_extra_memory_is_the_peak_of_the_step():
    def step(_):
        first = torch.zeros(4 * KIB)  # 16 KiB
        second = first + 1  # 32 KiB now
        del first
        return second * 2, None  # 32 KiB again

    assert extra_memory(Workload(lambda: None, step), CPU) == pytest.approx(32 * KIB, abs=SCALARS)


def test_extra_memory_counts_what_was_prepared_but_not_what_that_took():
    def prepare():
        torch.zeros(64 * KIB)
        return torch.zeros(KIB)

    assert extra_memory(Workload(prepare, lambda kept: (kept + 1, None)), CPU) == pytest.approx(8 * KIB, abs=SCALARS)


def test_timing_repeats_at_least_three_times_and_orders_percentiles():
    calls = []
    timing = time_workload(Workload(lambda: None, calls.append), CPU, seconds=1e-9)
    assert timing.repeats == len(calls) == 3
    assert timing.p20 <= timing.p50 <= timing.p80


def test_other_errors_are_not_out_of_memory():
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


def test_truth_accepts_the_plain_formula_and_refuses_a_shift():
    inputs = draw(CASE, CPU, 0)
    truth = find_truth(EM, CASE, inputs, with_gradient=True)
    trained = inputs.requiring_grad()
    y = EM.apply(CASE, trained)
    grad_x = torch.autograd.grad(y, trained.x, trained.grad_y)[0]
    assert judge(y, grad_x, truth).wrong is None
    assert "error of y" in judge(y + 1e-4, grad_x, truth).wrong
    assert "error of grad_x" in judge(y, 1.0001 * grad_x, truth).wrong


def test_largest_element_is_judged_too():
    inputs = draw(CASE, CPU, 0)
    truth = find_truth(EM, CASE, inputs, with_gradient=False)
    spoiled = truth.exact["y"].clone()
    spoiled[1, 3, 2] += 3e-6 * spoiled.abs().max()
    assert "largest error of y" in judge(spoiled, None, truth).wrong


def test_wrong_shape_is_an_error():
    truth = find_truth(EM, CASE, draw(CASE, CPU, 0), with_gradient=False)
    with pytest.raises(ValueError, match="expected"):
        judge(torch.zeros(2, 35, 15), None, truth)


def test_self_attention_by_rows_equals_the_whole(monkeypatch):
    inputs = draw(CASE, CPU, 0)
    whole = find_truth(SELF, CASE, inputs, with_gradient=True)
    monkeypatch.setattr("benchmarks.formulas.ROWS_AT_ONCE", 8)
    assert len(inputs.x.split(8, dim=-2)) > 1
    parts = find_truth(SELF, CASE, inputs, with_gradient=True)
    for name in ("y", "grad_x"):
        torch.testing.assert_close(parts.exact[name], whole.exact[name], rtol=1e-12, atol=1e-12)
    assert self_attention(CASE, inputs).shape == inputs.x.shape


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_inputs_are_views_of_images_in_the_memory_order(order):
    x = draw(Case(2, 16, 5, 7, 4, 3, "float32", order), CPU, 0).x
    assert x.shape == (2, 35, 16)
    assert (x.stride(1) == 1) == (order == "contiguous")
