"""What commands say when an extra is missing; the list agrees with pyproject.toml."""

import importlib.util
import re
from pathlib import Path

import pytest

from ema_ops.cli import main
from ema_ops.cli.extras import EXTRAS, require

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_is_in_that_extra(extra):
    line = next(line for line in PYPROJECT.read_text().splitlines() if line.startswith(f"{extra} = ["))
    included = [EXTRAS[name] for name in re.findall(r"ema_ops\[([\w,]+)\]", line) for name in name.split(",")]
    listed = {re.split(r"[>=]", name)[0] for name in re.findall(r'"([^"]+)"', line) if not name.startswith("ema_ops[")}
    listed |= {package for packages in included for package in packages.values()}
    assert set(EXTRAS[extra].values()) == listed


def test_missing_packages_are_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("PIL", "yaml") else found(name))
    with pytest.raises(ValueError, match=re.escape("not installed: pillow, pyyaml: expected `pip install 'ema_ops[")):
        require("segmentation")


def test_a_package_that_an_option_needs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")

    def missing(*_):
        raise ImportError("backend timm:resnet18 needs timm: expected `pip install timm`")

    monkeypatch.setattr("ema_ops.segmentation.models.emanet.make_backbone", lambda *_, **__: missing())
    assert main(["data", "generate", str(tmp_path / "set"), "--train", "2", "--val", "1"]) == 0
    arguments = ["--set", f"data.root={tmp_path / 'set'}", "--out", str(tmp_path / "run")]
    assert main(["train", "--config", "generated", *arguments]) == 2
    assert "ema-ops train: backend timm:resnet18 needs timm" in capsys.readouterr().err
