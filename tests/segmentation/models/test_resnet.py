"""ResNet: dilations, strides and sizes, as in the published configurations."""

import pytest
import torch

from ema_ops.segmentation.models.resnet import ResNet


def dilations(network):
    return [[block.conv2.dilation[0] for block in getattr(network, f"layer{i}")] for i in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("stride", "multi_grid", "stage3", "stage4"),
    [
        (8, (1, 2, 4), [1, 2, 2, 2, 2, 2], [2, 8, 16]),
        (16, (1, 2, 4), [1] * 6, [1, 4, 8]),
        (8, (1, 1, 1), [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        (16, (1, 1, 1), [1] * 6, [1, 2, 2]),
    ],
)
def test_dilations(stride, multi_grid, stage3, stage4):
    with torch.device("meta"):
        network = ResNet("resnet50", stride, multi_grid=multi_grid)
    assert dilations(network) == [[1] * 3, [1] * 4, stage3, stage4]


@pytest.mark.parametrize(("stride", "cells"), [(8, (7, 9)), (16, (4, 5))])
def test_features(stride, cells):
    with torch.device("meta"):
        network = ResNet("resnet50", stride, stem_channels=64)
        stage3, stage4 = network(torch.empty(2, 3, 50, 65))
    assert stage3.shape == (2, 1024, *cells)
    assert stage4.shape == (2, 2048, *cells)
    assert network.channels == (1024, 2048)


@pytest.mark.parametrize(("name", "depths"), [("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))])
def test_depths(name, depths):
    with torch.device("meta"):
        network = ResNet(name)
    assert tuple(len(getattr(network, f"layer{i}")) for i in (1, 2, 3, 4)) == depths
    assert len([key for key in network.state_dict() if key.endswith("conv2.weight")]) == sum(depths)


def test_stems():
    with torch.device("meta"):
        wide, narrow = ResNet("resnet50").stem, ResNet("resnet50", stem_channels=64).stem
    assert [tuple(wide[i].weight.shape[:2]) for i in (0, 3, 6)] == [(64, 3), (64, 64), (128, 64)]
    assert [tuple(narrow[i].weight.shape[:2]) for i in (0, 3, 6)] == [(32, 3), (32, 32), (64, 32)]
    assert [wide[i].stride[0] for i in (0, 3, 6)] == [2, 1, 1]
