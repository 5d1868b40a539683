"""`ema-ops demo --image`: pictures of every kind, and a clear end for what is no picture."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ema_ops.cli import main
from ema_ops.cli.demo import PICTURE_NEEDS
from ema_ops.cli.extras import EXTRAS
from ema_ops.demo import attend

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A working directory without runs/demo, so that no trained network is found."""
    monkeypatch.chdir(tmp_path)


def _noise(mode, size):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode)


PICTURES = {
    "one_pixel.png": _noise("RGB", (1, 1)),
    "line.png": _noise("RGB", (1, 90)),
    "grey.png": _noise("L", (50, 40)),
    "alpha.png": _noise("RGBA", (31, 47)),
    "palette.gif": _noise("RGB", (40, 30)).quantize(16),
    "two_tone.png": _noise("L", (40, 30)).convert("1"),
    "deep.png": Image.fromarray(np.linspace(0, 60000, 40 * 30).reshape(30, 40).astype(np.uint16)),
    "cmyk.jpg": _noise("RGB", (40, 30)).convert("CMYK"),
    "huge.jpg": Image.new("RGB", (6000, 4000), (120, 60, 30)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture(name, tmp_path, capsys):
    PICTURES[name].save(tmp_path / name)
    out = tmp_path / "out"
    assert main(["demo", "--image", str(tmp_path / name), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "No trained network found" in printed
    assert str(out / "attention.png") in printed
    with Image.open(out / "attention.png") as png:
        assert min(png.size) > 100


def test_few_packages_are_needed(tmp_path):
    """One picture, with all of the extra missing that `PICTURE_NEEDS` does not name."""
    PICTURES["grey.png"].save(tmp_path / "grey.png")
    absent = sorted(EXTRAS["demo"].keys() - set(PICTURE_NEEDS))
    code = f"""
import sys
sys.modules |= dict.fromkeys({absent})
from ema_ops.cli import main
raise SystemExit(main(["demo", "--image", "grey.png", "--out", "out"]) or main(["demo", "--out", "out"]) != 2)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "attention.html").exists()
    assert "not installed: " in done.stderr
    assert "scikit-learn" in done.stderr


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (130, 70)])
def test_maps_are_responsibilities(size):
    picture = _noise("RGB", size)
    network = attend.DemoNetwork("EM attention", 5)
    for maps in (attend.maps_of_colours(picture), attend.maps_of_network(network, picture)):
        assert maps.shape == (16, size[1], size[0])
        np.testing.assert_allclose(maps.sum(axis=0), 1, atol=1e-5)
        assert maps.min() >= 0


def test_two_colours_get_different_bases():
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, :32], pixels[:, 32:] = (220, 30, 30), (30, 30, 220)
    maps = attend.maps_of_colours(Image.fromarray(pixels))
    left, right = maps[:, :, :28].mean(axis=(1, 2)), maps[:, :, 36:].mean(axis=(1, 2))
    assert np.abs(left - right).sum() > 1.5


def test_exif_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert attend.load_picture(tmp_path / "turned.jpg").size == (20, 40)
    PICTURES["deep.png"].save(tmp_path / "deep.png", exif=exif)
    assert attend.load_picture(tmp_path / "deep.png").size == (30, 40)


def test_huge_pictures_shrink(tmp_path):
    PICTURES["huge.jpg"].save(tmp_path / "huge.jpg")
    assert max(attend.load_picture(tmp_path / "huge.jpg").size) == attend.LONGEST_SIDE


def _cut(path):
    _noise("RGB", (64, 64)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-500])


def _damage_exif(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise("RGB", (64, 64)).save(path, exif=exif)
    path.write_bytes(path.read_bytes().replace(b"MM\0*", b"MM\0?"))


BROKEN = {
    "exif.webp": (_damage_exif, "damaged EXIF data"),
    "cut.jpg": (_cut, "truncated or damaged"),
    "text.jpg": (lambda path: path.write_text("not a picture"), "not a picture"),
    "empty.png": (lambda path: path.write_bytes(b""), "not a picture"),
    "folder.png": (lambda path: path.mkdir(), "not a file"),
    "nothing.png": (lambda path: None, "not a file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_with_one_line(name, tmp_path, capsys):
    make, expected = BROKEN[name]
    make(tmp_path / name)
    assert main(["demo", "--image", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert expected in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["no weights", ""])
def test_weights_that_are_none(tmp_path, capsys, content):
    PICTURES["grey.png"].save(tmp_path / "grey.png")
    (tmp_path / "network.pt").write_text(content)
    assert main(["demo", "--image", str(tmp_path / "grey.png"), "--weights", str(tmp_path / "network.pt")]) == 2
    assert "network.pt is not a network of this demo" in capsys.readouterr().err
