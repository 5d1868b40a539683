"""The generated set: layout, determinism, separation of train and val, and that the label depends on the cue."""

import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.data import open_dataset, voc_palette
from ema_ops.segmentation.data.generated import drawing, sources

for name in ("skimage", "sklearn"):
    pytest.importorskip(name, reason=f"{name} is not installed: the generated set needs ema_ops[demo]")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """The set with 6 training and 4 validation pictures."""
    root = tmp_path_factory.mktemp("set")
    drawing.build(root, train=6, val=4, seed=3)
    return root


def _files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_exact_layout_of_voc(small_set):
    train = [f"train_{i:05d}" for i in range(6)]
    val = [f"val_{i:05d}" for i in range(4)]
    expected = {f"JPEGImages/{name}.jpg" for name in train + val}
    expected |= {f"SegmentationClass/{name}.png" for name in train + val}
    expected |= {"ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"}
    assert set(_files(small_set)) == expected
    with Image.open(small_set / "SegmentationClass/train_00000.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:768] == voc_palette().ravel().tolist()
    with Image.open(small_set / "JPEGImages/train_00000.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 96))


def test_same_seed_same_bytes(small_set, tmp_path):
    drawing.build(tmp_path / "again", train=6, val=4, seed=3)
    drawing.build(tmp_path / "other", train=6, val=4, seed=4)
    assert _files(tmp_path / "again") == _files(small_set)
    assert _files(tmp_path / "other") != _files(small_set)


def test_loader_reads_it(small_set):
    for split, count in (("train", 6), ("val", 4)):
        data = open_dataset("generated", small_set, split)
        assert len(data) == count
        for image, mask in data:
            labels = set(mask.unique().tolist())
            assert image.shape == (3, 96, 128)
            assert {0, 1} < labels
            assert len(labels & {2, 3, 4}) == 1


def test_cue_and_marked_digits_keep_their_distance(small_set):
    for _, mask in open_dataset("generated", small_set, "train"):
        cue = torch.nonzero(mask == 1)[:, 1].max()
        marked = torch.nonzero(mask > 1)[:, 1].min()
        assert marked - cue > drawing.DISTANCE


def test_no_photograph_in_both_parts():
    assert not set(sources.PHOTOGRAPHS["train"]) & set(sources.PHOTOGRAPHS["val"])
    pictures = [sources.photograph(name) for names in sources.PHOTOGRAPHS.values() for name in names]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_parts_are_whole_sheets_of_writers():
    from sklearn.datasets import load_digits

    values = load_digits().target
    train, val = sources.DIGITS["train"], sources.DIGITS["val"]
    assert val.start - train.stop > 100, "a whole sheet lies between"
    sheet = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    assert values[train.start : train.start + 20].tolist() == sheet
    assert values[val.start : val.start + 20].tolist() == sheet
    # the sheet left out lacks its first digit
    assert values[train.stop : train.stop + 19].tolist() == sheet[1:]


def test_swapped_cue_changes_the_labels_far_away():
    rng = np.random.default_rng(0)
    ink, values = sources.digits("val")
    photo = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    marked = [drawing.Stroke(ink[7], 24, 10, 80), drawing.Stroke(ink[9], 20, 50, 100)]
    pictures = {}
    for value in drawing.CUE_VALUES:
        cue = drawing.Stroke(ink[np.flatnonzero(values == value)[0]], 22, 30, 4)
        pictures[value] = drawing.compose(photo, cue, value, marked)
    right = np.s_[:, drawing.MARKED_START :]
    for value, (image, label) in pictures.items():
        assert np.array_equal(image[right], pictures[0][0][right]), "the pixels there are the same"
        assert set(np.unique(label[right])) == {0, 2 + value}
        assert np.array_equal(label[right] > 0, pictures[0][1][right] > 0)


def test_classes_are_named(small_set):
    data = open_dataset("generated", small_set, "val")
    assert data.classes == ("background", "cue", "marked zero", "marked one", "marked two")


def test_missing_set_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no is missing: run `ema-ops data generate .*no` to make the set"):
        open_dataset("generated", tmp_path / "no", "train")
