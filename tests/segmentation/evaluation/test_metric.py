"""The confusion matrix and its scores against numbers worked out by hand."""

import math

import pytest
import torch

from ema_ops.segmentation.data import IGNORE
from ema_ops.segmentation.evaluation.metric import ConfusionCounter, Scores

CPU = torch.device("cpu")

MASKS = torch.tensor([[0, 0, 0, 1], [1, 1, IGNORE, 0]], dtype=torch.uint8)[None]
PREDICTIONS = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 0]], dtype=torch.uint8)[None]
# class 3 is in neither; class 2 is predicted once where it is not, its other pixel is ignored
CONFUSION = [[3, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.fixture
def scores():
    counter = ConfusionCounter(4, CPU)
    counter.update(PREDICTIONS, MASKS)
    return counter.compute()


def test_confusion_by_hand(scores):
    assert scores.confusion.tolist() == CONFUSION
    assert scores.confusion.dtype == torch.int64
    assert scores.pixels.tolist() == [4, 3, 0, 0]


def test_scores_by_hand(scores):
    assert scores.class_iou[:3].tolist() == [3 / 4, 2 / 4, 0]
    assert scores.class_iou[3].isnan()
    assert scores.mean_iou == pytest.approx((3 / 4 + 2 / 4 + 0) / 3, abs=1e-15)
    assert scores.class_accuracy[:2].tolist() == [3 / 4, 2 / 3]
    assert scores.class_accuracy[2:].isnan().all()
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2, abs=1e-15)
    assert scores.pixel_accuracy == 5 / 7


def test_nothing_labelled_has_no_score():
    counter = ConfusionCounter(2, CPU)
    counter.update(torch.zeros(1, 3, 3, dtype=torch.uint8), torch.full((1, 3, 3), IGNORE, dtype=torch.uint8))
    scores = counter.compute()
    assert scores.confusion.sum() == 0
    assert all(math.isnan(score) for score in (scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy))


def test_nothing_seen_has_no_score():
    assert ConfusionCounter(2, CPU).compute().confusion.tolist() == [[0, 0], [0, 0]]


def test_scores_do_not_change():
    with pytest.raises(AttributeError):
        Scores(torch.zeros(2, 2, dtype=torch.int64)).confusion = None


def test_sum_over_updates_and_the_limit_of_waiting_pixels(monkeypatch):
    counts = []
    monkeypatch.setattr(ConfusionCounter, "PIXELS", 20)
    counter = ConfusionCounter(4, CPU)
    for _ in range(5):
        counter.update(PREDICTIONS, MASKS)
        counts.append(int(counter._metric.confmat.sum()))
    # 8 pixels an update, 7 of them labelled: counted at 24 pixels, when the update after them is there
    assert counts == [0, 0, 0, 21, 21]
    assert (counter.compute().confusion == 5 * torch.tensor(CONFUSION)).all()


def test_last_of_255_classes_fits():
    counter = ConfusionCounter(255, CPU)
    labels = torch.tensor([[[254, 0, 253]]], dtype=torch.uint8)
    counter.update(labels, labels)
    assert counter.compute().confusion.nonzero().tolist() == [[0, 0], [253, 253], [254, 254]]


def test_deterministic_algorithms_need_no_table_of_pixels_times_cells():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        counter = ConfusionCounter(171, CPU)
        labels = torch.arange(171, dtype=torch.uint8).repeat(4000)[None, None]
        # pixels x cells would be 160 GB
        counter.update(labels, labels)
        assert counter.compute().confusion.diagonal().tolist() == [4000] * 171
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
