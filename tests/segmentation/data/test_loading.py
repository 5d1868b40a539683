"""Batches and samples: the same for every number of workers, of processes, and for every place to start."""

import hashlib
import os
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from ema_ops.segmentation.data import evaluation_samples, normalize, open_dataset, training_batches
from ema_ops.segmentation.data.workers import in_order


@pytest.fixture
def root(tree):
    """Ten pictures of different sizes, and a list of three of them."""
    rng = np.random.default_rng(0)
    for number in range(10):
        height, width = 12 + number, 25 - number
        tree.picture(f"images/p{number}.jpg", width, height, seed=number)
        tree.mask(f"masks/p{number}.png", rng.integers(0, 3, (height, width)))
    tree.lines("few.txt", "p1", "p2", "p3")
    return tree.root


@pytest.fixture
def data(root):
    return open_dataset("folder", root, "all", num_classes=3)


def batches(data, count, **changes):
    settings = {"crop": 16, "batch": 4, "seed": 7, **changes}
    return list(islice(training_batches(data, **settings), count))


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)


def test_batch(data):
    (batch,) = batches(data, 1)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.masks.shape == (4, 16, 16)
    assert batch.masks.dtype == torch.int64
    assert set(batch.names) <= set(data.names)
    assert batches(data, 1, crop=(8, 24))[0].images.shape == (4, 3, 8, 24)


