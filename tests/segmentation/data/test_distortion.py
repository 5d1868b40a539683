"""Random brightness, contrast and colours: each as large and as often as mmsegmentation's, on the picture only."""

import colorsys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.data import open_dataset, training_batches
from ema_ops.segmentation.data.augmentation import Augmentation
from ema_ops.segmentation.data.distortion import Distortion


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_nothing(picture):
    np.testing.assert_array_equal(pixels(Distortion()(picture)), pixels(picture))


def test_brightness_and_contrast_are_exact(picture):
    before = pixels(picture)
    np.testing.assert_array_equal(pixels(Distortion(brightness=-20.4)(picture)), np.clip(before - 20, 0, 255))
    expected = np.clip(np.round(before * 1.3), 0, 255)
    for first in (True, False):
        np.testing.assert_array_equal(pixels(Distortion(contrast=1.3, contrast_first=first)(picture)), expected)


def test_saturation_and_hue_are_those_of_hsv(picture):
    # colours that are neither grey nor dark, where eight bits of hue and saturation say enough
    before = pixels(picture)
    clear = (before.max(axis=2) - before.min(axis=2) > 100) & (before.max(axis=2) > 150)
    after = pixels(Distortion(saturation=0.7, hue=0.1)(picture))
    assert clear.sum() > 500
    for old, new in zip(before[clear], after[clear], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(old / 255))
        expected = np.array(colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation * 0.7, value)) * 255
        assert np.abs(new - expected).max() <= 6


def test_grey_has_no_colours_to_change():
    grey = Image.new("RGB", (3, 3), (90, 90, 90))
    np.testing.assert_array_equal(pixels(Distortion(saturation=1.5, hue=0.1)(grey)), 90)


def test_place_of_the_contrast_matters():
    bright = Image.new("RGB", (1, 1), (250, 100, 100))
    first, last = (
        pixels(Distortion(contrast=1.5, contrast_first=order, saturation=0.5)(bright)) for order in (True, False)
    )
    assert np.abs(first - last).max() > 10


def test_each_is_drawn_in_half_of_the_pictures_and_from_its_range():
    drawn = [Distortion.drawn(np.random.default_rng(seed)) for seed in range(1000)]
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -0.1, 0.1),
    ):
        values = np.array([getattr(one, name) for one in drawn])
        changed = values[values != neutral]
        assert 430 < len(changed) < 570
        assert low <= changed.min() < low + 0.05 * (high - low)
        assert high >= changed.max() > high - 0.05 * (high - low)
        assert abs(changed.mean() - neutral) < 0.1 * (high - low)
    assert 430 < sum(one.contrast_first for one in drawn) < 570


def test_mask_and_padding_are_left_alone(picture):
    labels = np.random.default_rng(2).integers(0, 3, (40, 50)).astype(np.int16)
    changed = 0
    for seed in range(20):
        plain, distorted = (
            Augmentation((60, 45), (0.5, 2.0), True, distort_colours=on)(np.random.default_rng(seed), picture, labels)
            for on in (False, True)
        )
        assert torch.equal(plain[1], distorted[1])
        outside = plain[1] == 255
        assert torch.equal(plain[0][:, outside], distorted[0][:, outside])
        changed += not torch.equal(plain[0], distorted[0])
    assert 14 <= changed <= 20


@pytest.fixture
def halves():
    """A picture whose left 90 % have label 0; the rest is 1, with a stripe that is ignored."""
    labels = np.zeros((40, 200), np.int16)
    labels[:, 180:] = 1
    labels[:10] = 255
    return Image.new("RGB", (200, 40)), labels


def test_crops_of_one_class_are_drawn_again(halves):
    def mixed(share):
        count = 0
        for seed in range(100):
            augmentation = Augmentation((40, 40), (1, 1), False, max_class_share=share)
            _, mask = augmentation(np.random.default_rng(seed), *halves)
            counts = mask[mask != 255].bincount()
            count += bool(counts.max() / counts.sum() < 0.75)
        return count

    # between 10 and 20 of the 40 columns have label 1 in 11 of 161 places; eleven draws find one of them in 54 %
    assert mixed(None) < 20
    assert 40 < mixed(0.75) < 70


def test_a_picture_of_one_class_is_taken_all_the_same():
    for label in (3, 255):
        labels = np.full((40, 50), label, np.int16)
        augmentation = Augmentation((20, 20), (1, 1), False, max_class_share=0.75)
        _, mask = augmentation(np.random.default_rng(0), Image.new("RGB", (50, 40)), labels)
        assert (mask == label).all()


def test_batches_do_not_depend_on_workers_or_start(tree):
    for number in range(5):
        tree.picture(f"images/p{number}.jpg", 30, 20, seed=number)
        tree.mask(f"masks/p{number}.png", np.random.default_rng(number).integers(0, 3, (20, 30)) * (number % 2))
    data = open_dataset("folder", tree.root, "all", num_classes=3)
    options = {"crop": 16, "batch": 4, "seed": 7, "max_class_share": 0.75, "distort_colours": True}
    whole = list(islice(training_batches(data, **options), 5))
    again = list(islice(training_batches(data, **options, start=2, workers=2), 3))
    for one, other in zip(whole[2:], again, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
    plain = next(training_batches(data, crop=16, batch=4, seed=7))
    assert not torch.equal(plain.images, whole[0].images)


@pytest.mark.parametrize("share", [0, 1, -0.5, 75, float("nan")])
def test_wrong_share(share):
    with pytest.raises(ValueError, match=f"max_class_share is {share}: expected a number between 0 and 1"):
        Augmentation((5, 5), (0.5, 2.0), True, max_class_share=share)
