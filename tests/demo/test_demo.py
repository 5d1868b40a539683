"""The whole demo on tiny settings: every part runs and the report stands alone."""

import re
from html.parser import HTMLParser

import pytest

from ema_ops.cli import main
from ema_ops.demo import run
from ema_ops.demo.network import CONTEXTS
from ema_ops.demo.train import Budget


class _Links(HTMLParser):
    """Everything a page would load, and its scripts."""

    def __init__(self):
        super().__init__()
        self.targets, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder and result table of one tiny run."""
    out = tmp_path_factory.mktemp("demo")
    bench = ("--quick", "--sizes", "5x5", "9x9", "--mode", "forward", "--peers", "self-attention", "--seconds", "0.01")
    budget = Budget(train=8, val=4, steps=3, batch=2, judgements=2)
    table, status = run.run_demo(run.Plan(out=out, budget=budget, repeats=2, bench=bench, quick=True))
    assert status == 0
    return out, table


def test_table_has_every_network(demo):
    _, table = demo
    assert [line.name for line in table] == list(CONTEXTS)
    for line in table:
        assert 0 <= line.marked <= 1
        assert 0 <= line.miou <= 1
        assert line.milliseconds > 0
        assert line.mib > 0


def test_self_attention_costs_the_most_memory(demo):
    _, table = demo
    memory = {line.name: line.mib for line in table}
    assert memory["no context"] < memory["EM attention"] < memory["self-attention"]


def test_report_stands_alone(demo):
    out, _ = demo
    text = (out / "report.html").read_text()
    links = _Links()
    links.feed(text)
    assert links.targets
    assert all(target.startswith("data:image/png;base64,") for target in links.targets)
    assert "script" not in links.tags
    assert "link" not in links.tags
    without_pictures = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert "url(" not in without_pictures
    assert "://" not in without_pictures
    assert links.tags.count("img") >= 5, "predictions, curves, two maps, the microbenchmark"


def test_trained_network_serves_pictures(demo, tmp_path, capsys):
    from ema_ops.segmentation.data.generated.sources import photograph

    out, _ = demo
    photograph("rocket.jpg").save(tmp_path / "rocket.png")
    assert main(["demo", "--image", str(tmp_path / "rocket.png"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert str(out / "network.pt") in printed
    assert str(out / "attention.html") in printed
    assert (out / "attention.png").stat().st_size > 1000


def test_same_seed_same_losses(small_set):
    from ema_ops.demo.train import train
    from ema_ops.segmentation import VOCSegmentation

    sets = [VOCSegmentation(small_set, split, num_classes=5) for split in ("train", "val")]
    budget = Budget(train=6, val=4, steps=2, batch=2, judgements=1)
    first, again = (train("EM attention", *sets, budget, seed=1) for _ in range(2))
    assert first.losses == again.losses
    assert first.class_iou == again.class_iou


def test_bad_options(capsys, tmp_path):
    for seed in ("-1", str(2**31)):
        assert main(["demo", "--seed", seed, "--out", str(tmp_path)]) == 2
        assert f"seed is {seed}: expected 0 to 2147483647" in capsys.readouterr().err
    assert main(["demo", "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "steps is 0: expected at least 1" in capsys.readouterr().err


def test_without_the_repository_there_is_no_microbenchmark(monkeypatch):
    monkeypatch.setattr(run, "benchmarks_parent", lambda: None)
    told = run._microbenchmark(run.Plan())
    assert (told.figures, told.status) == ([], 0)
    assert "in a clone of the repository only" in told.note


def test_a_microbenchmark_that_refuses_is_told(tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "measurements.csv").write_text("other,columns\n")
    told = run._microbenchmark(run.Plan(out=tmp_path))
    assert told.status == 2
    assert "It ended with status 2; its last line said why." in told.note
