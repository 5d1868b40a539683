"""The demo's network: what it can see without its context layer, and that every context layer sees the cue."""

import numpy as np
import pytest
import torch

from ema_ops.demo.network import CONTEXTS, STRIDE, DemoNetwork, receptive_field
from ema_ops.segmentation.data.generated import drawing


def test_receptive_field_is_smaller_than_the_distance():
    network = DemoNetwork("no context", 5)
    assert receptive_field(network) < drawing.DISTANCE
    assert (drawing.HEIGHT // STRIDE) * (drawing.WIDTH // STRIDE) >= 576


def test_receptive_field_is_what_the_gradient_reaches():
    network = DemoNetwork("no context", 5).eval()
    image = torch.rand(1, 3, 96, 128, requires_grad=True)
    for column in range(60, 64):
        (gradient,) = torch.autograd.grad(network(image)[0, :, 48, column].sum(), image)
        columns = torch.nonzero(gradient.abs().sum(dim=(0, 1, 2)))
        assert columns.max() - columns.min() < receptive_field(network)


@pytest.mark.parametrize("context", [name for name in CONTEXTS if name != "no context"])
def test_context_reaches_the_cue(context):
    torch.manual_seed(0)
    network = DemoNetwork(context, 5).eval()
    image = torch.rand(1, 3, 96, 128)
    other = image.clone()
    other[..., : drawing.CUE_END] = torch.rand(1, 3, 96, drawing.CUE_END)
    right = np.s_[..., drawing.MARKED_START :]
    assert not torch.equal(network(image)[right], network(other)[right])
