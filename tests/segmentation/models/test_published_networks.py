"""Logits of the official network and of mmsegmentation's head, with their weights."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.validation.checkpoints import official_weights, vectors
from ema_ops import PRESETS
from ema_ops.interop import convert_state_dict
from ema_ops.segmentation.models import EMANet, emanet, export_network, read_checkpoint


@pytest.fixture(scope="module")
def official():
    """The official weights, float64."""
    with torch.device("meta"):
        ours = EMANet().state_dict()
    return official_weights(
        {k: v.shape for k, v in convert_state_dict(ours, target="official", scope="network").items()}
    )


def test_official_logits_from_an_official_file(official, tmp_path):
    path = tmp_path / "EMANet50.pth"
    torch.save({"net": official, "step": 30000}, path)
    checkpoint = read_checkpoint(path)
    network = EMANet(**checkpoint.model).double().eval()
    network.load_state_dict(checkpoint.state)
    with torch.no_grad():
        logits = network(torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, 97, 97))))
    # the file has float32 logits up to 975: half of their last digit
    torch.testing.assert_close(logits, vectors("official_emanet50_s8")["logits"].double(), rtol=2**-24, atol=1e-9)

    export_network(network, path)
    back = torch.load(path, weights_only=True)
    assert back["step"] == 0
    assert back["net"].keys() == official.keys()
    assert len(official) == 353
    assert all(torch.equal(back["net"][key], official[key]) for key in official)
    path.unlink()


def test_mmsegmentation_logits_from_its_head(monkeypatch):
    numbers = vectors("mmseg_emahead")
    state = {f"decode_head.{k.removeprefix('state.')}": v for k, v in numbers.items() if k.startswith("state.")}

    # `classify` begins behind the backbone, of which it needs the channels only
    backbone = nn.Identity()
    backbone.channels = (24, numbers["x"].shape[1])
    monkeypatch.setattr(emanet, "make_backbone", lambda *_, **__: backbone)
    options = {"channels": 32, "bottleneck_channels": 24, "auxiliary": False, **PRESETS["mmsegmentation"]}
    network = EMANet(5, num_bases=12, head="mmsegmentation", **options).double().eval()
    network.load_state_dict(convert_state_dict(state, source="mmsegmentation", scope="network"))

    torch.testing.assert_close(network.classify(numbers["x"]), numbers["eval.logits"], rtol=1e-10, atol=1e-12)
    back = convert_state_dict(network.state_dict(), target="mmsegmentation", scope="network")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
