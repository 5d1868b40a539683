"""What the dtype of the features costs: the tables of both kinds, at few positions and steps."""

import torch

from benchmarks import precision
from ema_ops.demo.train import Budget


def test_errors_grow_as_digits_get_fewer(monkeypatch):
    monkeypatch.setattr(precision, "POSITIONS", 50)
    for x in precision.kinds().values():
        cells = [cell.removesuffix(")").split(" (") for cell in precision.errors(x, torch.device("cpu"), "torch")]
        ours = dict(zip(precision.DTYPES, (float(of_y) for of_y, _ in cells), strict=True))
        assert ours[torch.float32] < ours[torch.float16] < ours[torch.bfloat16] < ours[precision.FLOAT8] < 0.2


def test_one_network_is_judged_with_every_dtype(monkeypatch):
    monkeypatch.setattr("ema_ops.demo.train.Budget", lambda **given: Budget(train=8, val=4, batch=4, **given))
    scores = [float(score) for score in precision.network_scores(2, torch.device("cpu"), "torch")]
    assert len(scores) == len(precision.DTYPES)
    assert all(0 < score < 1 for score in scores)
