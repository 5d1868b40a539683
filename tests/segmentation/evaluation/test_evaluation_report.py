"""The table, the JSON file and the picture of a confusion matrix."""

import errno
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.evaluation.metric import Scores
from ema_ops.segmentation.evaluation.report import confusion_figure, text_table, write_report

CLASSES = ("sky", "flower-bed", "sea")
SCORES = Scores(torch.tensor([[6, 2, 0], [1, 7, 0], [0, 0, 0]]))

TABLE = """\
class          IoU  accuracy  pixels
------------------------------------
sky         0.6667    0.7500       8
flower-bed  0.7000    0.8750       8
sea              -         -       0
------------------------------------
mean        0.6833    0.8125

mIoU 0.6833, pixel accuracy 0.8125"""


def test_table():
    assert text_table(SCORES, CLASSES) == TABLE


def test_full_disk(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"test_full_disk.* cannot be written to: \[Errno 28\] No space left on device"):
        write_report(tmp_path, SCORES, CLASSES, {})


def test_files(tmp_path):
    paths = write_report(tmp_path / "new" / "folder", SCORES, CLASSES, {"scales": (0.5, 1.0)})
    assert [path.name for path in paths] == ["scores.json", "table.txt", "confusion.png"]
    content = json.loads(paths[0].read_text())
    assert content["mean_iou"] == SCORES.mean_iou
    assert content["pixel_accuracy"] == 13 / 16
    assert content["classes"][1] == {"name": "flower-bed", "iou": 0.7, "accuracy": 0.875, "pixels": 8}
    # JSON has no NaN
    assert content["classes"][2] == {"name": "sea", "iou": None, "accuracy": None, "pixels": 0}
    assert content["confusion"] == [[6, 2, 0], [1, 7, 0], [0, 0, 0]]
    assert content["settings"] == {"scales": [0.5, 1.0]}
    assert paths[1].read_text() == TABLE + "\n"
    assert Image.open(paths[2]).format == "PNG"


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report(tmp_path / "file", SCORES, CLASSES, {})


def test_figure_shows_shares_of_rows():
    axes = confusion_figure(SCORES, CLASSES).axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares[:2], [[6 / 8, 2 / 8, 0], [1 / 8, 7 / 8, 0]])
    assert shares.mask[2].all()
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert sorted(text.get_text() for text in axes.texts) == ["12", "25", "75", "88"]


@pytest.mark.parametrize("count", [21, 171])
def test_class_names_do_not_overlap(count):
    classes = [f"class-{label}" for label in range(count)]
    figure = confusion_figure(Scores(torch.eye(count, dtype=torch.int64)), classes)
    figure.draw_without_rendering()
    # those on the left; with many classes there are as many on the right
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()[:count]]
    assert len(labels) == count
    # a letter of at least 7 pixels in the picture, and room between the lines
    assert min(label.height for label in labels) * 120 / figure.dpi >= 7
    assert all(above.y0 > below.y1 for above, below in pairwise(labels))
