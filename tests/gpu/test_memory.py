"""Memory: what a call takes and keeps, more of it than 32 bits count, and running out of it.

The measured ratios are left in the record of the tests, from where `benchmarks/targets.py` has them.
"""

import gc

import pytest
import torch
from calls import draw_call, same_bits
from examples import features, unit_bases
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference
from ema_ops.backends import load

BATCH, POSITIONS, CHANNELS, BASES, ITERS = LARGE = (16, 65 * 65, 512, 64, 3)


def measured(run):
    """What `run` returns, and the bytes at its peak beyond what was there before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


def requested() -> int:
    """Bytes asked for and not yet freed, without what the allocator rounds up."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_what_a_call_takes_and_keeps(backend, order, record_property):
    call = draw_call(backend, LARGE[:4], order=order, num_iters=ITERS)
    call()

    def forward():
        return ema_ops.em_attention(call.x, call.bases, num_iters=ITERS, backend=backend)

    def backward():
        return torch.autograd.grad(y, call.x, call.grad_y)

    gc.collect()
    before = requested()
    (y, last), taken_by_forward = measured(forward)
    kept = requested() - before - y.nbytes
    promised = 4 * BATCH * BASES * ((ITERS + 1) * CHANNELS + 2 * ITERS)  # bases, masses, lengths
    _, taken_by_backward = measured(backward)
    ratios = {
        "forward_memory_over_y": taken_by_forward / y.nbytes,
        "backward_memory_over_x": taken_by_backward / call.x.nbytes,
        "kept_over_promised": kept / promised,
    }
    for name, ratio in ratios.items():
        record_property(name, f"{ratio:.3f}")
    assert last.shape == (BATCH, *call.bases.shape)
    assert ratios["forward_memory_over_y"] <= 1.6
    # kernels for Hopper copy x first where its rows are not aligned
    copies = order == "columns" and "tiles" in load("cuda").wanted_parts()
    assert ratios["backward_memory_over_x"] <= (3.2 if copies else 2.2)
    assert kept <= promised


def test_out_of_memory_leaves_the_process_usable(backend):
    """Too little for y, then too little for grad_x."""
    small, call = draw_call(backend, (2, 1000, 64, 16)), draw_call(backend, LARGE[:4])
    expected = small()
    call()

    def forward():
        return ema_ops.em_attention(call.x, call.bases, backend=backend)

    y, _ = forward()
    for run in (forward, lambda: torch.autograd.grad(y, call.x, call.grad_y)):
        gc.collect()
        torch.cuda.empty_cache()
        allowed = torch.cuda.memory_reserved() + call.x.nbytes // 2
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
        try:
            with pytest.raises(torch.cuda.OutOfMemoryError):
                run()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert same_bits(small(), expected)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_more_than_two_to_the_31_elements(backend, order):
    """Only the last positions have weight, so the whole image must give what they give by themselves."""
    if torch.cuda.mem_get_info()[0] < 100 << 30:
        pytest.skip("less than 100 GiB of free GPU memory")
    channels, tail = 64, 4096
    shape = (1, (1 << 31) // channels + tail, channels)
    x = torch.zeros(shape if order == "rows" else (1, channels, shape[1]), device="cuda", dtype=torch.bfloat16)
    x = x if order == "rows" else x.mT
    small = features(1, tail, channels, dtype=torch.bfloat16).cuda()
    x[:, -tail:] = small
    weight = torch.zeros(1, shape[1], device="cuda")
    weight[:, -tail:] = 1
    bases, grad_y = unit_bases(channels, 16, dtype=torch.float32).cuda(), torch.zeros_like(x)
    grad_y[:, -tail:] = features(1, tail, channels, dtype=torch.bfloat16, seed=2).cuda()

    leaf = x.requires_grad_()
    y, last = ema_ops.em_attention(leaf, bases, weight=weight, backend=backend)
    (grad_x,) = torch.autograd.grad(y, leaf, grad_y)
    got = (y[:, -tail:], last, grad_x[:, -tail:])
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        leaf = small.to(dtype).requires_grad_()
        y, last = reference.em_attention(leaf, bases.to(dtype))
        results.append((y, last, *torch.autograd.grad(y, leaf, grad_y[:, -tail:].to(dtype))))
    for ours, exact, plain, factor in zip(got, *results, (2, 2, 3), strict=True):
        assert_close_to_reference(ours, exact, plain, factor=factor)
