"""Calls leave order to the caller's stream: they can overlap, be captured in a graph, and wait for nothing."""

import pytest
import torch
from calls import draw_call, same_bits

import ema_ops


def test_two_streams_at_once(backend):
    calls = [draw_call(backend), draw_call(backend, (2, 97 * 97, 256, 64))]
    expected = [call() for call in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    for _ in range(10):
        results = []
        for call, stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(call())
        torch.cuda.synchronize()
        assert all(same_bits(got, want) for got, want in zip(results, expected, strict=True))


def test_the_current_stream_is_used(backend):
    """Behind a stream that sleeps before it gets its inputs: on any other stream old numbers would be read."""
    call, other = draw_call(backend), draw_call(backend, seed=9)
    expected, _ = other(), call()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)
        call.copy_(other)
        results = call()
    torch.cuda.synchronize()
    assert same_bits(results, expected)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_graph_capture_and_replay_with_changed_inputs(backend, order):
    call = draw_call(backend, order=order)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in (9, 10):
        call.copy_(draw_call(backend, order=order, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(captured, call())


def test_no_synchronisation(backend):
    call = draw_call(backend)
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert results[0].isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"needs two GPUs, found {torch.cuda.device_count()}")
@pytest.mark.parametrize("current", [0, 1])
def test_second_device(backend, current):
    expected = draw_call(backend, (2, 101, 32, 8))()
    with torch.cuda.device(current):
        for device in ("cuda:1", "cuda:0"):
            results = draw_call(backend, (2, 101, 32, 8), device=device)()
            assert torch.cuda.current_device() == current
            assert results[0].device == torch.device(device)
            assert same_bits([result.cpu() for result in results], [result.cpu() for result in expected])


def test_values_on_a_gpu_are_checked_on_request_only(monkeypatch):
    x, bases = torch.randn(1, 8, 6, device="cuda"), torch.randn(6, 4, device="cuda")
    weight = -torch.ones(1, 8, device="cuda")
    assert ema_ops.em_attention(x, bases, weight=weight)[0].shape == x.shape
    monkeypatch.setenv("EMA_OPS_CHECK_VALUES", "1")
    with pytest.raises(ValueError, match="weight has the value -1"):
        ema_ops.em_attention(x, bases, weight=weight)
