"""How fast the torch backend is on the CPU, beside its own matrix products and the official formulation.

Opt-in (`make speed`), since a busy machine says nothing: one thread, processor time, and the median of the ratio of
runs that stand next to each other, in random order.
"""

import random
import statistics
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


def ratios_of_ours(functions, rounds):
    """By name of another function: the median over the rounds of the time of "ours" over its time."""
    for function in functions.values():
        function()
    others, seconds = [name for name in functions if name != "ours"], []
    for _ in range(rounds):
        seconds.append({})
        for name in random.sample(list(functions), len(functions)):
            start = time.process_time()
            functions[name]()
            seconds[-1][name] = time.process_time() - start
    ratios = {name: statistics.median(one["ours"] / one[name] for one in seconds) for name in others}
    print(
        f"ours {1e3 * min(one['ours'] for one in seconds):.2f} ms, "
        + ", ".join(f"{ratio:.3f} of {name}" for name, ratio in ratios.items())
    )
    return ratios


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
    ratios = ratios_of_ours(
        {
            "products": lambda: matrix_products(image, m, z),
            "official": lambda: official(image, m),
            "ours": lambda: ema_ops.em_attention(image.mT, m, num_iters=NUM_ITERS, backend="torch"),
        },
        rounds=80,
    )
    assert ratios["products"] <= 1.15
    assert ratios["official"] <= 1.05


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_exact_gradient(shape, order):
    image, m, _ = inputs(shape, order)
    leaf, grad_y = image.clone(memory_format=torch.preserve_format).requires_grad_(), torch.randn_like(image)

    def ours(image, m):
        return ema_ops.em_attention(image.mT, m, num_iters=NUM_ITERS, backend="torch")[0].mT

    ratios = ratios_of_ours(
        {
            "automatic": lambda: torch.autograd.grad(official(leaf, m), leaf, grad_y),
            "ours": lambda: torch.autograd.grad(ours(leaf, m), leaf, grad_y),
        },
        rounds=20,
    )
    assert ratios["automatic"] <= 1
