"""Any folder of pictures and masks."""

import numpy as np
import pytest

from ema_ops.segmentation.data import open_dataset

LABELS = np.array([[0, 1, 2, 255], [0, 0, 1, 1], [2, 2, 2, 0]])


@pytest.fixture
def folder(tree):
    """Pictures of three endings with masks."""
    for name in ("a.jpg", "b.PNG", "frame.01.jpeg"):
        tree.picture(f"images/{name}")
        tree.mask(f"masks/{name.rpartition('.')[0]}.png", LABELS)
    tree.lines("images/notes.md", "not a picture")
    tree.lines("images/.hidden.jpg", "neither")
    return tree


def test_all(folder):
    data = open_dataset("folder", folder.root, "all", classes=["ground", "cat", "dog"])
    assert data.names == ["a", "b", "frame.01"]
    assert data.classes == ("ground", "cat", "dog")
    assert all(np.array_equal(mask, LABELS) for _, mask in data)


def test_list(folder):
    folder.lines("train.txt", "frame.01", "a.jpg")
    data = open_dataset("folder", folder.root, "train", num_classes=3)
    assert data.names == ["frame.01", "a"]
    assert data.image_path("frame.01").name == "frame.01.jpeg"
    folder.lines("val.txt", "a", "z")
    with pytest.raises(FileNotFoundError, match=r"picture .*images/z\.jpg is missing"):
        open_dataset("folder", folder.root, "val", num_classes=3)


def test_folders_of_splits(tree):
    for split, name in (("train", "a"), ("val", "b")):
        tree.picture(f"img_dir/{split}/{name}.png")
        tree.mask(f"ann_dir/{split}/{name}_labels.png", LABELS)
    options = {"images": "img_dir", "masks": "ann_dir", "mask_suffix": "_labels", "num_classes": 3}
    assert open_dataset("folder", tree.root, "train", **options).names == ["a"]
    data = open_dataset("folder", tree.root, "val", **options)
    assert data.names == ["b"]
    assert np.array_equal(data[0][1], LABELS)


def test_no_such_split(folder):
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing: expected it, or a folder .*images/train"):
        open_dataset("folder", folder.root, "train", num_classes=3)
    (folder.root / "images/train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"masks/train is missing"):
        open_dataset("folder", folder.root, "train", num_classes=3)


def test_picture_and_mask_without_partner(folder):
    (folder.root / "masks/a.png").unlink()
    (folder.root / "images/b.PNG").unlink()
    told = list(open_dataset("folder", folder.root, "all", num_classes=3, check_files=False).missing_files())
    assert len(told) == 2
    assert "masks/a.png is missing" in told[0]
    assert "masks/b.png has no picture" in told[1]


def test_two_of_one_name(folder):
    folder.picture("images/a.png")
    with pytest.raises(ValueError, match=r"images/a\.png has the name of .*images/a\.jpg"):
        open_dataset("folder", folder.root, "all", num_classes=3)


def test_missing_folder_and_empty_one(tree):
    with pytest.raises(FileNotFoundError, match=r"images is missing: expected a folder images of pictures"):
        open_dataset("folder", tree.root, "all", num_classes=3)
    for name in ("images", "masks"):
        (tree.root / name).mkdir()
    with pytest.raises(ValueError, match=r"images has no pictures: expected files \.jpg"):
        open_dataset("folder", tree.root, "all", num_classes=3)


def test_classes_must_be_said(folder):
    with pytest.raises(ValueError, match=r"classes and num_classes are missing"):
        open_dataset("folder", folder.root, "all")
