"""The accuracy validation on tiny settings: every part runs, and the report opens in a browser."""

import re
import shutil
import subprocess

import pytest

from benchmarks.validation import checkpoints, run, trainings, variants
from ema_ops.cli import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_other_implementations_give_the_same_numbers():
    found = checkpoints.checks()
    assert len(found) == 8
    assert [check for check in found if not check.passed] == []


def test_a_wrong_number_fails():
    assert not checkpoints.Check("logits", float("nan"), 1e-6).passed
    assert not checkpoints.Check("logits", 2e-6, 1e-6).passed


def test_every_variant_is_trained_once():
    wanted = variants.all_variants(["cuda", "torch"], [0, 1, 2], [0, 1])
    assert len(wanted) == len(set(wanted)) == len({variant.folder for variant in wanted})
    assert sum(variant.backend == "torch" for variant in wanted) == 3
    for answers in variants.ABLATIONS.values():
        assert all(variants.Variant("cuda", 1, **changes) in wanted for changes in answers.values())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a quick run with few answers to each question, and what the command returned."""
    # a name that YAML would read as another one
    out = tmp_path_factory.mktemp("validation") / "run #2: all"
    with pytest.MonkeyPatch.context() as patch:
        for module in (variants, run):
            patch.setattr(module, "ABLATIONS", {"initial bases": variants.ABLATIONS["initial bases"]})
        for module in (variants, run, trainings, run.plots):
            patch.setattr(module, "NUM_ITERS", (3,))
        status = main(["validate", "--quick", "--device", "cpu", "--seeds", "0", "--out", str(out)])
    return out, status


def test_report_has_every_part(report):
    out, status = report
    text = (out / "report.html").read_text()
    assert status == 0
    assert text.count("<h2>") == 4
    assert text.count("passed</td>") == 8
    assert text.count("<img ") == text.count('src="data:image/png;base64,') == 4
    assert len(list((out / "trainings").glob("*/outcome.json"))) == 2
    without_pictures = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert "://" not in without_pictures


def test_trainings_are_kept(report, monkeypatch):
    out, _ = report
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    variant = variants.Variant("torch", 0)
    first, again = (
        trainings.train_all([variant], out / "trainings", run.QUICK_BUDGET, device="cpu", jobs=1) for _ in range(2)
    )
    assert first == again
    assert first[0].variant == variant
    with pytest.raises(ValueError, match=r"made for the budget \{.*: expected \{"):
        trainings.train_all([variant], out / "trainings", trainings.Budget(), device="cpu", jobs=1)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_report_opens_in_a_browser(report, tmp_path):
    out, _ = report
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,3000",
            f"--screenshot={picture}",
            (out / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert ":CONSOLE" not in done.stderr, done.stderr
    # a page that was not drawn is white
    from PIL import Image

    with Image.open(picture) as page:
        assert page.size == (1200, 3000)
        assert len(page.convert("RGB").getcolors(maxcolors=1 << 24)) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "jobs is 0"),
        (["--seeds", "1", "1"], "seeds are \\(1, 1\\)"),
        (["--ablation-seeds", "4"], "ablation_seeds is 4: expected 1 to the number of seeds, 3"),
        (["--seeds", "-1"], "seeds are \\(-1,\\)"),
        (["--device", "cuda:99"], "device is 'cuda:99': expected a device that is there"),
    ],
)
def test_bad_options(arguments, message, tmp_path, capsys):
    assert main(["validate", "--out", str(tmp_path), "--device", "cpu", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
