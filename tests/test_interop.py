"""States and numbers of the official implementation and of mmsegmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ema_ops import PRESETS, EMAttention, EMAUnit
from ema_ops.interop import convert_state_dict

VECTORS = Path(__file__).parent / "vectors"
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def vectors(name):
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def state_of(numbers, prefix="state."):
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ["detached", "unrolled"])
@pytest.mark.parametrize("name", ["official_emau_small", "official_emau_one_stage", "official_emau_paper_like"])
def test_official_unit(name, kind, fold):
    numbers = vectors(name)
    state = state_of(numbers)
    _, channels, num_bases = state["mu"].shape
    options = PRESETS["official"] | {"grad_iters": 0 if kind == "detached" else None, "fold": fold}
    unit = EMAUnit(channels, num_bases, int(numbers["stages"]), **options).double().eval()
    unit.load_state_dict(convert_state_dict(state, source="official"))

    x = numbers["x"].requires_grad_()
    y, bases = unit(x, return_bases=True)
    y.backward(numbers["grad_out"])
    with torch.no_grad():
        alone, _ = unit(x, return_bases=True)

    torch.testing.assert_close(y, numbers[f"{kind}.y"], **CLOSE)
    torch.testing.assert_close(alone, numbers[f"{kind}.y"], **CLOSE)
    torch.testing.assert_close(bases[:, 0], numbers[f"{kind}.mu"], **CLOSE)
    torch.testing.assert_close(x.grad, numbers[f"{kind}.grad.x"], **CLOSE)
    for part in ("weight", "bias"):
        grad, expected = getattr(unit.conv1, part).grad, numbers[f"{kind}.grad.conv1.{part}"]
        if kind == "detached":
            assert grad is None
            assert expected.count_nonzero() == 0
        else:
            torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-11)

    back = convert_state_dict(unit.state_dict(), target="official")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_mmsegmentation_module_with_its_running_bases():
    numbers = vectors("mmseg_emahead")
    layer = EMAttention(32, 12, **PRESETS["mmsegmentation"]).double()
    layer.bases.copy_(numbers["state.ema_module.bases"])
    torch.testing.assert_close(layer.eval()(numbers["module.feats"]), numbers["module.eval"], **CLOSE)
    layer.train()
    for step in (1, 2):
        y = layer(step * numbers["module.feats"])
        torch.testing.assert_close(y, numbers[f"module.train{step}"], **CLOSE)
        torch.testing.assert_close(layer.bases, numbers[f"module.bases_after{step}"], **CLOSE)


def test_mmsegmentation_head_around_our_unit():
    """The whole head in evaluation, with nothing but convolutions around the converted unit."""
    numbers = vectors("mmseg_emahead")
    state = state_of(numbers)
    parts = ("ema_mid_conv.", "ema_module.", "ema_out_conv.")
    unit = EMAUnit(32, 12, **PRESETS["mmsegmentation"]).double().eval()
    unit.load_state_dict(
        convert_state_dict({k: v for k, v in state.items() if k.startswith(parts)}, source="mmsegmentation")
    )

    def conv_norm_relu(x, name):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm))

    x = numbers["x"]
    y = conv_norm_relu(unit(conv_norm_relu(x, "ema_in_conv")), "bottleneck")
    y = conv_norm_relu(torch.cat([x, y], 1), "conv_cat")
    y = F.conv2d(y, state["conv_seg.weight"], state["conv_seg.bias"])
    torch.testing.assert_close(y, numbers["eval.logits"], rtol=1e-10, atol=1e-12)


NETWORK = {
    "official": {
        "extractor.0.3.weight": "backbone.stem.3.weight",
        "extractor.1.running_mean": "backbone.stem.7.running_mean",
        "extractor.4.0.conv1.weight": "backbone.layer1.0.conv1.weight",
        "extractor.7.2.downsample.0.weight": "backbone.layer4.2.downsample.0.weight",
        "fc0.conv.weight": "reduce.conv.weight",
        "fc0.bn.bias": "reduce.norm.bias",
        "emau.mu": "unit.attention.bases",
        "emau.conv1.bias": "unit.conv1.bias",
        "emau.conv2.0.weight": "unit.conv2.weight",
        "emau.conv2.1.running_var": "unit.norm.running_var",
        "fc1.0.conv.weight": "bottleneck.conv.weight",
        "fc1.0.bn.weight": "bottleneck.norm.weight",
        "fc2.bias": "classifier.bias",
    },
    "mmsegmentation": {
        "backbone.stem.7.weight": "backbone.stem.7.weight",
        "backbone.layer3.5.bn2.bias": "backbone.layer3.5.bn2.bias",
        "decode_head.ema_in_conv.conv.weight": "reduce.conv.weight",
        "decode_head.ema_module.bases": "unit.attention.bases",
        "decode_head.ema_mid_conv.conv.bias": "unit.conv1.bias",
        "decode_head.ema_out_conv.bn.weight": "unit.norm.weight",
        "decode_head.bottleneck.bn.bias": "bottleneck.norm.bias",
        "decode_head.conv_cat.conv.weight": "concat.conv.weight",
        "decode_head.conv_seg.bias": "classifier.bias",
        "auxiliary_head.convs.0.bn.weight": "auxiliary.norm.weight",
        "auxiliary_head.conv_seg.weight": "auxiliary_classifier.weight",
    },
}


@pytest.mark.parametrize("implementation", NETWORK)
@pytest.mark.parametrize("wrapped", [False, True])
def test_network_keys_both_ways(implementation, wrapped):
    names = NETWORK[implementation]
    state = {key: torch.randn(1, 2, 3) for key in names}
    given = state
    if wrapped:
        wrapper = {"official": "net", "mmsegmentation": "state_dict"}[implementation]
        given = {wrapper: {f"module.{k}": v for k, v in state.items()}, "step": 3}
    ours = convert_state_dict(given, source=implementation, scope="network")
    assert ours == {names[key]: value for key, value in state.items()}
    assert convert_state_dict(ours, target=implementation, scope="network") == state


def test_every_key_of_the_official_network_has_a_place():
    keys = (VECTORS / "official_emanet50_keys.txt").read_text().split()
    state = {key: torch.full((1, 1, 1), float(number)) for number, key in enumerate(keys)}
    ours = convert_state_dict(state, source="official", scope="network")
    assert len(ours) == len(keys) == 353
    assert convert_state_dict(ours, target="official", scope="network") == state


def test_errors():
    state = {"mu": torch.ones(1, 2, 3)}
    with pytest.raises(ValueError, match="source is None and target is None: expected exactly one"):
        convert_state_dict(state)
    with pytest.raises(ValueError, match="expected exactly one of them"):
        convert_state_dict(state, source="official", target="official")
    with pytest.raises(ValueError, match="source is 'paddle': expected one of 'official', 'mmsegmentation'"):
        convert_state_dict(state, source="paddle")
    with pytest.raises(ValueError, match="scope is 'head': expected one of 'unit', 'network'"):
        convert_state_dict(state, source="official", scope="head")
    with pytest.raises(ValueError, match=r"keys without a place .*: conv3.weight, mu2"):
        convert_state_dict({**state, "mu2": state["mu"], "conv3.weight": state["mu"]}, source="official")
    with pytest.raises(ValueError, match=r"keys without a place .*: concat.conv.weight"):
        convert_state_dict({"concat.conv.weight": state["mu"]}, target="official", scope="network")
    with pytest.raises(ValueError, match=r"attention.bases has shape \[2, 4, 3\]: official knows one head"):
        convert_state_dict(EMAUnit(8, 3, num_heads=2).state_dict(), target="official")
    with pytest.raises(TypeError, match="state is list: expected a mapping"):
        convert_state_dict([], source="official")
    with pytest.raises(TypeError, match="'step': int, expected names and tensors only"):
        convert_state_dict({"step": 3}, source="official")
