"""PASCAL Context: its layout, its 59 classes with and without the background."""

import numpy as np
import pytest

from ema_ops.segmentation.data import CONTEXT_CLASSES, open_dataset

LABELS = np.array([[0, 1, 2, 59], [55, 58, 9, 0], [255, 1, 1, 1]])


@pytest.fixture
def context(tree):
    for name in ("2008_000002", "2008_000003"):
        tree.picture(f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg")
        tree.mask(f"VOCdevkit/VOC2010/SegmentationClassContext/{name}.png", LABELS, palette=False)
    tree.lines("VOCdevkit/VOC2010/ImageSets/SegmentationContext/train.txt", "2008_000002")
    tree.lines("VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt", "2008_000003")
    return tree.root


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2010"])
def test_sixty_classes(context, inside):
    data = open_dataset("context", context / inside, "val")
    assert data.names == ["2008_000003"]
    assert data.num_classes == 60
    assert [data.classes[label] for label in (0, 1, 9, 55, 58, 59)] == [
        "background",
        "aeroplane",
        "book",
        "tvmonitor",
        "window",
        "wood",
    ]
    assert np.array_equal(data[0][1], LABELS)


def test_without_background(context):
    data = open_dataset("context", context, "train", background=False)
    assert data.classes == CONTEXT_CLASSES
    assert data.num_classes == 59
    expected = [[255, 0, 1, 58], [54, 57, 8, 255], [255, 0, 0, 0]]
    assert data[0][1].tolist() == expected


def test_label_out_of_range(context, tree):
    tree.mask("VOCdevkit/VOC2010/SegmentationClassContext/2008_000003.png", np.full((3, 4), 60))
    for background in (True, False):
        with pytest.raises(ValueError, match=r"2008_000003\.png has label 60: expected 0 to 59, or 255"):
            open_dataset("context", context, "val", background=background)[0]


def test_missing_folder(context):
    (context / "VOCdevkit/VOC2010/SegmentationClassContext").rename(context / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"is missing: expected the PASCAL Context layout"):
        open_dataset("context", context, "val")


def test_missing_list_and_mask(context):
    (context / "VOCdevkit/VOC2010/SegmentationClassContext/2008_000003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask .*2008_000003\.png is missing"):
        open_dataset("context", context, "val")
    with pytest.raises(FileNotFoundError, match=r"test\.txt is missing"):
        open_dataset("context", context, "test")
