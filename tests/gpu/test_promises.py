"""What every GPU backend promises besides right numbers: the same bits, streams, graphs, memory, size."""

import pytest
import torch
from examples import features, unit_bases
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

BACKENDS = [name for name in ema_ops.available_backends() if name != "torch"]
MAIN = (4, 65 * 65, 512, 64)


def call(backend, shape=MAIN, dtype=torch.bfloat16, order="rows"):
    batch, positions, channels, num_bases = shape
    x = features(batch, positions, channels, dtype=dtype, order=order).cuda().requires_grad_()
    bases = unit_bases(channels, num_bases, dtype=torch.float32).cuda().requires_grad_()

    def run():
        y, last = ema_ops.em_attention(x, bases, backend=backend)
        return y, last, *torch.autograd.grad(y, (x, bases), torch.ones_like(y))

    return x, bases, run


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_the_same_bits_every_time(backend, order):
    _, _, run = call(backend, order=order)
    first = run()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_streams_at_once(backend):
    calls = [call(backend)[2], call(backend, (2, 97 * 97, 256, 64))[2]]
    expected = [run() for run in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    for _ in range(10):
        results = []
        for run, stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(run())
        torch.cuda.synchronize()
        for got, want in zip(results, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_capture_and_replay_with_changed_inputs(backend):
    x, _, run = call(backend)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        x.copy_(features(*x.shape, dtype=x.dtype, seed=9))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_synchronisation(backend):
    _, _, run = call(backend)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert results[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_image_leaves_its_neighbours_alone(backend):
    x, _, run = call(backend)
    expected = run()
    with torch.no_grad():
        x[1].fill_(float("nan"))
    kept = [0, 2, 3]
    for got, want in zip(run()[:3], expected[:3], strict=True):
        assert torch.equal(got[kept], want[kept])


@pytest.mark.parametrize("backend", BACKENDS)
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


def test_values_on_a_gpu_are_checked_on_request_only(monkeypatch):
    x, bases = torch.randn(1, 8, 6, device="cuda"), torch.randn(6, 4, device="cuda")
    weight = -torch.ones(1, 8, device="cuda")
    assert ema_ops.em_attention(x, bases, weight=weight)[0].shape == x.shape
    monkeypatch.setenv("EMA_OPS_CHECK_VALUES", "1")
    with pytest.raises(ValueError, match="weight has the value -1"):
        ema_ops.em_attention(x, bases, weight=weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_memory_leaves_the_process_usable(backend):
    _, _, run = call(backend)
    expected = run()
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            ema_ops.em_attention(
                torch.empty(64, 1 << 20, 64, device="cuda", dtype=torch.bfloat16), torch.zeros(64, 8).cuda()
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_under_inductor(backend):
    torch._dynamo.reset()
    eager = ema_ops.EMAttention(64, 16, backend=backend).cuda()
    inner = ema_ops.EMAttention(64, 16, backend=backend).cuda()
    inner.load_state_dict(eager.state_dict())
    compiled = torch.compile(inner, fullgraph=True, dynamic=True)
    for size in (17, 33, 24):
        x, results = torch.randn(2, 64, size, size, device="cuda"), []
        for layer in (eager, compiled):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.square().sum().backward()
            results.append((y, leaf.grad))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(inner.bases, eager.bases, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_device(backend):
    x, bases = features(2, 100, 32, dtype=torch.float32).to("cuda:1"), unit_bases(32, 8, dtype=torch.float32)
    y, _ = ema_ops.em_attention(x, bases.to("cuda:1"), backend=backend)
    expected, _ = ema_ops.em_attention(x.to("cuda:0"), bases.to("cuda:0"), backend=backend)
    assert torch.equal(y.cpu(), expected.cpu())
    assert torch.cuda.current_device() == 0
