"""COCO-Stuff: the 10k and the 164k set, as released and as converted, all with the same 171 labels."""

import numpy as np
import pytest

from ema_ops.segmentation.data import COCO_STUFF_CLASSES, open_dataset

NAMES = ["person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood"]
"""Classes at the ends of what is used, and around names that are not."""

NUMBERS = [1, 11, 13, 90, 92, 182]
"""Their numbers in the published list of labels."""


@pytest.fixture
def images(tree):
    """Writes a picture as large as the masks: 7 x 1."""
    return lambda path: tree.picture(path, width=7, height=1)


def classes_in(data, index=0):
    """The names of the first six labels in a mask; the last pixel is unlabelled."""
    mask = data[index][1][0].tolist()
    assert mask[-1] == 255
    return [data.classes[label] for label in mask[:-1]]


def test_classes():
    assert len(COCO_STUFF_CLASSES) == len(set(COCO_STUFF_CLASSES)) == 171
    assert COCO_STUFF_CLASSES.index("banner") == 80
    for unused in ("street sign", "hat", "mirror", "window", "desk", "door", "hair brush"):
        assert unused not in COCO_STUFF_CLASSES


def test_10k_as_released(tree, images):
    for name in ("COCO_train2014_000000000077", "COCO_train2014_000000000064"):
        images(f"images/{name}.jpg")
        tree.matlab(f"annotations/{name}.mat", S=np.array([[*NUMBERS, 0]], np.uint16), names=["unlabeled"])
    tree.lines("imageLists/train.txt", "COCO_train2014_000000000077")
    tree.lines("imageLists/test.txt", "COCO_train2014_000000000064")
    data = open_dataset("coco_stuff", tree.root, "test")
    assert data.names == ["COCO_train2014_000000000064"]
    assert data.num_classes == 171
    assert classes_in(data) == NAMES


def test_10k_of_version_one_is_refused(tree, images):
    images("images/a.jpg")
    tree.matlab("annotations/a.mat", S=np.array([[1, 2, 12, 80, 82, 172, 1]], np.uint16))
    tree.lines("imageLists/train.txt", "a")
    with pytest.raises(ValueError, match=r"a\.mat has label 12: expected 0 to 11, 13 to 25, 27 to 28, 31 to 44"):
        open_dataset("coco_stuff", tree.root, "train")[0]


def test_10k_as_converted(tree, images):
    images("images/test2014/COCO_train2014_000000000064.jpg")
    train_ids = [COCO_STUFF_CLASSES.index(name) + 1 for name in NAMES]
    tree.mask("annotations/test2014/COCO_train2014_000000000064_labelTrainIds.png", [[*train_ids, 0]], palette=False)
    tree.lines("imageLists/test.txt", "COCO_train2014_000000000064")
    data = open_dataset("coco_stuff", tree.root, "test")
    assert data.names == ["COCO_train2014_000000000064"]
    assert classes_in(data) == NAMES
    assert train_ids[-1] == 171


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("images/val2017", "annotations/val2017"),
        ("val2017", "stuffthingmaps/val2017"),
        ("images/val2017", "stuffthingmaps_trainval2017/val2017"),
    ],
)
def test_164k_maps(tree, images, pictures, masks):
    images(f"{pictures}/000000000139.jpg")
    tree.mask(f"{masks}/000000000139.png", [[*(number - 1 for number in NUMBERS), 255]], palette=False)
    tree.mask(f"{masks}/000000000139_labelTrainIds.png", [[0] * 7], palette=False)
    data = open_dataset("coco_stuff", tree.root, "val")
    assert data.names == ["000000000139"]
    assert classes_in(data) == NAMES


def test_164k_train_ids(tree, images):
    images("images/train2017/000000000009.jpg")
    train_ids = [COCO_STUFF_CLASSES.index(name) for name in NAMES]
    tree.mask("annotations/train2017/000000000009_labelTrainIds.png", [[*train_ids, 255]], palette=False)
    assert classes_in(open_dataset("coco_stuff", tree.root, "train")) == NAMES


def test_number_without_a_class(tree, images):
    images("images/val2017/a.jpg")
    tree.mask("annotations/val2017/a.png", [[11] * 7], palette=False)
    with pytest.raises(ValueError, match=r"a\.png has label 11: expected 0 to 10, 12 to 24"):
        open_dataset("coco_stuff", tree.root, "val")[0]


def test_picture_and_mask_without_partner(tree, images):
    images("images/val2017/a.jpg")
    images("images/val2017/b.jpg")
    for name in "bc":
        tree.mask(f"annotations/val2017/{name}.png", [[0] * 7], palette=False)
    with pytest.raises(FileNotFoundError, match=r"mask .*a\.png is missing.*and 1 more"):
        open_dataset("coco_stuff", tree.root, "val")
    told = list(open_dataset("coco_stuff", tree.root, "val", check_files=False).missing_files())
    assert len(told) == 2
    assert "c.png has no picture" in told[1]


def test_nothing_there(tree, images):
    with pytest.raises(FileNotFoundError, match=r"images/val2017 is missing: expected it, or val2017"):
        open_dataset("coco_stuff", tree.root, "val")
    (tree.root / "val2017").mkdir()
    with pytest.raises(FileNotFoundError, match=r"annotations/val2017 is missing: expected it, or stuffthingmaps/val"):
        open_dataset("coco_stuff", tree.root, "val")
    (tree.root / "annotations/val2017").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"val2017 has no pictures"):
        open_dataset("coco_stuff", tree.root, "val")
    with pytest.raises(FileNotFoundError, match=r"images is missing: expected the layout of COCO-Stuff 10k"):
        open_dataset("coco_stuff", tree.root, "val", version="10k")
    with pytest.raises(ValueError, match=r"version is '9k': expected '10k' or '164k'"):
        open_dataset("coco_stuff", tree.root, "val", version="9k")
