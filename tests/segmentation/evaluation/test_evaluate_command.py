"""`ema-ops evaluate` as users call it, alone and as several processes."""

import importlib.util
import json

import pytest
import torch

from ema_ops import PRESETS
from ema_ops.cli import main
from ema_ops.segmentation.evaluation import evaluate
from ema_ops.segmentation.models import EMANet, export_network, load_network, save_network

FOLDER = ["--kind", "folder", "--split", "all", "--option", "classes=[background, disc, stripe]"]


@pytest.fixture
def data(root):
    return [*FOLDER, "--root", str(root)]


def test_table_and_files(checkpoint, data, network, dataset, tmp_path, capsys):
    options = ["--scales", "0.5", "1", "--flip", "--batch", "3", "--workers", "0"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *options, "--out", str(tmp_path / "out")]) == 0
    expected = evaluate(network, dataset, scales=(0.5, 1), flip=True)
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["confusion"] == expected.confusion.tolist()
    assert content["mean_iou"] == expected.mean_iou
    assert [one["name"] for one in content["classes"]] == list(dataset.classes)
    settings = content["settings"]
    assert settings["checkpoint"] == str(checkpoint)
    assert settings["data"]["pictures"] == 7
    assert (settings["scales"], settings["flip"], settings["mode"]) == ([0.5, 1.0], True, "whole")
    out = capsys.readouterr().out
    assert (tmp_path / "out" / "table.txt").read_text() in out
    assert f"mIoU {expected.mean_iou:.4f}" in out
    assert str(tmp_path / "out" / "confusion.png") in out


def test_windows_and_iterations(checkpoint, data, dataset, tmp_path):
    options = ["--mode", "slide", "--window", "16", "20", "--stride", "8", "8", "--iters", "1", "--workers", "0"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *options, "--out", str(tmp_path)]) == 0
    network, _ = load_network(checkpoint, num_iters=1)
    windows = {"mode": "slide", "window": (16, 20), "stride": (8, 8)}
    confusion = json.loads((tmp_path / "scores.json").read_text())["confusion"]
    assert confusion == evaluate(network, dataset, **windows).confusion.tolist()
    assert confusion != evaluate(load_network(checkpoint)[0], dataset, **windows).confusion.tolist()


def test_compiled_network_is_judged_the_same(checkpoint, data, network, dataset, tmp_path, compiled):
    options = ["--compile", "--workers", "0", "--out", str(tmp_path)]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *options]) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["confusion"] == evaluate(network, dataset).confusion.tolist()
    assert content["settings"]["compile"]
    assert len(compiled) == 1, "one graph for pictures of three sizes"


def test_data_set_of_the_checkpoint(network, dataset, root, tmp_path, capsys):
    path = tmp_path / "trained.pt"
    opened = {"kind": "folder", "root": str(root), "split": "all", "options": {"classes": list(dataset.classes)}}
    save_network(path, network, classes=dataset.classes, data=opened)
    assert main(["evaluate", "--checkpoint", str(path), "--workers", "0"]) == 0
    content = json.loads((tmp_path / "trained_evaluation" / "scores.json").read_text())
    assert content["confusion"] == evaluate(network, dataset).confusion.tolist()
    assert "note" not in capsys.readouterr().err


def test_checkpoint_of_the_official_implementation(data, dataset, tmp_path):
    torch.manual_seed(0)
    network = EMANet(3, "resnet50", 16, num_bases=8, channels=16, momentum=0.1, renormalize="none", grad_iters=0)
    path = tmp_path / "official.pth"
    export_network(network, path, target="official")
    assert main(["evaluate", "--checkpoint", str(path), *data, "--workers", "0", "--out", str(tmp_path)]) == 0
    loaded, checkpoint = load_network(path)
    assert checkpoint.source == "official"
    confusion = json.loads((tmp_path / "scores.json").read_text())["confusion"]
    assert confusion == evaluate(loaded, dataset).confusion.tolist()


def test_two_processes_equal_one(checkpoint, data, network, dataset, tmp_path, two_processes):
    command = ["evaluate", "--checkpoint", str(checkpoint), *data, "--batch", "2", "--workers", "0", "--device", "cpu"]
    outputs = two_processes(*command, "--out", str(tmp_path))
    assert [status for status, *_ in outputs] == [0, 0], outputs
    # seven pictures on two processes: every one counted once
    confusion = json.loads((tmp_path / "scores.json").read_text())["confusion"]
    assert confusion == evaluate(network, dataset).confusion.tolist()
    assert "mIoU" in outputs[0][1]
    assert outputs[1][1] == ""


