"""Which backend serves a call, and what is said when none or another one does."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import ema_ops
from ema_ops import backends
from ema_ops.backends.eager import EagerBackend
from ema_ops.cli import main

X, BASES = torch.randn(2, 10, 6), torch.randn(6, 4)


class Refusing(EagerBackend):
    """A backend that is there and serves nothing."""

    name = "refusing"
    reason_unavailable: str | None = None

    def unavailable(self):
        return self.reason_unavailable

    def refuses(self, problem):
        return f"K is {problem.num_bases}: expected at most 3"


@pytest.fixture
def refusing(monkeypatch):
    backend, load = Refusing(), backends.load
    monkeypatch.setattr(backends, "MODULES", {"refusing": "", "torch": backends.MODULES["torch"]})
    monkeypatch.setattr(backends, "load", lambda name: backend if name == "refusing" else load(name))
    return backend


def test_the_next_backend_takes_over_when_none_was_named(refusing):
    assert ema_ops.em_attention(X, BASES)[0].shape == X.shape


def test_a_named_backend_never_falls_back(refusing):
    with pytest.raises(ValueError, match="backend 'refusing' cannot serve this call: K is 4: expected at most 3"):
        ema_ops.em_attention(X, BASES, backend="refusing")
    with pytest.raises(ValueError, match="backend 'refusing' cannot serve"):
        ema_ops.em_attention(X[:, :0], BASES, backend="refusing")


def test_the_environment_names_the_default(refusing, monkeypatch):
    monkeypatch.setenv("EMA_OPS_BACKEND", "refusing")
    with pytest.raises(ValueError, match="backend 'refusing' cannot serve"):
        ema_ops.em_attention(X, BASES)
    assert ema_ops.em_attention(X, BASES, backend="torch")[0].shape == X.shape
    monkeypatch.setenv("EMA_OPS_BACKEND", "fastest")
    with pytest.raises(ValueError, match="EMA_OPS_BACKEND is 'fastest': expected"):
        ema_ops.em_attention(X, BASES)


def test_every_reason_is_told_when_nobody_can(refusing, monkeypatch):
    monkeypatch.setattr(backends, "MODULES", {"refusing": ""})
    with pytest.raises(ValueError, match="no backend can serve this call: refusing: K is 4"):
        ema_ops.em_attention(X, BASES)


def test_available_backends(refusing):
    refusing.reason_unavailable = "no such device"
    assert ema_ops.available_backends() == {"refusing": (False, "no such device"), "torch": (True, "")}


def test_info_tells_every_backend_and_why_not(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"ema_ops {ema_ops.__version__}" in text
    for name, status in ema_ops.available_backends().items():
        assert f"backend {name}" in text
        assert status.reason in text


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ema_ops"], capture_output=True, text=True, check=True)
    assert "backend torch" in done.stdout


def test_other_strings_are_names_too():
    x = torch.randn(1, 5, 4, requires_grad=True)
    y, _ = ema_ops.em_attention(x, torch.randn(4, 3), backend=np.str_("torch"), eps_mode=np.str_("add"))
    y.sum().backward()
    assert x.grad is not None
