"""The PASCAL VOC loader: what it reads, and that every broken tree is told by the name of the file."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.data import VOC_CLASSES, VOCSegmentation, open_dataset, voc_palette

LABELS = np.array([[0, 1, 2, 255], [20, 2, 1, 0], [0, 0, 255, 3]], dtype=np.uint8)


@pytest.fixture
def voc(tree):
    """Two pictures of 4 x 3, "a" and "b", in the layout of VOC."""
    for name in "ab":
        tree.picture(f"JPEGImages/{name}.jpg")
        tree.mask(f"SegmentationClass/{name}.png", LABELS)
    tree.lines("ImageSets/Segmentation/train.txt", "a", "b")
    return tree.root


def test_palette_is_that_of_voc():
    palette = voc_palette()
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: tuple(palette[label]) for label in expected} == expected
    assert tuple(palette[255]) == (224, 224, 192)
    assert len({tuple(row) for row in palette}) == 256


def test_item_is_picture_and_labels(voc):
    data = VOCSegmentation(voc)
    image, mask = data[1]
    assert len(data) == 2
    assert data.names == ["a", "b"]
    assert data.classes == VOC_CLASSES
    assert data.num_classes == 21
    assert data.palette.shape == (256, 3)
    assert image.dtype == torch.float32
    with Image.open(voc / "JPEGImages/b.jpg") as picture:
        expected = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255
    assert np.array_equal(image.numpy(), expected)
    assert mask.dtype == torch.int64
    assert np.array_equal(mask.numpy(), LABELS)


@pytest.mark.parametrize("inside", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_root_may_hold_the_devkit(voc, tmp_path_factory, inside):
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(voc, root / inside, dirs_exist_ok=True)
    assert len(open_dataset("voc", root, "train")) == 2


def test_transform_makes_the_item(voc):
    assert VOCSegmentation(voc, transform=lambda image, mask: (mask, image.sum()))[0][0].shape == (3, 4)


def test_other_classes(voc):
    assert open_dataset("voc", voc, "train", classes=["ground", "sky"]).classes == ("ground", "sky")
    assert open_dataset("voc", voc, "train", num_classes=2).classes == ("class 0", "class 1")
    assert open_dataset("voc", voc, "train", num_classes=21).classes == VOC_CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "b"], "num_classes": 3}, "num_classes is 3: expected 2"),
        ({"classes": "cat"}, "classes is 'cat': expected a list"),
        ({"classes": ["a", "a"]}, "class 'a' is named twice"),
        ({"classes": ["a", 7]}, "class name is 7"),
        ({"num_classes": 0}, "there are 0 classes: expected 1 to 255"),
        ({"num_classes": 256}, "there are 256 classes"),
        ({"num_classes": "many"}, "num_classes is 'many'"),
        ({"color": 1}, "option 'color' is unknown: expected one of classes, num_classes, sbd for kind voc"),
    ],
)
def test_wrong_options(voc, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        open_dataset("voc", voc, "train", **options)


def test_unknown_kind(voc):
    with pytest.raises(ValueError, match=r"kind is 'coco': expected one of voc, context, coco_stuff"):
        open_dataset("coco", voc, "train")


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_missing_folder(voc, folder):
    (voc / folder).rename(voc / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{folder}.* is missing: expected the PASCAL VOC layout"):
        VOCSegmentation(voc)


def test_missing_list(voc):
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing"):
        VOCSegmentation(voc, "val")


@pytest.mark.parametrize(("content", "message"), [(b"\n", "is empty"), (b"\xff\xfe\x00", "is no text")])
def test_useless_list(voc, content, message):
    (voc / "ImageSets/Segmentation/val.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"val\.txt {message}"):
        VOCSegmentation(voc, "val")


def test_picture_without_a_mask(voc):
    (voc / "SegmentationClass/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask .*b\.png is missing: expected one for each picture$"):
        VOCSegmentation(voc)


def test_names_with_a_space(voc):
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\nmy photo\n")
    with pytest.raises(FileNotFoundError, match=r"my photo\.jpg is missing: the data set lists my photo"):
        VOCSegmentation(voc)


def test_listed_picture_is_missing(voc):
    (voc / "JPEGImages/b.jpg").unlink()
    (voc / "SegmentationClass/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"picture .*b\.jpg is missing.*and 1 more"):
        VOCSegmentation(voc)
    assert len(VOCSegmentation(voc, check_files=False)) == 2


def test_label_out_of_range(voc):
    with pytest.raises(ValueError, match=r"a\.png has label 20: expected 0 to 4, or 255"):
        VOCSegmentation(voc, num_classes=5)[0]


def test_mask_of_another_size(voc):
    Image.new("L", (5, 3)).save(voc / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a\.png is 5 x 3: expected 4 x 3 as its picture .*a\.jpg"):
        VOCSegmentation(voc)[0]
