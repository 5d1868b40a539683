"""The paper's augmentation: sizes, places and mirroring, and that picture and mask stay together."""

import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.data import normalize
from ema_ops.segmentation.data.augmentation import Augmentation, _nearest, _resized_window


@pytest.fixture
def scene():
    """A picture of noise, 90 x 60, and its labels [60, 90], 0 to 4."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels), rng.integers(0, 5, (60, 90)).astype(np.int16)


def augmented(scene, crop, scales, flip, seed=0, **options):
    return Augmentation(crop, scales, flip, **options)(np.random.default_rng(seed), *scene)


def plain(scene):
    """The image as a data set without augmentation gives it, normalised."""
    return normalize(torch.from_numpy(np.array(scene[0])).permute(2, 0, 1).float().div_(255))


def test_nothing_to_do(scene):
    image, mask = augmented(scene, (60, 90), (1, 1), False)
    assert torch.equal(image, plain(scene))
    assert mask.dtype == torch.int64
    assert torch.equal(mask, torch.from_numpy(scene[1]).long())


def test_crop_is_a_part_of_the_picture(scene):
    whole, labels = plain(scene), torch.from_numpy(scene[1]).long()
    places = set()
    for seed in range(200):
        image, mask = augmented(scene, (57, 88), (1, 1), False, seed)
        (place,) = [
            (top, left)
            for top in range(4)
            for left in range(3)
            if torch.equal(image, whole[:, top : top + 57, left : left + 88])
        ]
        assert torch.equal(mask, labels[place[0] : place[0] + 57, place[1] : place[1] + 88])
        places.add(place)
    assert len(places) == 12, "every place is drawn"


def test_padding_is_the_mean_colour_and_ignored(scene):
    image, mask = augmented(scene, (70, 100), (1, 1), False)
    assert torch.equal(image[:, :60, :90], plain(scene))
    for part in (np.s_[..., 60:, :], np.s_[..., 90:]):
        assert image[part].count_nonzero() == 0
        assert (mask[part] == 255).all()
    assert (mask[:60, :90] < 5).all()


def test_half_are_mirrored(scene):
    whole, labels = plain(scene), torch.from_numpy(scene[1]).long()
    mirrored = 0
    for seed in range(200):
        image, mask = augmented(scene, (60, 90), (1, 1), True, seed)
        if torch.equal(image, whole.flip(-1)):
            mirrored += 1
            assert torch.equal(mask, labels.flip(-1))
        else:
            assert torch.equal(image, whole)
            assert torch.equal(mask, labels)
    assert 75 < mirrored < 125


def test_scales_are_those_asked_for(scene):
    sizes = []
    for seed in range(300):
        _, mask = augmented(scene, (130, 190), (0.5, 2.0), False, seed)
        inside = mask != 255
        sizes.append((int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())))
    heights = np.array([height for height, _ in sizes])
    assert 30 <= heights.min() < 32
    assert 118 < heights.max() <= 120
    counts, _ = np.histogram(heights, bins=3, range=(30, 120))
    assert counts.min() > 75, "drawn evenly"
    assert all(abs(width - 1.5 * height) <= 1.5 for height, width in sizes)


def test_scales_of_the_official_code(scene):
    heights = []
    for seed in range(350):
        _, mask = augmented(scene, (130, 190), (0.5, 2.0), False, seed, scale_step=0.25)
        heights.append(int((mask != 255).any(dim=1).sum()))
    found, counts = np.unique(heights, return_counts=True)
    assert found.tolist() == [30, 45, 60, 75, 90, 105, 120]
    assert counts.min() > 30, "each as likely as the others"


def test_one_scale_has_no_steps(scene):
    _, mask = augmented(scene, (130, 190), (1.5, 1.5), False, scale_step=0.25)
    assert int((mask != 255).any(dim=1).sum()) == 90


@pytest.mark.parametrize("crop", [(33, 33), (40, 70), (150, 200)])
def test_mask_follows_the_picture(crop):
    """Away from edges, where bilinear pixels are mixtures, shade and label agree in every pixel."""
    labels = np.random.default_rng(5).integers(0, 2, (4, 6)).repeat(15, axis=0).repeat(15, axis=1)
    scene = Image.fromarray((labels * 255).astype(np.uint8)).convert("RGB"), labels.astype(np.int16)
    compared = 0
    for seed in range(60):
        image, mask = augmented(scene, crop, (0.5, 2.0), True, seed)
        white = image[0] > (0.5 - 0.485) / 0.229
        windows = mask.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)
        inner = (windows == windows[..., :1]).all(dim=-1) & (windows[..., 0] != 255)
        assert torch.equal(white[1:-1, 1:-1][inner], mask[1:-1, 1:-1][inner] == 1)
        compared += int(inner.sum())
    assert compared > 20_000


def test_window_is_that_of_the_whole_picture_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for size in ((25, 35), (50, 70), (77, 108), (100, 140)):
        whole = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        rows, columns = range(3, size[0] - 2), range(size[1] // 2, size[1])
        window = np.asarray(_resized_window(picture, size, rows, columns)).astype(int)
        assert np.abs(window - whole[rows.start : rows.stop, columns.start :]).max() <= 1


def test_nearest_pixels_are_those_of_pillow():
    for source, size in ((500, 250), (500, 997), (375, 281), (3, 7), (7, 3), (5, 5)):
        line = np.arange(source, dtype=np.int32)[None]
        expected = np.asarray(Image.fromarray(line).resize((size, 1), Image.Resampling.NEAREST))[0]
        assert np.array_equal(_nearest(range(size), source, size), expected)


def test_tiny_picture():
    tiny = Image.new("RGB", (1, 1), (255, 255, 255)), np.zeros((1, 1), np.int16)
    _, mask = augmented(tiny, (4, 4), (0.5, 0.5), True)
    assert mask[0, 0] == 0
    assert (mask == 255).sum() == 15


@pytest.mark.parametrize("step", [0, -0.25, 0.4, 2, float("inf"), float("nan")])
def test_wrong_steps(step):
    with pytest.raises(ValueError, match=f"scale_step is {step}: expected"):
        Augmentation((5, 5), (0.5, 2.0), True, scale_step=step)


@pytest.mark.parametrize(
    ("crop", "scales", "message"),
    [
        ((0, 5), (1, 1), r"crop is \(0, 5\)"),
        ((5, 5), (2, 0.5), r"scales is \(2, 0.5\)"),
        ((5, 5), (0, 1), r"scales is \(0, 1\)"),
        ((5, 5), (1, float("nan")), "scales is"),
    ],
)
def test_wrong_settings(crop, scales, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(crop, scales, True)
