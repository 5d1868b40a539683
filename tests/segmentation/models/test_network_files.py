"""save_network, read_checkpoint, load_network, export_network: there and back, and files that are refused."""

import pickle
import sys
from collections import OrderedDict
from types import ModuleType

import numpy as np
import pytest
import torch
from published_weights import shapes_of

from ema_ops import PRESETS
from ema_ops.segmentation.models import EMANet, export_network, load_network, read_checkpoint, save_network

CLASSES = ("background", "cat", "dog")
PALETTE = [[0, 0, 0], [200, 30, 255], [7, 8, 9]]
SMALL = {"num_classes": 3, "backbone": "small", "output_stride": 4, "num_bases": 4, "channels": 16}


@pytest.fixture
def saved(tmp_path):
    network = EMANet(**SMALL, head="mmsegmentation", scale=0.5).eval()
    path = tmp_path / "network.pt"
    data = {"kind": "voc", "root": "VOC2012"}
    save_network(path, network, classes=CLASSES, palette=PALETTE, data=data, training={"step": 7})
    return path, network


def test_there_and_back(saved):
    path, network = saved
    again, checkpoint = load_network(path)
    images = torch.randn(1, 3, 33, 40)
    assert torch.equal(again(images), network(images))
    assert not again.training
    assert again.options == network.options
    assert checkpoint.source == "ema_ops"
    assert checkpoint.classes == CLASSES
    assert checkpoint.palette == ((0, 0, 0), (200, 30, 255), (7, 8, 9))
    assert checkpoint.model == network.options
    assert checkpoint.content["data"] == {"kind": "voc", "root": "VOC2012"}
    assert checkpoint.content["training"] == {"step": 7}
    content = torch.load(path, weights_only=True)
    assert (content["format"], content["version"]) == ("ema_ops.segmentation", 1)
    assert content["network"].keys() == network.state_dict().keys()


def test_a_file_does_not_ask_for_the_backend_it_was_trained_with(tmp_path):
    save_network(tmp_path / "network.pt", EMANet(**SMALL, backend="cuda"), classes=CLASSES)
    network, checkpoint = load_network(tmp_path / "network.pt")
    assert "backend" not in checkpoint.model
    assert network(torch.randn(1, 3, 17, 17)).isfinite().all()


def test_overrides_win(saved):
    path, network = saved
    again, _ = load_network(path, num_iters=5, output_stride=8, backend="torch")
    assert (again.unit.attention.num_iters, again.options["output_stride"]) == (5, 8)
    assert torch.equal(again.classifier.weight, network.classifier.weight)
    with pytest.raises(ValueError, match=r"network.pt does not fit the EMANet; .*classifier.weight \[3, 8, 1, 1\]"):
        load_network(path, num_classes=4)
    with pytest.raises(ValueError, match=r"network.pt: .*backbone is 'large'"):
        load_network(path, backbone="large")
    with pytest.raises(ValueError, match=r"network.pt does not fit the EMANet; without a place: concat.conv.weight"):
        load_network(path, head="official")
    with pytest.raises(
        ValueError, match=r"missing: backbone.stem.0.weight, .* and 2\d\d more; without a place: backbone.st"
    ):
        load_network(path, backbone="resnet50", output_stride=8)


