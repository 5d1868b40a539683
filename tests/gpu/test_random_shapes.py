"""Random calls against float64 for as long as EMA_OPS_RANDOM_SECONDS says (20 by default)."""

import os
import random
import time

import pytest
import torch
from examples import features, unit_bases
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

BACKENDS = [name for name in ema_ops.available_backends() if name != "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_calls(backend):
    draw, seed = random.Random(0), 0
    end = time.monotonic() + float(os.environ.get("EMA_OPS_RANDOM_SECONDS", "20"))
    while time.monotonic() < end:
        seed += 1
        batch, heads = draw.randint(1, 5), draw.choice([1, 1, 2, 3])
        positions, channels = draw.randint(1, 3000), draw.randint(1, 600)
        num_bases, num_iters = draw.randint(1, 200), draw.randint(1, 4)
        dtype, order = draw.choice([torch.float32, torch.bfloat16, torch.float16]), draw.choice(["rows", "columns"])
        weight = torch.rand(batch, heads, positions).cuda() if draw.random() < 0.4 else None
        x = features(batch, heads, positions, channels, dtype=dtype, order=order, seed=seed).cuda()
        bases = unit_bases(heads, channels, num_bases, dtype=torch.float32, seed=seed).cuda()
        case = (
            f"call {seed}: {batch, heads, positions, channels, num_bases, num_iters} {dtype} {order} {weight is None}"
        )
        results = []
        for function, kind in (
            (lambda *a, **o: ema_ops.em_attention(*a, backend=backend, **o), dtype),
            (reference.em_attention, torch.float64),
            (reference.em_attention, dtype),
        ):
            leaf = x.to(kind).requires_grad_()
            y, last = function(
                leaf, bases if not results else bases.to(kind), num_iters=num_iters,
                weight=weight if weight is None or not results else weight.to(kind),
            )  # fmt: skip
            results.append((y, last, torch.autograd.grad(y.float().square().sum(), leaf)[0]))
        for got, want, plain, factor, name in zip(*results, (2, 2, 3), ("y", "bases", "grad_x"), strict=True):
            if dtype == torch.float16 and not plain.isfinite().all():
                # a base of little mass: automatic differentiation overflows where ours must not
                assert got.isfinite().all(), case
                continue
            assert_close_to_reference(got, want, plain, factor=factor, name=f"{name} of {case}")
    assert seed > 0
