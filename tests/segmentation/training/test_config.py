"""Configs: recipes, changes from the command line, and mistakes told by key, value and what was expected."""

from pathlib import Path

import pytest
import yaml

from ema_ops import PRESETS
from ema_ops.segmentation.config import RECIPES, load_config, recipes
from ema_ops.segmentation.data import KINDS
from ema_ops.segmentation.models import EMANet
from ema_ops.segmentation.training.checkpoints import changed_settings


@pytest.fixture
def mistake(tmp_path):
    """What `load_config` says about a file with `text` in it."""

    def tell(text, *sets):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=r".") as caught:
            load_config(path, sets)
        return str(caught.value).replace(str(path), "FILE")

    return tell


DATA = "data: {kind: voc, root: somewhere}\n"


def test_one_start(mistake):
    assert mistake(DATA, "model.weights=a.pt", "model.backbone_weights=b.pt") == (
        "config FILE: model.weights is 'a.pt' with backbone_weights too: expected one of them"
    )
    assert mistake(DATA, "model.skip_unfitting=true") == (
        "config FILE: model.skip_unfitting is True without weights: expected weights, the file to start from"
    )


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_whole(name):
    config = load_config(name)
    assert config.data.kind in KINDS
    assert config.out == Path("runs") / name
    if name != "generated":
        assert config.published.miou
        assert config.published.status == "not reproduced here: data not available"
        assert config.model.arguments["grad_iters"] == 0
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


def test_recipe_of_the_paper():
    config = load_config("voc_resnet101")
    assert (config.training.steps, config.training.batch, config.data.crop) == (30000, 16, (513, 513))
    assert (config.data.scales, config.data.scale_step) == ((0.5, 2), 0.25)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.power) == (9e-3, 0.9, 1e-4, 0.9)
    assert (optimizer.bias_lr_factor, optimizer.schedule_every, optimizer.norm_momentum) == (2, 10, 3e-4)
    assert config.model.arguments.items() >= PRESETS["official"].items()
    assert config.published.miou == {"single scale": 80.05, "multi-scale + flip": 81.32}


@pytest.mark.parametrize("depth", [50, 101])
def test_recipes_of_mmsegmentation(depth):
    data = load_config(f"cityscapes_mmsegmentation_resnet{depth}").data
    assert (data.crop, data.scales, data.scale_step) == ((512, 1024), (0.5, 2), None)
    assert (data.max_class_share, data.distort_colours) == (0.75, True)


def test_arguments_make_a_network():
    network = EMANet(5, **load_config("generated").model.arguments)
    assert network.options["num_bases"] == 16


def test_sets_change_settings():
    sets = ("optimizer.lr=1e-2", "data.crop=[512, 1024]", "model.layer.eps=1e-8", "out=elsewhere", "training.device=")
    config = load_config("voc_resnet101", sets)
    assert config.optimizer.lr == 0.01
    assert config.data.crop == (512, 1024)
    assert config.model.arguments["eps"] == 1e-8
    assert config.out == Path("elsewhere")
    assert config.training.device is None


