"""The PASCAL VOC loader: what it reads, and that every broken tree is told by the name of the file."""

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from ema_ops.segmentation import VOCSegmentation, voc_palette

LABELS = np.array([[0, 1, 2, 255], [20, 2, 1, 0], [0, 0, 255, 3]], dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Two pictures of 4 x 3, "a" and "b", in the layout of VOC."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.jpg", quality=95)
        mask = Image.fromarray(LABELS)
        mask.putpalette(voc_palette().tobytes())
        mask.save(tmp_path / "SegmentationClass" / f"{name}.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    return tmp_path


def test_palette_is_that_of_voc():
    palette = voc_palette()
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: tuple(palette[label]) for label in expected} == expected
    assert tuple(palette[255]) == (224, 224, 192)
    assert len({tuple(row) for row in palette}) == 256


def test_item_is_picture_and_labels(tree):
    data = VOCSegmentation(tree)
    image, mask = data[1]
    assert len(data) == 2
    assert image.shape == (3, 3, 4)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    torch.testing.assert_close(mask, torch.from_numpy(LABELS.astype(np.int64)))


def test_grey_picture_and_grey_mask(tree):
    Image.fromarray(LABELS).save(tree / "SegmentationClass/a.png")
    Image.new("L", (4, 3), 128).save(tree / "JPEGImages/a.jpg")
    image, mask = VOCSegmentation(tree)[0]
    assert image.shape == (3, 3, 4)
    assert mask[0, 3] == 255


def test_transform_makes_the_item(tree):
    assert VOCSegmentation(tree, transform=lambda image, mask: (mask, image.sum()))[0][0].shape == (3, 4)


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_missing_folder(tree, folder):
    (tree / folder).rename(tree / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{folder}.* is missing"):
        VOCSegmentation(tree)


def test_missing_list(tree):
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing"):
        VOCSegmentation(tree, "val")


def test_empty_list(tree):
    (tree / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt is empty"):
        VOCSegmentation(tree, "val")


def test_picture_without_a_mask(tree):
    (tree / "SegmentationClass/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask .*b\.png is missing"):
        VOCSegmentation(tree)


def test_listed_picture_is_missing(tree):
    (tree / "JPEGImages/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"picture .*b\.jpg is missing"):
        VOCSegmentation(tree)


def test_label_out_of_range(tree):
    with pytest.raises(ValueError, match=r"a\.png has label 20: expected 0 to 4, or 255"):
        VOCSegmentation(tree, num_classes=5)[0]


def test_coloured_mask(tree):
    Image.new("RGB", (4, 3)).save(tree / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a\.png has mode RGB"):
        VOCSegmentation(tree)[0]


def test_mask_of_another_size(tree):
    Image.new("L", (5, 3)).save(tree / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a\.png is 5 x 3: expected 4 x 3"):
        VOCSegmentation(tree)[0]


def test_truncated_jpeg(tree):
    path = tree / "JPEGImages/a.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(OSError, match=r"a\.jpg is truncated or damaged"):
        VOCSegmentation(tree)[0]


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_not_a_picture(tree, content):
    (tree / "JPEGImages/a.jpg").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.jpg is not a picture"):
        VOCSegmentation(tree)[0]


def test_damaged_mask(tree):
    path = tree / "SegmentationClass/a.png"
    path.write_bytes(path.read_bytes()[:-36])
    with pytest.raises(OSError, match=r"a\.png is truncated or damaged"):
        VOCSegmentation(tree)[0]
