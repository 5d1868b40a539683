"""Masks and overlays, pixel by pixel."""

import numpy as np
import pytest

from ema_ops.segmentation.data import voc_palette
from ema_ops.segmentation.evaluation.drawing import Painter

NAMES = ("background", "cat", "dog")


@pytest.fixture
def painter():
    return Painter(NAMES, voc_palette(), 0.25)


def test_mask_keeps_classes_and_colours(painter):
    classes = np.array([[0, 1], [2, 1], [0, 0]], dtype=np.uint8)
    mask = painter.mask(classes)
    assert mask.mode == "P"
    np.testing.assert_array_equal(np.asarray(mask), classes)
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), voc_palette()[classes])


def test_overlay_blends_all_but_the_background(painter):
    classes = np.array([[0, 1, 2]], dtype=np.uint8)
    pixels = np.array([[[10, 20, 30], [100, 100, 100], [0, 0, 0]]], dtype=np.uint8)
    # colours of class 1 and 2: (128, 0, 0), (0, 128, 0)
    assert np.asarray(painter.overlay(pixels, classes)).tolist() == [[[10, 20, 30], [107, 75, 75], [0, 32, 0]]]


def test_overlay_paints_class_0_of_another_name():
    painter = Painter(("road", "car"), np.full((256, 3), 200, dtype=np.uint8), 1.0)
    assert (np.asarray(painter.overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8))) == 200).all()


def test_pixels_without_a_class_are_painted_too(painter):
    classes = np.full((120, 200), 255, np.uint8)
    picture = np.asarray(painter.overlay(np.zeros((120, 200, 3), np.uint8), classes))
    assert (picture == np.round(voc_palette()[255] * 0.25)).all()


def test_legend_names_the_classes_that_are_there(painter):
    pixels, classes = np.full((120, 200, 3), 255, np.uint8), np.zeros((120, 200), np.uint8)
    assert (np.asarray(painter.overlay(pixels, classes)) == 255).all()
    classes[100:, 150:] = 2
    picture = np.asarray(painter.overlay(pixels, classes))
    assert picture.shape == pixels.shape
    corner = picture[:20, :80].reshape(-1, 3)
    # the swatch has the colour of the class, undiluted
    assert (corner == voc_palette()[2]).all(axis=1).any()
    assert not (corner == voc_palette()[1]).all(axis=1).any()
    assert (picture[60:90, 100:140] == 255).all()


def test_legend_of_many_classes_stays_inside():
    names = [f"class {label}" for label in range(200)]
    classes = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    picture = Painter(names, voc_palette()).overlay(np.zeros((100, 200, 3), np.uint8), classes)
    assert picture.size == (200, 100)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}: expected 0 to 1"):
        Painter(NAMES, voc_palette(), alpha)
