"""`ema-ops data`: what it prints and how it ends."""

import errno
import json

import numpy as np
import pytest

from ema_ops.cli import main
from ema_ops.cli.data import parsed_option


@pytest.fixture
def folder(tree):
    for name in "ab":
        tree.picture(f"images/{name}.jpg", 4, 2)
        tree.mask(f"masks/{name}.png", np.array([[0, 1, 1, 255], [0, 1, 1, 255]]))
    return tree


CHECK = ("--kind", "folder", "--option", "classes=[ground, cat, dog]", "--workers", "0")


def test_clean(folder, capsys):
    assert main(["data", "check", str(folder.root), *CHECK]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[-1] == f"{folder.root} all: 2 pictures, no problems"
    table = [line.split() for line in lines[:-1]]
    assert table[1:] == [
        ["0", "ground", "4", "25.00%", "2"],
        ["1", "cat", "8", "50.00%", "2"],
        ["2", "dog", "0", "0.00%", "0"],
        ["ignored", "4", "25.00%"],
    ]


def test_masks_of_0_and_255_are_told(tree, capsys):
    tree.picture("images/a.jpg", 4, 2)
    tree.mask("masks/a.png", np.array([[0, 0, 255, 255], [0, 0, 255, 255]]))
    assert main(["data", "check", str(tree.root), *CHECK]) == 0
    assert capsys.readouterr().err == "note: all labels are 'ground'; 255 is for pixels to ignore, not for a class\n"


def test_problems(folder, tmp_path, capsys):
    (folder.root / "images/a.jpg").write_bytes(b"x")
    (folder.root / "masks/b.png").unlink()
    file = tmp_path / "report.json"
    assert main(["data", "check", str(folder.root), *CHECK, "--split", "all", "--json", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "masks/b.png is missing" in lines[0]
    assert "images/a.jpg is not a picture" in lines[1]
    assert lines[-1].endswith("2 pictures, 2 problems")
    report = json.loads(file.read_text())
    assert report["problems"] == lines[:2]
    assert report["pictures"] == 2
    assert report["classes"][1] == {"name": "cat", "pixels": 4, "pictures": 1}
    assert report["ignored_pixels"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "coco"], "kind is 'coco': expected one of voc"),
        (["--kind", "folder"], "classes and num_classes are missing"),
        (["--kind", "folder", "--option", "color=red"], "option 'color' is unknown"),
        (["--kind", "folder", "--option", "transform=1"], "option 'transform' is unknown"),
        (["--kind", "folder", "--option", "workers=3"], "option 'workers' is unknown"),
        (["--kind", "folder", "--option", "num_classes"], "option is 'num_classes': expected KEY=VALUE"),
        (["--kind", "folder", "--option", "classes=[a"], "option classes is '[a': expected a value as YAML"),
        ([*CHECK, "--workers", "-1"], "workers is -1"),
    ],
)
def test_bad_arguments(folder, capsys, options, message):
    assert main(["data", "check", str(folder.root), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ema-ops data: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("-2E6", -2e6), ("1.5", 1.5), ("3", 3), ("[a, 1e1]", ["a", 10.0]), ("e5", "e5"), ("", None)],
)
def test_options_are_read_as_configs_are(text, value):
    parsed = parsed_option(f"key={text}")
    assert parsed == ("key", value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "{[a]: 1}", "2026-13-01", "[a"])
def test_what_is_no_value_is_named(text):
    with pytest.raises(ValueError, match=r"option key is .*: expected a value as YAML writes it") as caught:
        parsed_option(f"key={text}")
    assert repr(text) in str(caught.value)


def test_set_that_is_not_there(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "no"), "--kind", "generated"]) == 1
    assert f"run `ema-ops data generate {tmp_path / 'no'}`" in capsys.readouterr().out


def test_help_and_list(capsys):
    assert main(["data"]) == 0
    assert "generate" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    for kind in ("voc", "context", "coco_stuff", "cityscapes", "folder", "generated"):
        assert f"\n{kind}: " in f"\n{listed}"
    assert "root/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png" in listed
    assert "options: classes, num_classes, sbd" in listed


def test_generate(tmp_path, capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    root = tmp_path / "set"
    assert main(["data", "generate", str(root), "--train", "3", "--val", "2"]) == 0
    assert main(["data", "check", str(root), "--kind", "generated", "--split", "val", "--workers", "0"]) == 0
    assert "marked two" in capsys.readouterr().out
    assert main(["data", "generate", str(root)]) == 2
    assert main(["data", "generate", str(tmp_path / "other"), "--val", "0"]) == 2
    error = capsys.readouterr().err
    assert f"{root} is there already: expected a new or empty folder" in error
    assert "val is 0: expected 1 or more" in error
    assert not (tmp_path / "other").exists()


def test_full_disk_names_the_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ema_ops.segmentation.data.generated.build", full)
    assert main(["data", "generate", str(tmp_path / "new")]) == 2
    expected = f"ema-ops data: {tmp_path}/new cannot be written to: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err.endswith(expected)
