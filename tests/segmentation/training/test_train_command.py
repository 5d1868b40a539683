"""`ema-ops train` as users call it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import losses, make_config, rows, write_config

from ema_ops.cli import main
from ema_ops.segmentation.evaluation import evaluate
from ema_ops.segmentation.models import EMANet, save_network
from ema_ops.segmentation.training import loop, train
from ema_ops.segmentation.training.step import TrainingStep

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(data, tmp_path, capsys):
    """Runs `ema-ops train` on the small config; returns its status and what it printed."""
    path = write_config(tmp_path / "small.yaml", data, tmp_path / "run")

    def run(*options, config=path):
        status = main(["train", "--config", str(config), *options])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_a_run_learns(command, tmp_path):
    status, said, _ = command("--set", "training.steps=60", "training.validate_every=20")
    assert status == 0
    judged = [float(row["mean_iou"]) for row in rows(tmp_path / "run" / "validation.csv")]
    assert judged[-1] > 0.5
    assert f"60 steps done, best mIoU {max(judged):.4f}" in said
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {".lock", "best.pt", "latest.pt", "config.yaml", "log.csv", "validation.csv", "tensorboard"}


def test_validation_takes_several_pictures_at_a_time(command, tmp_path, monkeypatch):
    sizes = []

    def judge(network, dataset, **options):
        network.register_forward_pre_hook(lambda _, inputs: sizes.append((network.training, len(inputs[0]))))
        return evaluate(network, dataset, **options)

    monkeypatch.setattr(loop, "evaluate", judge)
    for batch in (1, 3):
        out = tmp_path / str(batch)
        options = ("training.steps=5", "training.validate_every=5", "training.pictures=0", f"evaluation.batch={batch}")
        assert command("--out", str(out), *(word for text in options for word in ("--set", text)))[0] == 0
    one, three = (rows(tmp_path / str(batch) / "validation.csv") for batch in (1, 3))
    assert one == three
    assert max(size for is_training, size in sizes if not is_training) == 3


def test_augmentation_of_the_config_reaches_the_batches(command, tmp_path):
    seen = set()
    for number, change in enumerate(([], ["scale_step=0.25"], ["max_class_share=0.6"], ["distort_colours=true"])):
        out = tmp_path / str(number)
        sets = [word for text in ("training.steps=2", *(f"data.{one}" for one in change)) for word in ("--set", text)]
        assert command("--out", str(out), *sets)[0] == 0
        seen.add(tuple(losses(out)))
    assert len(seen) == 4


def test_norms_that_cannot_follow_are_told(command):
    _, _, error = command("--set", "training.steps=3", "--set", "optimizer.norm_momentum=3e-4")
    expected = "note: with optimizer.norm_momentum=0.0003 the statistics of the norms are still 100% those of the start"
    assert error.splitlines()[0].startswith(expected)
    assert "note: " not in command("--resume", "--set", "training.steps=3", "--set", "optimizer.norm_momentum=0.5")[2]


def fine_tuned(command, tmp_path, *sets):
    """What a run of one step that starts from the best network of another one said, and its last network."""
    assert command("--set", "training.steps=6")[0] == 0
    start = tmp_path / "run" / "best.pt"
    sets = (f"model.weights={start}", "training.steps=1", "optimizer.lr=1e-30", *sets)
    out = tmp_path / "second"
    result = command("--out", str(out), *(word for change in sets for word in ("--set", change)))
    latest = out / "latest.pt"
    networks = [torch.load(path, weights_only=True)["network"] for path in (start, latest) if path.exists()]
    return *result, *networks


def test_a_run_starts_from_the_network_of_another(command, tmp_path):
    status, _, error, before, after = fine_tuned(command, tmp_path, "model.num_iters=5")
    assert status == 0
    assert "not loaded" not in error
    assert "class 0 is" not in error
    # the rate is as good as none
    learnt = [key for key in before if key.endswith(("weight", "bias"))]
    assert all(torch.equal(after[key], before[key]) for key in learnt)
    assert torch.load(tmp_path / "second" / "latest.pt", weights_only=True)["model"]["num_iters"] == 5
    # the file is needed once only
    (tmp_path / "run" / "best.pt").unlink()
    again = ("--out", str(tmp_path / "second"), "--set", "training.steps=1", "--set", "optimizer.lr=1e-30")
    assert command(*again, "--set", "model.num_iters=5", "--resume")[0] == 0


def test_other_classes_and_bases_are_left_out_when_asked(command, tmp_path):
    other = ("data.options.classes=[a, b, c, d]", "model.num_bases=6")
    status, _, error, _ = fine_tuned(command, tmp_path, *other)
    assert status == 2
    assert (
        "best.pt does not fit the EMANet; of another shape: unit.attention.bases [1, 16, 4] (expected [1, 16, 6])"
        in error
    )
    assert error.splitlines()[-1].endswith("model.skip_unfitting=true leaves these out")
    torch.manual_seed(0)
    for name in (tmp_path / "run").glob("*.pt"):
        name.unlink()
    status, _, error, before, after = fine_tuned(command, tmp_path, *other, "model.skip_unfitting=true")
    assert status == 0
    left_out = ["unit.attention.bases", "classifier.weight", "classifier.bias"]
    shapes = ", ".join(f"{key} {list(before[key].shape)} (expected {list(after[key].shape)})" for key in left_out)
    note = f"note: not loaded from {tmp_path / 'run' / 'best.pt'}; of another shape: {shapes}"
    assert note in error.splitlines()
    learnt = [key for key in before if key.endswith(("weight", "bias")) and key not in left_out]
    assert len(learnt) > 10
    assert all(torch.equal(after[key], before[key]) for key in learnt)


def test_classes_of_other_names_are_told(command, tmp_path):
    status, _, error, before, after = fine_tuned(command, tmp_path, "data.options.classes=[background, cat, dog]")
    assert status == 0
    assert f"note: class 1 is 'red' in {tmp_path / 'run' / 'best.pt'} and 'cat' here" in error.splitlines()
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_a_file_of_which_nothing_fits(command, tmp_path):
    sets = ("model.channels=24", "model.backbone=resnet50", "model.output_stride=8", "model.skip_unfitting=true")
    status, _, error, _ = fine_tuned(command, tmp_path, *sets, "data.options.classes=[a, b]")
    assert status == 2
    assert "best.pt has nothing that fits the network: missing: backbone.stem.0.weight" in error


def test_out_and_resume(command, tmp_path):
    out = tmp_path / "elsewhere"
    assert command("--out", str(out))[0] == 0
    assert len(losses(out)) == 12
    status, _, error = command("--out", str(out))
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith(f"ema-ops train: {out}/latest.pt exists: expected --resume")
    assert command("--out", str(out), "--resume")[0] == 0
    # the config that a run leaves behind is enough to go on with it
    assert command("--resume", config=out / "config.yaml")[0] == 0


def test_a_whole_network_is_no_backbone(command, tmp_path):
    path = tmp_path / "whole.pt"
    save_network(path, EMANet(2, backbone="small", channels=8, num_bases=2), classes=["a", "b"])
    status, _, error = command("--set", f"model.backbone_weights={path}")
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith(f"ema-ops train: {path} holds num_classes, ")
    assert error.endswith("; a file of a whole network is for model.weights\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "optimizer.lr=fast"], "optimizer.lr is 'fast': expected a valid number"),
        (["--set", "data.root=/nowhere"], "/nowhere"),
        (["--set", "data.kind=vok"], "kind is 'vok': expected one of voc,"),
        (["--set", "model.backbone=resnet7"], "backbone is 'resnet7': expected"),
        (["--set", "model.backbone_weights=missing.pth"], "missing.pth"),
        (["--set", "training.precision=float16"], "training.precision is 'float16' on cpu: expected"),
        (["--resume"], "latest.pt is missing: --resume expects"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(command, tmp_path, options, message):
    status, _, error = command(*options)
    assert status == 2
    assert error.startswith("ema-ops train: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "log.csv").exists()


@pytest.mark.parametrize(
    "no_memory",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    ],
)
def test_a_step_without_memory_ends_with_one_line(command, tmp_path, monkeypatch, no_memory):
    take = TrainingStep.__call__

    def full(training, batch, step):
        if step == 5:
            raise no_memory
        return take(training, batch, step)

    monkeypatch.setattr(TrainingStep, "__call__", full)
    status, _, error = command("--set", "training.accumulate=2")
    assert status == 2
    told = error.splitlines()[-1]
    assert "step 5: no memory on cpu for 2 crops of 24 x 32 at a time in float32 (training.batch=4," in told
    assert "a larger training.accumulate, training.precision=bfloat16, or a smaller data.crop" in told
    assert told.endswith(f"{tmp_path / 'run' / 'latest.pt'} is kept")
    assert "Traceback" not in error
    # with room for it the run goes on from the checkpoint of step 3
    monkeypatch.setattr(TrainingStep, "__call__", take)
    assert command("--set", "training.accumulate=2", "--resume")[0] == 0
    assert len(losses(tmp_path / "run")) == 12


def test_interrupted_before_it_began(command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ema_ops.segmentation.config.load_config", interrupted)
    assert command() == (130, "", "ema-ops train: interrupted\n")


def test_unknown_config_names_the_recipes(command):
    status, _, error = command(config="voc")
    assert status == 2
    assert "config voc is neither a file nor a recipe" in error


def test_recipes_are_shown(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--recipes"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert (
        "voc_resnet101: resnet101, voc, 30000 steps\n    mIoU 80.05 (single scale), 81.32 (multi-scale + flip)" in said
    )
    assert said.count("not reproduced here: data not available") == 6


def test_help_needs_no_extra(capsys, monkeypatch):
    for name in ("yaml", "pydantic", "PIL", "tqdm", "torchmetrics", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("ema_ops.segmentation")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "torchrun --nproc-per-node" in said


def test_missing_package_is_named(command, monkeypatch):
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "yaml" else find_spec(name))
    assert command()[2] == "ema-ops train: not installed: pyyaml: expected `pip install 'ema_ops[segmentation]'`\n"


def test_the_same_under_torchrun(data, tmp_path):
    one = make_config(data, tmp_path / "one", "model.dropout=0", "training.steps=4")
    train(one)
    words = ["train", "--config", str(tmp_path / "one.yaml"), "--out", str(tmp_path / "two")]
    words += ["--set", "model.dropout=0", "--set", "training.steps=4"]
    done = torchrun(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps done") == 1
    assert "FutureWarning" not in done.stderr
    assert [float(x) for x in losses(tmp_path / "two")] == pytest.approx([float(x) for x in losses(one.out)], rel=1e-4)


def test_mistakes_are_told_once_under_torchrun(data, tmp_path):
    path = write_config(tmp_path / "small.yaml", data, tmp_path / "run")
    done = torchrun("train", "--config", str(path), "--set", "optimizer.lr=fast")
    assert done.returncode != 0
    assert done.stderr.count("ema-ops train: ") == done.stderr.count("optimizer.lr is 'fast'") == 1


def torchrun(*words):
    """The command `words` in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ema_ops"]
    return subprocess.run(
        [*launch, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
