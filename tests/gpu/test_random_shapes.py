"""Random calls against float64 for as long as EMA_OPS_RANDOM_SECONDS says (20 by default)."""

import math
import os
import random
import time

import torch
from calls import LARGEST, ORDERS, Call, check_loop, place
from examples import features, unit_bases

# Positions of a call: where fewer are between bases, one rounding decides, and the yardstick is right by luck.
ENOUGH = 512


def test_random_calls(backend, record_property):
    draw, count = random.Random(0), 0
    end = time.monotonic() + float(os.environ.get("EMA_OPS_RANDOM_SECONDS") or 20)
    while time.monotonic() < end:
        count += 1
        batch, heads = draw.randint(1, 5), draw.choice([1, 1, 2, 3])
        positions, channels, num_bases = (draw.randint(1, largest) for largest in LARGEST)
        batch = max(batch, math.ceil(ENOUGH / (heads * positions)))
        dtype, order = draw.choice([torch.float32, torch.bfloat16, torch.float16]), draw.choice(ORDERS)
        options = {"num_iters": draw.randint(1, 4), "eps_mode": draw.choice(["add", "max"])}
        if weighted := draw.random() < 0.4:
            options["weight"] = torch.rand(batch, heads, positions, generator=torch.Generator().manual_seed(count))
            options["weight"] = options["weight"].cuda()
        x, grad_y = (
            place(features(batch, heads, positions, channels, dtype=dtype, seed=count + i), order, "cuda")
            for i in (0, 10**6)
        )
        bases = unit_bases(heads, channels, num_bases, dtype=torch.float32, seed=count).cuda()
        sizes = f"B={batch} H={heads} N={positions} C={channels} K={num_bases} T={options['num_iters']}"
        call = Call(backend, x.requires_grad_(), bases.requires_grad_(), grad_y, options)
        check_loop(call, case=f"of call {count}: {sizes} {dtype} {order} {options['eps_mode']} weighted={weighted}")
    record_property("random_calls", count)
    assert count > 0
