"""Backbones of timm: the errors without it, and for real where it can be imported."""

import copy
import sys

import pytest
import torch
from torch import nn

from ema_ops.segmentation.models import EMANet, load_backbone_weights, load_network, receptive_field, save_network
from ema_ops.segmentation.models.timm_backbone import TimmBackbone

try:
    import timm
except (ImportError, RuntimeError) as error:
    timm, why = None, f"timm cannot be imported: {error}"
else:
    why = ""
needs_timm = pytest.mark.skipif(timm is None, reason=why)
OPTIONS = {"num_classes": 3, "num_bases": 4, "channels": 16}


def test_error_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"backbone 'timm:resnet18' needs timm .*: pip install timm"):
        EMANet(backbone="timm:resnet18")


def test_error_with_a_torchvision_of_another_torch(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"cannot be imported here \(operator torchvision::nms .* torchvision made for"
    ):
        EMANet(backbone="timm:resnet18")


@needs_timm
@pytest.mark.parametrize("head", ["official", "mmsegmentation"])
@pytest.mark.parametrize(("name", "stride"), [("resnet10t", 8), ("resnet10t", 16), ("mobilenetv3_small_050", 16)])
def test_network(name, stride, head, tmp_path):
    network = EMANet(**OPTIONS, backbone=f"timm:{name}", output_stride=stride, head=head)
    images = torch.randn(2, 3, 65, 97)
    logits, auxiliary = network(images, return_auxiliary=True)
    assert logits.shape == (2, 3, 65, 97)
    assert (auxiliary is None) == (head == "official")
    stage3, stage4 = network.backbone(images)
    assert (stage3.shape[1], stage4.shape[1]) == network.backbone.channels
    assert stage4.shape[2:] == (64 // stride + 1, 96 // stride + 1)
    logits.square().mean().backward()
    assert next(network.backbone.parameters()).grad.any()

    save_network(tmp_path / "network.pt", network, classes=("a", "b", "c"))
    again, _ = load_network(tmp_path / "network.pt")
    assert torch.equal(again(images), network.eval()(images))


@needs_timm
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "resnet10t.c3_in1k"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_published_weights(name, ending, tmp_path):
    """The features of the whole model with the same weights, at the stride it was made for."""
    whole = timm.create_model(name).eval()
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(whole.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(
            whole.state_dict(), path
        )
    network = EMANet(**OPTIONS, backbone=f"timm:{name}", output_stride=32).eval()
    images = torch.randn(1, 3, 64, 96)
    before = network.backbone(images)[1]
    load_backbone_weights(network, path)
    after = network.backbone(images)[1]
    expected = whole.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(after, expected)
    assert not torch.equal(after, before)

    state = whole.state_dict()
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=rf"other.pth does not fit the model {name} of timm; without a place: extra.weight"
    ):
        load_backbone_weights(network, tmp_path / "other.pth")


@needs_timm
@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("nothing", 8, "backbone is 'timm:nothing': expected a model of timm.list_models"),
        ("resnet10t", 4, "output_stride is 4: timm:resnet10t offers 8, 16, 32"),
        ("densenet121", 8, "output_stride is 8: timm:densenet121 offers 32"),
        ("vit_tiny_patch16_224", 16, "takes no images of any size .*224"),
        ("swin_tiny_patch4_window7_224", 32, "takes no images of any size .*224"),
    ],
)
def test_models_that_do_not_fit(name, stride, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, stride)


class Norm(nn.BatchNorm2d):
    """A batch norm that can be told from timm's own."""


@needs_timm
@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002", "mobilenetv3_small_050"])
def test_norm_layer_makes_every_batch_norm(name):
    """timm's own are the reference; those of the last two have their activation inside."""
    usual, ours = TimmBackbone(name, 16), TimmBackbone(name, 16, norm_layer=Norm)
    assert {type(m) for m in ours.modules() if isinstance(m, nn.BatchNorm2d)} == {Norm}
    assert list(ours.state_dict()) == list(usual.state_dict())
    ours.load_state_dict(usual.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images)[1], usual(images)[1])
    assert torch.equal(copy.deepcopy(ours).eval()(images)[1], usual.eval()(images)[1])


@needs_timm
def test_norm_layer_leaves_other_norms():
    model = TimmBackbone("convnext_atto", 16, norm_layer=Norm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@needs_timm
def test_receptive_field_is_unknown():
    with pytest.raises(ValueError, match="backbone is 'timm:resnet10t': expected a ResNet or 'small'"):
        receptive_field(EMANet(**OPTIONS, backbone="timm:resnet10t"))
