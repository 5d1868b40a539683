"""`evaluate` on a data set: the same result whatever the batch, and the workers."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_jaccard_index

from ema_ops.segmentation.data import IGNORE, normalize, open_dataset
from ema_ops.segmentation.evaluation import evaluate
from ema_ops.segmentation.evaluation.batches import WAITING_BATCHES, equal_sizes, to_device


@pytest.fixture(scope="session")
def scores(network, dataset):
    """One picture after the other."""
    return evaluate(network, dataset)


def test_against_torchmetrics_picture_by_picture(network, dataset, scores):
    predictions, masks = [], []
    with torch.no_grad():
        for image, mask in dataset:
            height, width = mask.shape
            padded = torch.zeros(1, 3, height + (1 - height) % 4, width + (1 - width) % 4)
            padded[0, :, :height, :width] = normalize(image)
            predictions.append(network(padded)[0, :, :height, :width].argmax(dim=0).flatten())
            masks.append(mask.flatten())
    expected = multiclass_jaccard_index(
        torch.cat(predictions), torch.cat(masks), 3, average="none", ignore_index=IGNORE
    )
    torch.testing.assert_close(scores.class_iou.float(), expected)
    assert scores.pixels.sum() == sum((mask != IGNORE).sum() for mask in masks)
    assert (scores.confusion.sum(dim=0) > 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 4},
        {"batch": 3, "workers": 2},
        {"device": "cpu", "channels_last": True},
        {"scales": (1.0,), "mode": "slide", "window": (80, 80), "batch": 4},
    ],
    ids=str,
)
def test_result_does_not_depend_on(network, dataset, scores, options):
    if options.get("mode") == "slide":
        # windows larger than all pictures: other padding, so another result, but again none that depends on the batch
        scores = evaluate(network, dataset, **{**options, "batch": 1})
    assert torch.equal(evaluate(network, dataset, **options).confusion, scores.confusion)


def test_many_views_in_batches(network, dataset, scores):
    options = {"scales": (0.75, 1.25), "flip": True}
    one = evaluate(network, dataset, **options)
    assert torch.equal(evaluate(network, dataset, **options, batch=4).confusion, one.confusion)
    assert not torch.equal(one.confusion, scores.confusion)
    assert torch.equal(one.pixels, scores.pixels)


def test_progress_and_modes(network, dataset):
    done = []
    network.train()
    network.backbone.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, dataset, batch=3, progress=done.append)
    assert sum(done) == len(dataset)
    assert max(done) == 3
    assert network.unit.training
    assert not network.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()


def test_wrong_number_of_classes(network, root):
    other = open_dataset("folder", root, "all", num_classes=4)
    with pytest.raises(ValueError, match="the network has 3 classes: expected 4 as the data set"):
        evaluate(network, other)


def test_logits_that_are_no_numbers_are_told(network, dataset):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.classifier.bias[0] = torch.nan
    with pytest.raises(
        ValueError, match="the network has logits that are NaN: expected numbers, maybe too large for float16"
    ):
        evaluate(broken, dataset)


def test_wrong_batch(network, dataset):
    with pytest.raises(ValueError, match="batch is 0: expected at least 1"):
        evaluate(network, dataset, batch=0)


def test_broken_picture_is_named(network, root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    picture = tmp_path / "copy" / "images" / "3.png"
    picture.write_bytes(picture.read_bytes()[:100])
    broken = open_dataset("folder", tmp_path / "copy", "all", num_classes=3)
    with pytest.raises(OSError, match=r"3\.png"):
        evaluate(network, broken, workers=2)


def test_groups_have_one_size_and_everything_once():
    items = [(index, size) for index, size in enumerate("abacabadabacabaeabf" * 3)]
    groups = list(equal_sizes(iter(items), 3, lambda item: item[1]))
    assert sorted(item for group in groups for item in group) == items
    assert all(len({size for _, size in group}) == 1 and len(group) <= 3 for group in groups)
    assert sum(len(group) == 3 for group in groups) >= 16


def test_pictures_that_wait_are_few():
    taken = 0

    def items():
        nonlocal taken
        for size in range(1000):
            taken += 1
            yield size

    for given, group in enumerate(equal_sizes(items(), 2, lambda size: size), start=1):
        assert len(group) == 1
        assert taken - given < 2 * WAITING_BATCHES


def test_to_device_stacks():
    parts = [torch.arange(6, dtype=torch.uint8).reshape(2, 3) + shift for shift in (0, 100)]
    assert torch.equal(to_device(parts, torch.device("cpu")), torch.stack(parts))


def test_any_module_on_its_device(dataset):
    torch.manual_seed(0)
    assert evaluate(nn.Conv2d(3, 3, 1), dataset, batch=7).pixels.sum() > 0