def test_saving_errors(tmp_path):
    network, path = EMANet(**SMALL), tmp_path / "network.pt"
    with pytest.raises(ValueError, match="classes has 2 names: expected num_classes = 3"):
        save_network(path, network, classes=("a", "b"))
    with pytest.raises(TypeError, match="classes is 'abc': expected a sequence of names"):
        save_network(path, network, classes="abc")
    with pytest.raises(TypeError, match="network is Linear: expected an EMANet"):
        save_network(path, torch.nn.Linear(1, 1), classes=CLASSES)
    with pytest.raises(TypeError, match=r"data.root is PosixPath: expected tensors and plain values only"):
        save_network(path, network, classes=CLASSES, data={"root": tmp_path})
    with pytest.raises(TypeError, match=r"training.rates\[1\] is complex"):
        save_network(path, network, classes=CLASSES, training={"rates": [1.0, 1j]})
    with pytest.raises(ValueError, match="model cannot be given"):
        save_network(path, network, classes=CLASSES, model={})
    assert not path.exists()


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_options_of_an_official_file(name, tmp_path):
    path = tmp_path / "official.pth"
    state = shapes_of("official", num_classes=7, backbone=name, channels=24, bottleneck_channels=20, num_bases=6)
    torch.save({"net": {f"module.{key}": value for key, value in state.items()}, "step": 3}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.source == "official"
    assert checkpoint.classes is None
    assert checkpoint.content["step"] == 3
    expected = {
        "num_classes": 7,
        "backbone": name,
        "num_bases": 6,
        "head": "official",
        "channels": 24,
        "bottleneck_channels": 20,
        "auxiliary": False,
        "align_corners": True,
        "multi_grid": [1, 2, 4],
        "stem_channels": 128,
    }
    assert checkpoint.model == {**expected, **PRESETS["official"]}


@pytest.mark.parametrize("auxiliary", [True, False])
def test_options_of_a_file_of_mmsegmentation(auxiliary, tmp_path):
    path = tmp_path / "mmsegmentation.pth"
    state = shapes_of("mmsegmentation", num_classes=3, channels=24, num_bases=6, auxiliary=auxiliary)
    meta = {"dataset_meta": {"classes": CLASSES, "palette": PALETTE}, "epoch": 1}
    torch.save({"meta": meta, "state_dict": OrderedDict(state)}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.source == "mmsegmentation"
    assert checkpoint.classes == CLASSES
    assert checkpoint.model["head"] == "mmsegmentation"
    assert checkpoint.model["auxiliary"] is auxiliary
    assert (checkpoint.model["align_corners"], checkpoint.model["multi_grid"]) == (False, [1, 1, 1])
    assert checkpoint.model["stem_channels"] == 64
    assert checkpoint.model["renormalize"] == "mean"
    assert checkpoint.palette == tuple(map(tuple, PALETTE))
    # earlier releases, and a state dict alone in the old file format
    torch.save({"meta": {"CLASSES": CLASSES, "PALETTE": PALETTE}, "state_dict": state}, path)
    assert read_checkpoint(path).classes == CLASSES
    assert read_checkpoint(path).palette == checkpoint.palette
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path).model == checkpoint.model
    assert read_checkpoint(path).palette is None


@pytest.mark.parametrize(
    "palette", [None, "red", PALETTE[:2], [*PALETTE[:2], [1, 2]], [*PALETTE[:2], [0, 0, 256]], [[0.1, 0.2, 0.3]] * 3]
)
def test_colours_that_are_none_are_left_out(palette, tmp_path):
    path = tmp_path / "mmsegmentation.pth"
    state = shapes_of("mmsegmentation", num_classes=3, channels=24, num_bases=6)
    torch.save({"meta": {"dataset_meta": {"classes": CLASSES, "palette": palette}}, "state_dict": state}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.palette is None
    assert checkpoint.classes == CLASSES


def test_export_to_mmsegmentation_and_back(tmp_path):
    network = EMANet(3, channels=8, num_bases=4, head="mmsegmentation", **PRESETS["mmsegmentation"])
    path = tmp_path / "export.pth"
    export_network(network, path, "mmsegmentation")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(state["decode_head.ema_module.bases"], network.unit.attention.bases)
    again, checkpoint = load_network(path)
    assert checkpoint.source == "mmsegmentation"
    assert (checkpoint.classes, checkpoint.palette) == (None, None)
    assert again.options == network.options
    ours = network.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in again.state_dict().items())


def test_names_and_colours_go_to_mmsegmentation_and_back(tmp_path):
    with torch.device("meta"):
        network = EMANet(3, channels=8, num_bases=4, head="mmsegmentation", **PRESETS["mmsegmentation"])
    network.to_empty(device="cpu")
    path = tmp_path / "export.pth"
    export_network(network, path, "mmsegmentation", classes=CLASSES, palette=np.array(PALETTE, dtype=np.uint8))
    assert torch.load(path, weights_only=True)["meta"]["dataset_meta"]["palette"] == PALETTE
    checkpoint = read_checkpoint(path)
    assert (checkpoint.classes, checkpoint.palette) == (CLASSES, tuple(map(tuple, PALETTE)))
    with pytest.raises(ValueError, match="palette has 2 entries: expected num_classes = 3"):
        export_network(network, path, "mmsegmentation", palette=PALETTE[:2])


def test_export_errors(tmp_path):
    def refused(message, target="official", **options):
        with torch.device("meta"):
            network = EMANet(**options)
        with pytest.raises(ValueError, match=message):
            export_network(network, tmp_path / "export.pth", target)
        assert not (tmp_path / "export.pth").exists()

    refused("target is 'paddle': expected one of 'official', 'mmsegmentation'", target="paddle")
    refused("backbone is 'small': official has 'resnet50'", **SMALL)
    refused(
        "head is 'mmsegmentation': official has 'official'",
        head="mmsegmentation",
        align_corners=True,
        stem_channels=128,
    )
    refused(r"multi_grid is \[1, 1, 1\]: official has \[1, 2, 4\]", multi_grid=(1, 1, 1))
    refused("num_heads is 2: official has 1", num_heads=2)
    refused("scale is 2.0: official has 1.0", scale=2.0)
    refused("stem_channels is 128: mmsegmentation has 64", target="mmsegmentation", align_corners=False)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.pt does not exist: expected a checkpoint file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(IsADirectoryError, match="is a folder: expected a checkpoint file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\x80", b"PK\x03\x04", b"\x00" * 5000, b"cos\nsystem\n", b"(dp0\n."]
)
def test_files_that_are_something_else(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes.txt (is not a checkpoint|holds nothing)") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("old_format", [False, True])
def test_truncated_files(saved, old_format):
    path, _ = saved
    if old_format:
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in (1, 10, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"network.pt is not a checkpoint: it (cannot be read|is neither)"):
            load_network(path)


class Harmful:
    """What a pickle may do that is only opened."""

    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_objects_are_not_opened(tmp_path):
    path = tmp_path / "objects.pt"
    torch.save({"state_dict": Harmful()}, path)
    message = r"objects.pt is not a checkpoint: it holds a Python object \(.*exec\), expected tensors and plain values"
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


class HistoryBuffer:
    """Pickled as mmengine 0.10 pickles its class of this name: arrays, and methods by the name of their attribute."""

    def __init__(self):
        self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])

    def mean(self):
        return self._log_history.mean()

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}