def test_other_names_of_the_classes_are_told(network, data, tmp_path, capsys):
    save_network(tmp_path / "a.pt", network, classes=("background", "circle", "stripe"))
    assert main(["evaluate", "--checkpoint", str(tmp_path / "a.pt"), *data, "--workers", "0"]) == 0
    assert f"note: class 1 is 'circle' in {tmp_path / 'a.pt'} and 'disc' in the data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--option", "classes=[a, b]"], r"network.pt has 3 classes: expected 2, as the data set has"),
        (["--option", "classes"], "option is 'classes': expected KEY=VALUE"),
        (["--option", "colour=1"], "option 'colour' is unknown: expected one of"),
        (["--option", "split=val"], "option 'split' is unknown: expected one of"),
        (["--split", "test"], "test.txt is missing"),
        (["--batch", "0"], "batch is 0: expected at least 1"),
        (["--iters", "0"], "iters is 0"),
        (["--output-stride", "7"], "network.pt: output_stride is 7: small offers 4, 8, 16"),
        (["--mode", "slide"], "window is None with mode 'slide'"),
        (["--scales", "0"], "scales has 0.0: expected positive numbers"),
        (["--device", "cuda:77"], "device is 'cuda:77': expected a device that is there"),
        (["--checkpoint", "no.pt"], "no.pt does not exist: expected a checkpoint file"),
        (["--checkpoint", __file__], "test_evaluate_command.py is not a checkpoint"),
    ],
)
def test_errors_are_one_line(checkpoint, data, options, message, capsys, tmp_path):
    out = ["--out", str(tmp_path), "--workers", "0"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *out, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ema-ops evaluate: ")
    assert message in error


def test_pictures_without_memory_are_named(checkpoint, data, root, tmp_path, capsys, fail_at):
    fail_at(2, torch.OutOfMemoryError("CUDA out of memory"))
    out = ["--out", str(tmp_path), "--workers", "0", "--batch", "3"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *out]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    # the first three of one size are together, then one is left
    assert f"{root / 'images' / '2.png'}, {root / 'images' / '6.png'}: no memory for pictures of 2 x 17 x 40" in error


def test_interrupted(checkpoint, data, tmp_path, capsys, fail_at):
    fail_at(3, KeyboardInterrupt())
    out = ["--out", str(tmp_path), "--workers", "1"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *out]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ema-ops evaluate: interrupted"


def test_place_for_the_result_is_needed_before_the_evaluation(checkpoint, data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = ["--out", str(tmp_path / "file"), "--workers", "0"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, *out]) == 2
    captured = capsys.readouterr()
    assert str(tmp_path / "file") in captured.err
    assert "mIoU" not in captured.out


def test_output_stride_of_a_file_that_does_not_tell(data, dataset, tmp_path):
    torch.manual_seed(0)
    network = EMANet(3, "resnet50", 16, num_bases=8, channels=16, **PRESETS["official"])
    path = tmp_path / "official.pth"
    export_network(network, path, target="official")
    options = ["--output-stride", "16", "--workers", "0", "--out", str(tmp_path)]
    assert main(["evaluate", "--checkpoint", str(path), *data, *options]) == 0
    confusion = json.loads((tmp_path / "scores.json").read_text())["confusion"]
    assert confusion == evaluate(network, dataset).confusion.tolist()
    assert confusion != evaluate(load_network(path)[0], dataset).confusion.tolist()


def test_data_set_that_was_moved(network, dataset, tmp_path, capsys):
    path = tmp_path / "trained.pt"
    opened = {"kind": "folder", "root": "elsewhere", "split": "all", "options": {"classes": list(dataset.classes)}}
    save_network(path, network, classes=dataset.classes, data=opened)
    assert main(["evaluate", "--checkpoint", str(path)]) == 2
    expected = f"{path} was trained on the data in elsewhere, which is not there: expected --root"
    assert capsys.readouterr().err == f"ema-ops evaluate: {expected}\n"


def test_data_set_must_be_known(checkpoint, capsys):
    assert main(["evaluate", "--checkpoint", str(checkpoint)]) == 2
    assert "network.pt does not tell its data set: expected --kind" in capsys.readouterr().err
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--kind", "voc"]) == 2
    assert "expected --root" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    for option in ("--checkpoint", "--scales", "--flip", "--window H W", "--precision", "--iters", "--out"):
        assert option in text


def test_missing_package_is_named(checkpoint, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchmetrics" else found(name))
    assert main(["evaluate", "--checkpoint", str(checkpoint)]) == 2
    assert "not installed: torchmetrics: expected `pip install 'ema_ops[segmentation]'`" in capsys.readouterr().err
