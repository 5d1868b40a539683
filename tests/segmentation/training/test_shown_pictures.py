"""The pictures for TensorBoard."""

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import CLASSES, HEIGHT, WIDTH

from ema_ops.segmentation.data import open_dataset
from ema_ops.segmentation.models import EMANet
from ema_ops.segmentation.training.pictures import judged_pictures


@pytest.fixture
def dataset(data):
    return open_dataset("folder", data, "val", classes=CLASSES)


def tiles(picture):
    assert picture.dtype == np.uint8
    return picture.reshape(HEIGHT, -1, WIDTH, 3).transpose(1, 0, 2, 3)


@pytest.mark.parametrize("heads", [1, 2])
def test_tiles_of_a_picture(dataset, heads):
    torch.manual_seed(0)
    network = EMANet(3, "small", 4, 6, 2, channels=8, num_heads=heads).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    pictures = judged_pictures(network, dataset, 2)
    assert list(pictures) == ["picture11", "picture12"]
    image, mask = dataset[1]
    shown, labels, prediction, *maps = tiles(pictures["picture12"])
    np.testing.assert_array_equal(shown, (image * 255).round().byte().permute(1, 2, 0).numpy())
    assert (labels[:, :2] == 255).all()
    np.testing.assert_array_equal(labels[:, 2:], dataset.palette[mask[:, 2:].numpy()])
    assert {tuple(colour) for colour in prediction.reshape(-1, 3)} <= {
        tuple(dataset.palette[label]) for label in range(3)
    }
    assert len(maps) == 4
    assert all(m.max() > 200 and m.min() < 50 for m in maps)
    # looking changes nothing
    assert network.training
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


def test_other_context_modules_have_no_maps(dataset):
    network = EMANet(3, "small", 4, channels=8)
    network.unit = nn.Identity()
    (picture,) = judged_pictures(network, dataset, 1).values()
    assert picture.shape == (HEIGHT, 3 * WIDTH, 3)
    assert judged_pictures(network, dataset, 0) == {}
