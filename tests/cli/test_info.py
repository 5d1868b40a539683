"""`ema-ops info`: the core, the backends, and what serves a described call."""

import pytest
import torch

from ema_ops import backends
from ema_ops.backends.base import Backend
from ema_ops.cli import main


@pytest.fixture
def info(capsys):
    """What the command prints, as lines."""

    def run(*options):
        assert main(["info", *options]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def with_start(lines, start):
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_core_is_named_or_its_absence_is(info):
    core = backends.load("cuda").core
    line = with_start(info(), "core ")
    if core is None:
        assert line == "core    none (see the cuda backend)"
    else:
        assert f"compiled by nvcc {core.nvcc_version} for {' '.join(core.architectures)}" in line


def test_wrong_backend_in_the_environment(info, monkeypatch):
    monkeypatch.setenv("EMA_OPS_BACKEND", "tritn")
    line = with_start(info(), "EMA_OPS_BACKEND")
    assert line.startswith(
        "EMA_OPS_BACKEND wrong, every call will raise: it is 'tritn': expected None or one of 'cuda'"
    )


def test_call_on_the_processor(info):
    lines = info("--shape", "2,48,7,5", "--dtype", "float64", "--bases", "6", "--heads", "3", "--iters", "2")
    assert "call    2,48,7,5 float64, 6 bases, 2 iterations, contiguous" in lines
    report = lines[lines.index("on cpu: served by torch") + 1 :]
    assert [line.split()[0] for line in report] == list(backends.MODULES)
    assert report[-1] == "  torch   the first that can"
    assert all(" cannot: " in line for line in report[:-1])


def test_features_of_8_bits(info, monkeypatch):
    call = ("--shape", "2,48,7,5", "--dtype", "float8_e4m3fn")
    assert "on cpu: served by torch, widened to bfloat16 first" in info(*call)
    monkeypatch.setattr(type(backends.load("torch")), "reads_float8", lambda self, problem: problem.channels == 48)
    assert "on cpu: served by torch, as 8 bits" in info(*call)


def test_binding_choice(info, monkeypatch):
    monkeypatch.setenv("EMA_OPS_BACKEND", "torch")
    assert "  torch   chosen by EMA_OPS_BACKEND" in info("--shape", "2,35,16")
    monkeypatch.setenv("EMA_OPS_BACKEND", "cuda")
    line = with_start(info("--shape", "2,35,16"), "on cpu")
    assert line.startswith("on cpu: raises ValueError: backend 'cuda' cannot serve this call: ")


class Recorder(Backend):
    """Serves nothing and remembers what it was asked."""

    name = "cuda"
    core = None
    asked = ()

    def unavailable(self):
        return None

    def refuses(self, problem):
        self.asked = (*self.asked, problem)
        return "only looking"

    em_forward = em_backward = em_step = em_step_backward = em_reconstruct = em_reconstruct_backward = None
    em_folded_forward = em_folded_backward = None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--shape", "2,48,7,5"), (2, 1, 35, 48, "BHCN")),
        (("--shape", "2,48,7,5", "--memory-order", "channels_last"), (2, 1, 35, 48, "BHNC")),
        (("--shape", "2,48,7,5", "--memory-order", "channels_last", "--heads", "3"), (2, 3, 35, 16, "BNHC")),
        (("--shape", "2,35,48"), (2, 1, 35, 48, "BHNC")),
    ],
)
def test_problem_that_is_described(info, monkeypatch, options, expected):
    recorder, load = Recorder(), backends.load
    fake = {"cuda": recorder}
    for module in ("ema_ops.backends", "ema_ops.cli.info"):
        monkeypatch.setattr(f"{module}.load", lambda name: fake.get(name) or load(name))
    lines = info(*options, "--dtype", "bfloat16")
    problem = recorder.asked[0]
    assert (problem.batch, problem.heads, problem.positions, problem.channels, problem.order) == expected
    assert (problem.dtype, problem.num_bases, problem.num_iters) == (torch.bfloat16, 64, 3)
    assert "  cuda    cannot: only looking" in lines


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--shape", "2,48,7,5", "--heads", "5"), "heads is 5: expected a divisor of the 48 channels"),
        (("--shape", "2,48,7,5", "--bases", "0"), "bases is 0: expected at least 1"),
        (
            ("--shape", "2,35,48", "--memory-order", "channels_last"),
            "memory-order is channels_last: expected contiguous",
        ),
    ],
)
def test_calls_that_cannot_be(capsys, options, expected):
    assert main(["info", *options]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("shape", [f"{2**64},1,1", f"1,{2**30},{2**29}"])
def test_shapes_that_no_memory_holds(capsys, shape):
    with pytest.raises(SystemExit):
        main(["info", "--shape", shape])
    assert f"shape is {shape!r}: expected fewer than 2^59 numbers" in capsys.readouterr().err


def test_the_largest_shape(info):
    assert with_start(info("--shape", f"1,{2**30},{2**29 - 1}"), "call")


@pytest.mark.parametrize("shape", ["2,48", "2x48x7x5", "2,0,7,5", "2,48,7,5,3", ""])
def test_shapes_that_are_none(capsys, shape):
    with pytest.raises(SystemExit):
        main(["info", "--shape", shape])
    assert f"shape is {shape!r}: expected B,C,H,W or B,N,C" in capsys.readouterr().err


def test_version_of_the_command(info, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out.splitlines() == [info()[0]]


def test_options_that_a_command_lacks(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["info", "--backend", "cuda"])
    error = capsys.readouterr().err
    assert error.startswith("usage: ema-ops info ")
    assert error.endswith("ema-ops info: error: unrecognized arguments: --backend cuda\n")
