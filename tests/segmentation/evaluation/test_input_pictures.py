"""Which pictures are found, how they are read, and what their results are called."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ema_ops.segmentation.evaluation.pictures import (
    check_not_overwritten,
    find_pictures,
    read_picture,
    read_pictures,
    result_names,
)

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def save(path, array=RGB, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def test_folder_is_searched_but_for_own_results_and_hidden_files(tmp_path):
    for name in ("b.png", "a.JPG", "deep/er/c.tif", "out/masks/b.png", ".hidden.png", ".hidden/b.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    found = find_pictures(tmp_path, leave_out=tmp_path / "deep" / ".." / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "b.png", "deep/er/c.tif"]


def test_results_in_a_folder_around_the_pictures(tmp_path):
    save(tmp_path / "photos" / "a.png")
    found = find_pictures(tmp_path / "photos", leave_out=tmp_path)
    assert [path.name for path in found] == ["a.png"]


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=rf"folder {tmp_path} has no pictures: expected files ending in \.jpg"):
        find_pictures(tmp_path, leave_out=tmp_path / "out")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b.png"], ["a.png", "b.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg.png", "a.png.png", "b.png"]),
        # the longer name of the first is the short name of the third
        (["a.jpg", "a.png", "a.jpg.jpg"], ["a.jpg.png", "a.png.png", "a.jpg.jpg.png"]),
        (["v1.2.jpg", "v1.3.jpg"], ["v1.2.png", "v1.3.png"]),
    ],
)
def test_result_names(paths, names):
    assert [name.as_posix() for name in result_names([Path(path) for path in paths])] == names


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"turned.{suffix}", exif=exif, lossless=True)
    shown = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: RGB[::-1].swapaxes(0, 1),
        7: RGB[::-1, ::-1].swapaxes(0, 1),
        8: RGB[:, ::-1].swapaxes(0, 1),
    }
    np.testing.assert_array_equal(read_picture(path).pixels.numpy(), shown[orientation])


def test_damaged_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    content = save(tmp_path / "good.webp", exif=exif).read_bytes()
    start = content.index(b"MM\0*")
    no_exif = tmp_path / "no_exif.webp"
    no_exif.write_bytes(content[:start] + b"MM\0?" + content[start + 4 :])
    found = read_picture(no_exif)
    assert found.pixels is None
    assert f"{no_exif} has damaged EXIF data" in found.error
    # an entry that nobody needs: its type becomes one that does not exist
    entry = content.index(b"\x01\x1a\0\x05", start)
    odd = tmp_path / "odd.webp"
    odd.write_bytes(content[:entry] + b"\x01\x1a\0\x63" + content[entry + 4 :])
    assert read_picture(odd).pixels.shape == (6, 4, 3)


def test_other_modes_are_read_as_rgb(tmp_path):
    grey = RGB[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.dstack([RGB, np.full((4, 6), 77, np.uint8)])
    palette = Image.fromarray(grey)
    palette.putpalette(np.repeat(np.arange(256)[:, None], 3, axis=1).astype(np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    expected = {
        save(tmp_path / "grey.png", grey): three,
        save(tmp_path / "deep.png", grey.astype(np.uint16) * 256 + 9): three,
        save(tmp_path / "alpha.png", alpha): RGB,
        save(tmp_path / "black.png", grey > 100): np.where(three > 100, 255, 0),
        tmp_path / "palette.png": three,
    }
    for path, pixels in expected.items():
        np.testing.assert_array_equal(read_picture(path).pixels.numpy(), pixels, err_msg=path.name)


def test_broken_pictures_are_told_and_the_others_read(tmp_path):
    generator = np.random.default_rng(0)
    whole = save(tmp_path / "whole.jpg", generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:1500])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    pictures = list(read_pictures([cut, whole, text, tmp_path / "gone.png"], workers=2))
    assert [picture.path.name for picture in pictures] == ["cut.jpg", "whole.jpg", "text.png", "gone.png"]
    assert [picture.pixels is None for picture in pictures] == [True, False, True, True]
    for picture in (pictures[0], *pictures[2:]):
        assert str(picture.path) in picture.error
    assert pictures[1].pixels.shape == (64, 64, 3)


def test_sources_are_not_overwritten(tmp_path):
    path = save(tmp_path / "a.png")
    check_not_overwritten([tmp_path / "b.png"], [path])
    with pytest.raises(ValueError, match=r"a\.png would be overwritten by a result"):
        check_not_overwritten([tmp_path / "x" / ".." / "a.png"], [path])
