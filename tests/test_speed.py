"""How fast the torch backend is on the CPU, beside its own matrix products and the official formulation.

Opt-in (`make speed`), since a busy machine says nothing: one thread, processor time, the best of many interleaved runs.
"""

import time

import pytest
import torch
from examples import features, unit_bases

import ema_ops

pytestmark = pytest.mark.speed
SHAPES = [(1, 65 * 65, 512, 64), (4, 33 * 33, 512, 64), (1, 97 * 97, 256, 64)]
NUM_ITERS = 3


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def best_of_interleaved(functions, repeats):
    """The least processor seconds of each of `functions`, by name."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - start)
    return best


def official(x, m):
    """The loop of the official code for an image [B, C, N] and bases [B, C, K]."""
    for _ in range(NUM_ITERS):
        z = torch.softmax(torch.bmm(x.mT, m), dim=2)
        m = torch.bmm(x, z / (1e-6 + z.sum(dim=1, keepdim=True)))
        m = m / (1e-6 + m.norm(dim=1, keepdim=True))
    return torch.bmm(m, z.mT)


def matrix_products(x, m, z):
    """Nothing but the 2 T + 1 products of the loop."""
    for _ in range(NUM_ITERS):
        torch.bmm(x.mT, m)
        torch.bmm(x, z)
    torch.bmm(m, z.mT)


def inputs(shape, order):
    batch, positions, channels, num_bases = shape
    x = features(batch, positions, channels, dtype=torch.float32, order=order)
    m = unit_bases(batch, channels, num_bases, dtype=torch.float32)
    return x.mT, m, torch.softmax(torch.bmm(x, m), -1)


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, order):
    image, m, z = inputs(shape, order)
    best = best_of_interleaved(
        {
            "products": lambda: matrix_products(image, m, z),
            "official": lambda: official(image, m),
            "ours": lambda: ema_ops.em_attention(image.mT, m, num_iters=NUM_ITERS, backend="torch"),
        },
        repeats=40,
    )
    print(f"{shape} {order}: " + ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in best.items()))
    assert best["ours"] <= 1.15 * best["products"]
    assert best["ours"] <= 1.05 * best["official"]


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_exact_gradient(shape, order):
    image, m, _ = inputs(shape, order)
    leaf, grad_y = image.clone(memory_format=torch.preserve_format).requires_grad_(), torch.randn_like(image)

    def ours(image, m):
        return ema_ops.em_attention(image.mT, m, num_iters=NUM_ITERS, backend="torch")[0].mT

    best = best_of_interleaved(
        {
            "automatic": lambda: torch.autograd.grad(official(leaf, m), leaf, grad_y),
            "ours": lambda: torch.autograd.grad(ours(leaf, m), leaf, grad_y),
        },
        repeats=15,
    )
    print(f"{shape} {order}: " + ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in best.items()))
    assert best["ours"] <= best["automatic"]
