"""Cityscapes: its layout, the 34 numbers and the 19 train ids, its colours."""

import numpy as np
import pytest

from ema_ops.segmentation.data import CITYSCAPES_CLASSES, open_dataset

NAME = "aachen_000000_000019"
JUDGED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    17: "pole",
    19: "traffic light",
    26: "car",
    31: "train",
    33: "bicycle",
}
IGNORED = [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]


@pytest.fixture
def cityscapes(tree):
    """Train with two cities, whose pictures are 34 x 1: one pixel of each number."""
    for name in (NAME, "bochum_000000_000313"):
        city = name.partition("_")[0]
        tree.picture(f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", width=34, height=1)
        tree.mask(f"gtFine/train/{city}/{name}_gtFine_labelIds.png", [list(range(34))], palette=False)
        tree.mask(f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", [[0] * 34], palette=False)
    return tree


def test_numbers_become_train_ids(cityscapes):
    data = open_dataset("cityscapes", cityscapes.root, "train")
    assert data.names == [NAME, "bochum_000000_000313"]
    assert data.classes == CITYSCAPES_CLASSES
    mask = data[0][1][0].tolist()
    assert {number: data.classes[mask[number]] for number in JUDGED} == JUDGED
    assert [mask[number] for number in IGNORED] == [255] * len(IGNORED)
    assert [label for label in mask if label != 255] == list(range(19))
    assert tuple(data.palette[0]) == (128, 64, 128)
    assert tuple(data.palette[18]) == (119, 11, 32)


def test_train_ids_where_there_is_nothing_else(cityscapes):
    for path in cityscapes.root.rglob("*labelIds.png"):
        path.unlink()
        name = path.name.replace("labelIds", "labelTrainIds")
        cityscapes.mask(path.parent / name, [[*range(19), *[255] * 15]], palette=False)
    mask = open_dataset("cityscapes", cityscapes.root, "train")[1][1][0].tolist()
    assert mask == [*range(19), *[255] * 15]


def test_number_out_of_range(cityscapes):
    cityscapes.mask(f"gtFine/train/aachen/{NAME}_gtFine_labelIds.png", np.full((1, 34), 34))
    with pytest.raises(ValueError, match=rf"{NAME}_gtFine_labelIds\.png has label 34: expected 0 to 33, or 255"):
        open_dataset("cityscapes", cityscapes.root, "train")[0]


def test_picture_and_mask_without_partner(cityscapes):
    (cityscapes.root / f"gtFine/train/aachen/{NAME}_gtFine_labelIds.png").unlink()
    (cityscapes.root / "leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png").unlink()
    told = list(open_dataset("cityscapes", cityscapes.root, "train", check_files=False).missing_files())
    assert len(told) == 2
    assert f"{NAME}_gtFine_labelIds.png is missing" in told[0]
    assert "bochum_000000_000313_gtFine_labelIds.png has no picture" in told[1]


def test_missing_folders(cityscapes):
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit/val is missing: expected the Cityscapes layout"):
        open_dataset("cityscapes", cityscapes.root, "val")
    for folder in ("leftImg8bit/val", "gtFine/val"):
        (cityscapes.root / folder).mkdir()
    with pytest.raises(ValueError, match=r"leftImg8bit/val has no pictures: expected files CITY/NAME_leftImg8bit"):
        open_dataset("cityscapes", cityscapes.root, "val")
