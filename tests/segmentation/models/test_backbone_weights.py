"""ImageNet weights of a ResNet in the layouts in which they are published."""

import pytest
import torch

from ema_ops.segmentation.models import EMANet, load_backbone_weights
from ema_ops.segmentation.models.resnet import ResNet

FLAT = {"stem.0": "conv1", "stem.1": "bn1", "stem.3": "conv2", "stem.4": "bn2", "stem.6": "conv3", "stem.7": "bn3"}
NESTED = {**{f"stem.{i}": f"conv1.{i}" for i in (0, 1, 3, 4, 6)}, "stem.7": "bn1"}
LAYOUTS = {"flat": FLAT, "nested": NESTED, "mmsegmentation": {}}


@pytest.fixture(scope="module")
def network():
    return EMANet(3, channels=8, num_bases=4)


@pytest.fixture
def weights():
    """Weights of the same ResNet, each filled with a number of its own."""
    with torch.device("meta"):
        state = ResNet("resnet50").state_dict()
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return {key: torch.tensor(float(number)).expand(value.shape) for number, (key, value) in enumerate(kept.items())}


def renamed(weights, names):
    def rename(key):
        return next((new + key[len(old) :] for old, new in names.items() if key.startswith(old + ".")), key)

    return {rename(key): value for key, value in weights.items()}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(network, weights, layout, wrapped, tmp_path):
    content = renamed(weights, LAYOUTS[layout])
    content |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    if wrapped:
        content = {"state_dict": {f"module.{key}": value for key, value in content.items()}, "epoch": 100}
    torch.save(content, tmp_path / "resnet.pth")
    for parameter in network.backbone.parameters():
        parameter.detach().fill_(-1)
    load_backbone_weights(network, tmp_path / "resnet.pth")
    state = network.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())


def test_weights_that_do_not_fit(network, weights, tmp_path):
    path = tmp_path / "resnet.pth"
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}

    def refused(content, message):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_backbone_weights(network, path)

    plain = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}
    refused(plain, r"resnet.pth has a stem of one convolution \[64, 3, 7, 7\]: expected a deep stem")
    refused({**weights, "layer5.0.conv1.weight": torch.zeros(1)}, "without a place: layer5.0.conv1.weight")
    narrow = {**weights, "stem.0.weight": torch.zeros(32, 3, 3, 3)}
    refused(
        narrow, r"resnet.pth does not fit the ResNet; of another shape: stem.0.weight \[32, 3, 3, 3\] \(expected \[64"
    )
    weights.pop("layer1.0.conv1.weight")
    refused(weights, "missing: layer1.0.conv1.weight")
    refused({"epoch": 1}, "resnet.pth holds epoch that are no tensors")
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"resnet.pth is not a checkpoint"):
        load_backbone_weights(network, path)
    with pytest.raises(FileNotFoundError, match=r"absent.pth does not exist"):
        load_backbone_weights(network, tmp_path / "absent.pth")
    after = network.backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
