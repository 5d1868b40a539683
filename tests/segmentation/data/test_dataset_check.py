"""`check_dataset` finds everything that is wrong, each thing once, and counts the rest."""

import numpy as np
import pytest
from PIL import Image

from ema_ops.segmentation.data import check_dataset

LABELS = np.array([[0, 1, 1, 255], [0, 1, 1, 255]])


@pytest.fixture
def sound(tree):
    """Three pictures without fault."""
    for name in "abc":
        tree.picture(f"images/{name}.jpg", 4, 2)
        tree.mask(f"masks/{name}.png", LABELS)
    return tree


@pytest.fixture
def broken(sound):
    """The same and one of everything that can be wrong with a file."""
    for name in ("cut", "empty", "size", "range", "colour", "torn", "both"):
        sound.picture(f"images/{name}.jpg", 64, 64)
        sound.mask(f"masks/{name}.png", np.zeros((64, 64)))
    images, masks = sound.root / "images", sound.root / "masks"
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-900])
    (images / "empty.jpg").write_bytes(b"")
    sound.mask("masks/size.png", np.zeros((64, 32)))
    sound.mask("masks/range.png", np.full((64, 64), 7))
    Image.new("RGB", (64, 64)).save(masks / "colour.png")
    (masks / "torn.png").write_bytes((masks / "torn.png").read_bytes()[:-30])
    (images / "both.jpg").write_bytes(b"x")
    sound.mask("masks/both.png", np.full((3, 3), 9))
    sound.picture("images/lonely.jpg")
    sound.mask("masks/stray.png", LABELS)
    return sound


EXPECTED = {
    "masks/lonely.png": "is missing",
    "masks/stray.png": "has no picture",
    "images/both.jpg": "is not a picture",
    "masks/both.png": "has label 9: expected 0 to 1, or 255",
    "masks/colour.png": "has mode RGB",
    "images/cut.jpg": "is truncated or damaged",
    "images/empty.jpg": "is not a picture",
    "masks/range.png": "has label 7: expected 0 to 1, or 255",
    "masks/size.png": "is 32 x 64: expected 64 x 64",
    "masks/torn.png": "is truncated or damaged",
}


def test_sound_set(sound):
    report = check_dataset("folder", sound.root, "all", classes=["ground", "cat"])
    assert report.num_images == 3
    assert report.problems == ()
    assert report.classes == ("ground", "cat")
    assert report.pixels.tolist() == [6, 12]
    assert report.images.tolist() == [3, 3]
    assert report.ignored == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_found_once(broken, workers):
    report = check_dataset("folder", broken.root, "all", workers=workers, num_classes=2)
    assert report.num_images == 11
    assert len(report.problems) == len(EXPECTED)
    for problem, (file, fault) in zip(report.problems, EXPECTED.items(), strict=True):
        assert f"{broken.root}/{file}" in problem
        assert fault in problem
        assert "\n" not in problem
    assert report.images.tolist() == [6, 3], "the readable masks: a, b, c, cut, empty, and size"


@pytest.mark.parametrize(
    ("kind", "split", "problem"),
    [
        ("voc", "train", "JPEGImages is missing: expected the PASCAL VOC layout"),
        ("folder", "val", "val.txt is missing"),
        ("folder", "nothing", "nothing.txt is empty"),
        ("generated", "train", "JPEGImages is missing"),
        ("cityscapes", "train", "leftImg8bit/train is missing"),
    ],
)
def test_what_cannot_be_opened_is_a_problem(sound, kind, split, problem):
    sound.lines("nothing.txt")
    options = {"num_classes": 2} if kind == "folder" else {}
    report = check_dataset(kind, sound.root, split, **options)
    assert report.num_images == 0
    assert len(report.problems) == 1
    assert problem in report.problems[0]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("tree", {}, "kind is 'tree'"),
        ("folder", {}, "classes and num_classes are missing"),
        ("folder", {"number": 2}, "option 'number' is unknown"),
        ("cityscapes", {"number": 2}, "option 'number' is unknown: expected none for kind cityscapes"),
        ("folder", {"num_classes": 2, "workers": -1}, "workers is -1"),
    ],
)
def test_wrong_arguments(sound, kind, options, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(kind, sound.root, "all", **options)