def test_batch_holds_the_pictures_it_names(data):
    for batch in batches(data, 3, crop=(40, 40), scales=(1, 1), flip=False):
        for image, mask, name in zip(*batch, strict=True):
            expected, labels = data[data.names.index(name)]
            height, width = labels.shape
            assert torch.equal(image[:, :height, :width], normalize(expected))
            assert torch.equal(mask[:height, :width], labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_start(data, workers):
    whole = batches(data, 9)
    assert_equal(batches(data, 5, start=4, workers=workers), whole[4:])
    assert_equal(batches(data, 1, start=8, workers=workers), whole[8:])


def test_parts_of_the_processes_make_the_batch(data):
    whole = batches(data, 6)
    for world_size in (2, 4):
        parts = [batches(data, 6, rank=rank, world_size=world_size, workers=rank % 2) for rank in range(world_size)]
        for one, several in zip(whole, zip(*parts, strict=True), strict=True):
            assert one.names == [name for part in several for name in part.names]
            assert torch.equal(one.images, torch.cat([part.images for part in several]))
            assert torch.equal(one.masks, torch.cat([part.masks for part in several]))


def test_every_epoch_is_a_permutation_of_its_own(data):
    names = [name for batch in batches(data, 10) for name in batch.names]
    epochs = [tuple(names[start : start + 10]) for start in range(0, 40, 10)]
    assert all(sorted(epoch) == sorted(data.names) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_pictures_look_different_in_every_epoch(data):
    crops = {image.numpy().tobytes() for batch in batches(data, 10) for image in batch.images}
    assert len(crops) > 30, "40 crops of 10 pictures, few of them twice by chance"


def test_fewer_pictures_than_a_batch_holds(root):
    data = open_dataset("folder", root, "few", num_classes=3)
    names = [name for batch in batches(data, 3, batch=8) for name in batch.names]
    assert len(names) == 24
    assert all(sorted(names[start : start + 3]) == ["p1", "p2", "p3"] for start in range(0, 24, 3))
    assert_equal(batches(data, 2, batch=8, start=1), batches(data, 3, batch=8)[1:])


def test_steps_of_scales_are_reproducible_too(data):
    whole = batches(data, 4, scale_step=0.5)
    assert_equal(batches(data, 2, scale_step=0.5, start=2, workers=2), whole[2:])
    assert not torch.equal(whole[0].images, batches(data, 1)[0].images)
    with pytest.raises(ValueError, match="scale_step is 1: expected a part of"):
        batches(data, 1, scale_step=1)


def test_batches_are_those_of_earlier_versions(data):
    """The random numbers of what every recipe had before there were more options."""
    digest = hashlib.sha256()
    for batch in batches(data, 3):
        digest.update(batch.masks.numpy().tobytes())
    assert digest.hexdigest() == "14a6434c0b9c1a983e234facbfb3f6de7530d430c6d24ed13e8d9b5c14f653e0"


def test_seed_matters(data):
    (first,), (other,) = batches(data, 1, batch=10), batches(data, 1, batch=10, seed=8)
    assert first.names != other.names, "the order"
    crops = [dict(zip(batch.names, batch.images, strict=True)) for batch in (first, other)]
    same = [name for name in data.names if torch.equal(crops[0][name], crops[1][name])]
    assert len(same) < 4, "the augmentation"


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(data, workers):
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(data, 2, workers=workers)
    list(evaluation_samples(data, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_workers_may_be_started_afresh(data):
    """Where processes are not forked, the data set goes to them as a pickle."""
    copy = pickle.loads(pickle.dumps(data))
    assert_equal(batches(copy, 1), batches(data, 1))


def test_nothing_is_read_of_skipped_batches(data, monkeypatch):
    read = []
    original = data.read
    monkeypatch.setattr(data, "read", lambda index: read.append(index) or original(index))
    batches(data, 1, start=1000)
    assert len(read) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_error_is_that_of_the_data_set(root, data, workers):
    (root / "images/p4.jpg").write_bytes(b"no picture")
    for make in (lambda: batches(data, 3, workers=workers), lambda: list(evaluation_samples(data, workers=workers))):
        with pytest.raises(OSError, match=r"p4\.jpg is not a picture") as caught:
            make()
        assert str(caught.value) == f"{root}/images/p4.jpg is not a picture: expected a JPEG, PNG or other format " + (
            "that Pillow reads"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0: expected 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"start": -1}, "start is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"batch": 5, "world_size": 2}, "batch is 5: expected a multiple of the 2 processes"),
        ({"rank": 2, "world_size": 2}, "rank is 2: expected 0 to 1"),
        ({"crop": 0}, r"crop is \(0, 0\)"),
        ({"scales": (2, 1)}, r"scales is \(2, 1\)"),
    ],
)
def test_wrong_arguments_are_told_at_once(data, changes, message):
    with pytest.raises(ValueError, match=message):
        training_batches(data, **{"crop": 16, "batch": 4, "seed": 0, **changes})


def test_transform_and_augmentation_exclude_each_other(root):
    data = open_dataset("folder", root, "all", num_classes=3, transform=lambda image, mask: (image, mask))
    with pytest.raises(ValueError, match=r"transform is .*: expected None"):
        training_batches(data, crop=16, batch=4, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples(data, workers):
    samples = list(evaluation_samples(data, workers=workers))
    assert [sample.name for sample in samples] == data.names
    for sample, (image, mask) in zip(samples, data, strict=True):
        assert torch.equal(sample.image, normalize(image))
        assert torch.equal(sample.mask, mask)


def test_samples_are_shared_out_once(data):
    parts = [[sample.name for sample in evaluation_samples(data, rank=rank, world_size=3)] for rank in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(name for part in parts for name in part) == data.names
    with pytest.raises(ValueError, match="rank is 3"):
        evaluation_samples(data, rank=3, world_size=3)


def test_only_what_goes_to_the_device_as_it_is_lies_in_pinned_memory(data, monkeypatch):
    pinned = []

    def loader(*_, pin_memory, **__):
        pinned.append(pin_memory)
        return []

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ema_ops.segmentation.data.workers.DataLoader", loader)
    list(training_batches(data, crop=8, batch=2, seed=0))
    # these are put together to batches, in pinned memory
    list(evaluation_samples(data))
    assert pinned == [True, False]


def test_no_more_workers_than_cores(recwarn):
    cores = len(os.sched_getaffinity(0))
    assert len(set(in_order(_pid, range(3 * cores + 9), workers=cores + 3)) - {os.getpid()}) == cores
    # PyTorch warns of more than that
    assert [str(warning.message) for warning in recwarn if "worker processes" in str(warning.message)] == []


def _pid(_):
    return os.getpid()
