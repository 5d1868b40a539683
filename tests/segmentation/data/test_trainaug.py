"""VOC's long training list: SBD's masks as PNG, in the two usual layouts, and straight from its release."""

import numpy as np
import pytest

from ema_ops.segmentation.data import open_dataset

OWN, EXTRA = np.full((3, 4), 1), np.full((3, 4), 2)


@pytest.fixture
def voc(tree):
    """VOC with t in train and v in val, and pictures of SBD, s and u, that VOC has no mask of."""
    for name in "tvsu":
        tree.picture(f"JPEGImages/{name}.jpg")
    for name in "tv":
        tree.mask(f"SegmentationClass/{name}.png", OWN)
    tree.lines("ImageSets/Segmentation/train.txt", "t")
    tree.lines("ImageSets/Segmentation/val.txt", "v")
    return tree


@pytest.fixture
def sbd(voc):
    """The release of SBD beside it: t is in both, v must stay out."""
    for name in "tvsu":
        mask = {"Boundaries": np.zeros((3, 4)), "Segmentation": EXTRA.astype(np.uint8), "CategoriesPresent": [2]}
        voc.matlab(f"SBD/benchmark_RELEASE/dataset/cls/{name}.mat", GTcls=mask)
    voc.lines("SBD/benchmark_RELEASE/dataset/train.txt", "v", "u")
    voc.lines("SBD/benchmark_RELEASE/dataset/val.txt", "s", "t")
    return voc.root / "SBD"


def labels(data):
    """The one label of each mask, by name."""
    found = {name: set(mask.unique().tolist()) for name, (_, mask) in zip(data.names, data, strict=True)}
    assert all(len(values) == 1 for values in found.values())
    return {name: values.pop() for name, values in found.items()}


@pytest.mark.parametrize("inside", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_release_of_sbd(voc, sbd, inside):
    data = open_dataset("voc", voc.root, "trainaug", sbd=str(sbd / inside))
    assert labels(data) == {"s": 2, "t": 1, "u": 2}
    assert len(open_dataset("voc", voc.root, "val", sbd=str(sbd))) == 1, "the option may stay for other splits"


def test_converted_masks(voc):
    for name in "su":
        voc.mask(f"SegmentationClassAug/{name}.png", EXTRA, palette=False)
    voc.lines("ImageSets/Segmentation/trainaug.txt", "s", "t", "u")
    assert labels(open_dataset("voc", voc.root, "trainaug")) == {"s": 2, "t": 1, "u": 2}


def test_list_of_paths(voc):
    for name in "tvsu":
        voc.mask(f"SegmentationClassAug/{name}.png", EXTRA)
    rows = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in "uts"]
    voc.lines("ImageSets/SegmentationAug/train_aug.txt", *rows)
    data = open_dataset("voc", voc.root, "trainaug")
    assert data.names == ["u", "t", "s"]
    assert labels(data) == {"u": 2, "t": 2, "s": 2}
    assert labels(open_dataset("voc", voc.root, "val")) == {"v": 1}, "validation keeps VOC's own masks"


def test_neither(voc):
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt is missing: .*SegmentationClassAug, or the option sbd"):
        open_dataset("voc", voc.root, "trainaug")


def test_no_release_there(voc):
    with pytest.raises(FileNotFoundError, match=r"cls is missing: expected the SBD release"):
        open_dataset("voc", voc.root, "trainaug", sbd=str(voc.root))


def test_release_without_a_list(voc, sbd):
    (sbd / "benchmark_RELEASE/dataset/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset/val\.txt is missing"):
        open_dataset("voc", voc.root, "trainaug", sbd=sbd)


def test_release_without_a_mask(voc, sbd):
    (sbd / "benchmark_RELEASE/dataset/cls/u.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask .*u\.mat is missing"):
        open_dataset("voc", voc.root, "trainaug", sbd=sbd)


@pytest.mark.parametrize("keep", [0, 40, 130, 200, 300])
def test_truncated_matlab_file(voc, sbd, keep):
    path = sbd / "benchmark_RELEASE/dataset/cls/s.mat"
    path.write_bytes(path.read_bytes()[:keep])
    data = open_dataset("voc", voc.root, "trainaug", sbd=sbd)
    with pytest.raises((OSError, ValueError), match=r"s\.mat "):
        data[data.names.index("s")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": 1}, r"s\.mat has no field GTcls"),
        ({"GTcls": {"Boundaries": 1}}, r"s\.mat has no field Segmentation"),
        ({"GTcls": {"Segmentation": np.ones((3, 4))}}, r"s\.mat has float64 of shape \(3, 4\)"),
        ({"GTcls": {"Segmentation": np.full((3, 4), 21, np.uint8)}}, r"s\.mat has label 21: expected 0 to 20"),
        ({"GTcls": {"Segmentation": np.full((3, 4), 300, np.uint16)}}, r"s\.mat has label 300"),
        ({"GTcls": {"Segmentation": np.full((3, 4), -1, np.int8)}}, r"s\.mat has label -1"),
        ({"GTcls": {"Segmentation": np.ones((4, 3), np.uint8)}}, r"s\.mat is 3 x 4: expected 4 x 3"),
    ],
)
def test_matlab_file_with_something_else(voc, sbd, content, message):
    voc.matlab("SBD/benchmark_RELEASE/dataset/cls/s.mat", **content)
    data = open_dataset("voc", voc.root, "trainaug", sbd=sbd)
    with pytest.raises(ValueError, match=message):
        data[data.names.index("s")]
