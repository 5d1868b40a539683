"""Pictures of every common kind become RGB; masks of every doubtful kind are refused by name."""

import numpy as np
import pytest
from PIL import Image

from ema_ops.segmentation.data.masks import read_mask_picture
from ema_ops.segmentation.data.pictures import read_rgb

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]], [[0, 0, 0], [128, 128, 128]]], np.uint8)
LABELS = np.array([[0, 1], [2, 3], [255, 4]], np.uint8)


def saved(picture, path, **options):
    picture.save(path, **options)
    return path


def rgb(path):
    picture = read_rgb(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_rgb_and_transparency(tmp_path):
    opaque = Image.fromarray(COLOURS)
    assert np.array_equal(rgb(saved(opaque, tmp_path / "rgb.png")), COLOURS)
    clear = opaque.copy()
    clear.putalpha(7)
    assert np.array_equal(rgb(saved(clear, tmp_path / "rgba.png")), COLOURS)


@pytest.mark.filterwarnings("error")
def test_palette(tmp_path):
    picture = Image.fromarray(COLOURS).quantize(8)
    assert np.array_equal(rgb(saved(picture, tmp_path / "p.png")), COLOURS)
    assert np.array_equal(rgb(saved(picture, tmp_path / "clear.png", transparency=bytes([9, 200, 0]))), COLOURS)


def test_grey(tmp_path):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(rgb(saved(Image.fromarray(grey), tmp_path / "l.png")), expected)
    deep = grey.astype(np.uint16) * 256 + 77
    assert np.array_equal(rgb(saved(Image.fromarray(deep), tmp_path / "l16.png")), expected)
    assert np.array_equal(rgb(saved(Image.fromarray(grey > 150), tmp_path / "bits.png")), (expected > 150) * 255)


def test_cmyk_jpeg(tmp_path):
    picture = Image.new("RGB", (16, 16), (200, 60, 20)).convert("CMYK")
    path = saved(picture, tmp_path / "cmyk.jpg", quality=95)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(rgb(path).astype(int) - (200, 60, 20)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The tag says where the first row and column of the file belong."""
    upright = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1),
        6: np.rot90(COLOURS, -1),
        7: COLOURS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOURS),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(COLOURS), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(rgb(path), upright[orientation])


def test_32_bit_pictures_are_refused(tmp_path):
    path = saved(Image.fromarray(np.ones((2, 2), np.float32)), tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif has 32-bit pixels \(mode F\)"):
        read_rgb(path)


def test_truncated_picture(tmp_path):
    path = saved(Image.effect_noise((64, 64), 50), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(OSError, match=r"a\.jpg is truncated or damaged"):
        read_rgb(path)


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_no_picture(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (read_rgb, read_mask_picture):
        with pytest.raises(OSError, match=r"a\.jpg is not a picture"):
            read(tmp_path / "a.jpg")


def test_masks(tmp_path):
    grey = Image.fromarray(LABELS)
    palette = grey.copy()
    palette.putpalette(bytes(range(256)) * 3)
    for picture in (grey, palette):
        assert np.array_equal(read_mask_picture(saved(picture, tmp_path / "m.png")), LABELS)
    deep = LABELS.astype(np.uint16) + 300
    assert np.array_equal(read_mask_picture(saved(Image.fromarray(deep), tmp_path / "m.png")), deep)
    assert np.array_equal(read_mask_picture(saved(Image.fromarray(LABELS > 1), tmp_path / "m.png")), LABELS > 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_mask(tmp_path, mode):
    path = saved(Image.new(mode, (4, 3)), tmp_path / "m.png")
    with pytest.raises(ValueError, match=rf"m\.png has mode {mode}: expected .* 8-bit grey"):
        read_mask_picture(path)


def test_jpeg_mask(tmp_path):
    path = saved(Image.fromarray(LABELS), tmp_path / "m.jpg")
    with pytest.raises(ValueError, match=r"m\.jpg is a JPEG, which changes labels"):
        read_mask_picture(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits(tmp_path, bits):
    """Pillow writes none; the bytes of such a PNG are made here."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    row = bytes([0, 0b01 << 6 | 0b10 << 4 if bits == 2 else 0x12])
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.png is grey with {bits} bits: expected 8 bits"):
        read_mask_picture(tmp_path / "m.png")


def test_truncated_mask(tmp_path):
    path = saved(Image.fromarray(LABELS), tmp_path / "m.png")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(OSError, match=r"m\.png is truncated or damaged"):
        read_mask_picture(path)
