"""A loss that is not finite stops the run, and the report says where it came from."""

import json
import math
import os

import pytest
import torch
from training_runs import finish, make_config, rows, start, start_ranks

from ema_ops.cli import main
from ema_ops.segmentation.models import EMANet
from ema_ops.segmentation.training import loop, train


def poison(step, module="unit.conv2", rank=0):
    """Make the output of `module` infinite in training from forward number `step` on, in one process."""
    if int(os.environ.get("RANK", 0)) != rank:
        return
    calls = [0]
    init = EMANet.__init__

    def poisoned(network, *args, **options):
        init(network, *args, **options)

        def hook(watched, inputs, output):
            if watched.training:
                calls[0] += 1
                if calls[0] >= step:
                    output = output.clone()
                    output[1, 0, 0, 0] = math.inf
            return output

        network.get_submodule(module).register_forward_hook(hook)

    EMANet.__init__ = poisoned


@pytest.fixture
def poisoned(monkeypatch):
    monkeypatch.setattr(EMANet, "__init__", EMANet.__init__)
    return poison


def test_report_names_the_module(config, poisoned):
    poisoned(4)
    run = config("training.seed=3")
    with pytest.raises(FloatingPointError) as caught:
        train(run)
    report = json.loads((run.out / "nonfinite.json").read_text())
    assert (report["step"], report["loss"]) == (4, "nan")
    assert report["learning_rate"] == pytest.approx(0.05 * (1 - 4 / 12) ** 0.9)
    (process,) = report["processes"]
    assert process["first_nonfinite_output"] == {"module": "unit.conv2", "type": "Conv2d", "inputs_finite": True}
    assert len(process["pictures"]) == 4
    assert all(picture["image_finite"] for picture in process["pictures"])
    assert report["nonfinite_parameters"] == []
    assert "unit.conv2.weight" in report["nonfinite_gradients"]
    said = str(caught.value)
    assert "step 4: loss nan, learning rate 0.0347; no parameter was moved" in said
    assert "unit.conv2 (Conv2d), whose inputs are finite" in said
    assert process["pictures"][0]["name"] in said
    assert str(run.out / "nonfinite.json") in said
    # the steps before are logged and saved, the failed one is not
    assert [row["step"] for row in rows(run.out / "log.csv")] == ["1", "2", "3"]
    checkpoint = torch.load(run.out / "latest.pt", weights_only=True)
    assert checkpoint["training"]["step"] == 3
    assert all(value.isfinite().all() for value in checkpoint["network"].values())


def test_report_leaves_running_statistics(config, poisoned, monkeypatch):
    poisoned(2, "classifier")
    seen = {}
    report = loop.failure_report

    def watched(training, *args):
        before = {name: buffer.clone() for name, buffer in training.network.named_buffers()}
        result = report(training, *args)
        torch.testing.assert_close(dict(training.network.named_buffers()), before, rtol=0, atol=0)
        seen.update(result)
        return result

    monkeypatch.setattr(loop, "failure_report", watched)
    with pytest.raises(FloatingPointError):
        train(config())
    assert seen["step"] == 2
    bad = [picture for picture in seen["processes"][0]["pictures"] if not math.isfinite(picture["loss"])]
    assert len(bad) == 1


def test_gradient_alone_may_be_the_fault(config, monkeypatch):
    init = EMANet.__init__

    def poisoned(network, *args, **options):
        init(network, *args, **options)
        network.reduce.conv.weight.register_hook(lambda gradient: gradient * math.nan)

    monkeypatch.setattr(EMANet, "__init__", poisoned)
    run = config()
    with pytest.raises(FloatingPointError, match=r"step 1: gradient norm nan with loss 1\.\d+.*") as caught:
        train(run)
    assert "all outputs are finite" in str(caught.value)
    report = json.loads((run.out / "nonfinite.json").read_text())
    assert report["nonfinite_gradients"] == ["reduce.conv.weight"]
    assert next(iter(report["largest_gradients"])) == "reduce.conv.weight"


def test_diverging_run_ends_with_status_1(data, tmp_path, capsys):
    make_config(data, tmp_path / "run")
    sets = [word for change in ("optimizer.lr=1e36", "optimizer.warmup=0") for word in ("--set", change)]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *sets]) == 1
    assert "ema-ops train: step" in capsys.readouterr().err


def test_all_processes_stop(config, tmp_path):
    processes = start_ranks(2, fails_in_rank_1, config(), tmp_path)
    assert [finish(process) for process in processes] == [0, 0]
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "process 1: the first output that is not finite is that of unit.conv2 (Conv2d), whose inputs" in said[0]


def fails_in_rank_1(config, folder):
    poison(3, rank=1)
    with pytest.raises(FloatingPointError) as caught:
        train(config)
    (folder / f"said{os.environ['RANK']}").write_text(str(caught.value))


def test_failed_run_can_go_on(config, tmp_path):
    run = config()
    assert finish(start(fails_once, run)) == 0
    assert train(run, resume=True).step == 12
    assert len(rows(run.out / "log.csv")) == 12


def fails_once(config):
    poison(5)
    with pytest.raises(FloatingPointError):
        train(config)