def save_as_mmengine(path, state, monkeypatch, **more):
    """A file as mmengine's runner writes it; here nobody has mmengine."""
    name = "mmengine.logging.history_buffer"
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    monkeypatch.setattr(HistoryBuffer.mean, "__module__", name)
    with monkeypatch.context() as patch:
        for length in (1, 2, 3):
            part = ".".join(name.split(".")[:length])
            patch.setitem(sys.modules, part, ModuleType(part))
        sys.modules[name].HistoryBuffer = HistoryBuffer
        scalars = OrderedDict({"train/loss": HistoryBuffer()})
        info = OrderedDict({"iter": 5, "best": np.float64(0.5)})
        content = {"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": state}
        torch.save({**content, "message_hub": {"log_scalars": scalars, "runtime_info": info}, **more}, path)


def test_training_files_of_mmengine(tmp_path, monkeypatch):
    path = tmp_path / "iter_5.pth"
    state = shapes_of("mmsegmentation", num_classes=3, channels=24, num_bases=6)
    save_as_mmengine(path, state, monkeypatch)
    asked_for = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    core = "numpy._core.multiarray" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core.multiarray"
    # those that a file of mmengine 0.10 asks for
    assert asked_for == {
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
        "numpy.ndarray",
        "numpy.dtype",
        f"{core}.scalar",
        f"{core}._reconstruct",
    }
    allowed = set(torch.serialization.get_safe_globals())
    checkpoint = read_checkpoint(path)
    assert (checkpoint.source, checkpoint.classes) == ("mmsegmentation", CLASSES)
    assert checkpoint.state["classifier.weight"].shape[0] == 3
    assert checkpoint.content["message_hub"]["runtime_info"]["iter"] == 5
    assert "mmengine" not in sys.modules
    # nothing is allowed for longer than the file is read
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_objects_beside_those_of_mmengine_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "iter_5.pth"
    state = shapes_of("mmsegmentation", num_classes=3, channels=24, num_bases=6)
    save_as_mmengine(path, state, monkeypatch, optimizer=Harmful())
    with pytest.raises(ValueError, match=r"iter_5.pth is not a checkpoint: it holds a Python object \(.*exec\)"):
        read_checkpoint(path)
    save_as_mmengine(path, {**state, "decode_head.conv_seg.weight": np.ones(3)}, monkeypatch)
    with pytest.raises(ValueError, match=r"iter_5.pth holds decode_head.conv_seg.weight that are no tensors"):
        read_checkpoint(path)