def test_config_of_a_run_reads_back(tmp_path):
    config = load_config("generated")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config.plain()))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DATA + "optimizer: {lr: fast}", "optimizer.lr is 'fast': expected a valid number, unable to parse"),
        (DATA + "optimizer: {lr: -1}", "optimizer.lr is -1: expected greater than 0"),
        (DATA + "optimiser: {lr: 1}", "optimiser is not a setting: expected one of out, model, data, optimizer,"),
        (DATA + "optimizer: {rate: 1}", "optimizer.rate is not a setting: expected one of name, lr, warmup,"),
        ("data: {kind: voc}", "data.root is missing: expected a value"),
        ("out: here", "data is missing: expected a value"),
        (DATA + "model: {head: other}", "model.head is 'other': expected 'official' or 'mmsegmentation'"),
        (DATA + "model: {layer: {stages: 3}}", "model.layer.stages is not a setting: expected one of backend, eps"),
        (
            DATA + "training: {batch: 6, accumulate: 4}",
            "training.batch is 6: expected a multiple of training.accumulate",
        ),
        (DATA + "optimizer: {lr: 0.1, min_lr: 1}", "optimizer.min_lr is 1.0: expected at most lr = 0.1"),
        (DATA + "training: {precision: float64}", "training.precision is 'float64': expected 'float32', 'bfloat16' or"),
        ("data: {kind: voc, root: x, scales: [2, 1]}", "data.scales is (2.0, 1.0): expected two positive numbers, the"),
        ("data: {kind: voc, root: x, scale_step: 0.4}", "data.scale_step is 0.4: expected a part of 2.0 - 0.5"),
        (
            "data: {kind: voc, root: x, max_class_share: 75}",
            "data.max_class_share is 75.0: expected a number",
        ),
        ("data: {kind: voc, root: x, scale_step: 0}", "data.scale_step is 0: expected greater than 0"),
        (DATA + "evaluation: {mode: slide}", "evaluation.window is None with mode 'slide': expected (height, width)"),
        (DATA + "evaluation: {window: 9}", "evaluation.window is (9, 9) with mode 'whole': expected mode 'slide'"),
        ("data: 3", "data is 3: expected a section with kind, root,"),
        ("- a\n- b", "holds ['a', 'b']: expected a mapping with the sections out, model,"),
        ("out: {a", "is not YAML: while parsing"),
        ("out: a\nout: b", "is not YAML: out is given twice"),
        ("out: " + 2000 * "[", "is not YAML: it is nested too deeply"),
        (DATA + "out: 3", "out is 3: "),
        (
            "data: {kind: voc, root: x, options: {check_files: false}}",
            "data.option 'check_files' is unknown: expected one",
        ),
    ],
)
def test_mistakes_are_named(mistake, text, message):
    told = mistake(text)
    assert told.startswith("config FILE")
    assert message in told
    assert "\n" not in told


def test_config_of_the_documentation(tmp_path):
    text = (Path(__file__).resolve().parents[3] / "docs" / "segmentation.md").read_text()
    (tmp_path / "mine.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    config = load_config(tmp_path / "mine.yaml")
    assert config.data.options == {"classes": ["ground", "box", "disc"]}
    assert EMANet(3, **{**config.model.arguments, "backbone": "small", "output_stride": 4})


def test_every_mistake_has_a_line(mistake):
    told = mistake(DATA + "training: {steps: 0, batch: many}").splitlines()
    assert [line.split()[2] for line in told] == ["training.steps", "training.batch"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.steps", "--set training.steps: expected KEY=VALUE such as optimizer.lr=0.01"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("out.a=3", "--set out.a=3: out is 'runs', expected a section"),
        ("out=[", "--set out=[: '[' is not a YAML value"),
    ],
)
def test_mistakes_in_a_change_are_named(mistake, change, message):
    assert mistake("out: runs\n" + DATA, change).startswith(message)


def test_sections_may_share_settings(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text("data: {kind: voc, root: x, <<: &shared {flip: false, workers: 1}, workers: 3}")
    data = load_config(str(path)).data
    assert (data.flip, data.workers) == (False, 3)


def test_unknown_recipe_names_the_others():
    with pytest.raises(FileNotFoundError, match=r"config voc is neither a file nor a recipe: .*generated.*voc_resnet"):
        load_config("voc")


def test_harmless_changes_are_no_changes():
    before = load_config("voc_resnet101").plain()
    sets = ("out=b", "data.workers=3", "training.device=cuda", "data.root=c", "data.options.sbd=d")
    now = load_config("voc_resnet101", sets).plain()
    assert changed_settings(before, now) == []
    sets = ("model.layer.eps=1e-3", "data.flip=false", "data.options.num_classes=5")
    now = load_config("voc_resnet101", sets).plain()
    assert changed_settings(before, now) == [
        "data.flip was True and is False",
        "data.options.num_classes was None and is 5",
        "model.layer.eps was None and is 0.001",
    ]
