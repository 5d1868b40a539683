"""The same call gives the same bits, and images do not see each other."""

import pytest
import torch
from calls import REPEATS, draw_call, same_bits


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(4, 65 * 65, 512, 64), (2, 1000, 512, 200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_same_bits_a_hundred_times(backend, dtype, shape, order):
    call = draw_call(backend, shape, dtype, order)
    first = call()
    for _ in range(REPEATS):
        assert same_bits(call(), first)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_a_nan_image_leaves_its_neighbours_alone(backend, order):
    call = draw_call(backend, order=order)
    expected = call()
    with torch.no_grad():
        call.x[1].fill_(float("nan"))
    kept, results = [0, 2, 3], call()
    assert same_bits([result[kept] for result in results[:3]], [result[kept] for result in expected[:3]])
    assert results[0][1].isnan().all()
