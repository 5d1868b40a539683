"""The choice of a backend on a GPU, and training with it under Inductor."""

from types import SimpleNamespace

import pytest
import torch

import ema_ops
from ema_ops import backends
from ema_ops.backends import cuda


@pytest.fixture
def foreign(monkeypatch):
    """The architecture that a stand-in for the core says it was built for; never that of this GPU."""
    architecture = "80" if torch.cuda.get_device_capability()[0] != 8 else "90a"
    built = SimpleNamespace(architectures=(architecture,), ptx_architectures=(), max_channels=1024, max_bases=256)
    monkeypatch.setattr(cuda, "BACKEND", cuda.CudaBackend(built))
    backends.load.cache_clear()
    yield architecture
    backends.load.cache_clear()


def test_a_core_for_another_gpu_says_so_and_the_next_backend_serves(foreign):
    major, minor = torch.cuda.get_device_capability()
    status = ema_ops.available_backends()["cuda"]
    assert not status.usable
    assert f"compute capability {major}.{minor}, and the compiled core was built for {foreign}" in status.reason
    x, bases = torch.randn(2, 50, 32, device="cuda"), torch.randn(32, 8, device="cuda")
    with pytest.raises(ValueError, match=f"backend 'cuda' cannot serve this call.*built for {foreign}"):
        ema_ops.em_attention(x, bases, backend="cuda")
    assert ema_ops.em_attention(x, bases)[0].isfinite().all()


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