class Finder:
    """Asks for an attribute by name, as a harmful file would ask for a function."""

    def __reduce__(self):
        return getattr, (torch.Tensor, "tolist")


def test_attributes_are_not_found(tmp_path):
    path = tmp_path / "attributes.pt"
    torch.save({"state_dict": Finder()}, path)
    with pytest.raises(ValueError, match=r"attributes.pt holds state_dict that are no tensors"):
        read_checkpoint(path)


def test_other_contents(saved):
    path, _ = saved
    content = torch.load(path, weights_only=True)

    def refused(changed, message):
        torch.save(changed, path)
        with pytest.raises(ValueError, match=message):
            load_network(path)

    refused([1, 2], "network.pt holds list: expected a mapping with names")
    refused({}, "network.pt holds nothing: expected a state dict")
    refused(
        {"epoch": 3, "net": 1},
        "network.pt holds epoch, net that are no tensors: expected a state dict, or one under 'net'",
    )
    refused(
        {"format": "other", "version": 1}, "network.pt has format 'other', version 1: expected 'ema_ops.segmentation'"
    )
    refused({**content, "version": 2}, "network.pt has format 'ema_ops.segmentation', version 2: expected .* version 1")
    refused({**content, "network": None}, "network.pt is damaged: 'network' is NoneType")
    refused({**content, "network": {"a": 1}}, "network.pt holds a that are no tensors: expected a state dict")
    refused({**content, "model": {**content["model"], "depth": 3}}, "network.pt: .*depth")
    refused(
        torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(4))).state_dict(),
        r"network.pt is of another network, with 0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 3 more: expected .*"
        r"official \(extractor.\*, fc0.\*, emau.\*\) or mmsegmentation \(decode_head.\*, backbone.\*\)",
    )


def test_files_of_nearly_an_emanet(tmp_path):
    path = tmp_path / "nearly.pth"
    state = shapes_of("official", num_classes=7, channels=24)

    def refused(changed, message):
        torch.save({"net": changed, "step": 0}, path)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)

    def without(*keys):
        return {key: value for key, value in state.items() if key not in keys}

    refused({**state, "fc3.weight": state["fc2.weight"]}, r"nearly.pth is not an EMANet of the official .*: fc3.weight")
    refused(without("fc2.weight"), "nearly.pth is not a whole EMANet: classifier.weight .* is missing")
    refused(without("fc0.bn.bias"), "nearly.pth does not fit the EMANet; missing: reduce.norm.bias")
    refused({**state, "fc2.weight": torch.ones(7)}, r"nearly.pth: classifier.weight .* has shape \[7\]")
    refused({**state, "fc2.bias": torch.ones(8)}, r"of another shape: classifier.bias \[8\] \(expected \[7\]\)")
    refused({**state, "emau.mu": torch.ones(2, 24, 64)}, r"nearly.pth .* emau.mu has shape \[2, 24, 64\]")
    refused(
        {**state, "extractor.0.6.weight": torch.ones(9, 64, 3, 3)}, r"nearly.pth: stem_channels is 9: expected an even"
    )
    shallow = {key: value for key, value in state.items() if not key.startswith("extractor.6.5.")}
    refused(shallow, r"nearly.pth has \[3, 4, 5, 3\] blocks in its four stages: expected \[3, 4, 6, 3\] \(resnet50\)")
