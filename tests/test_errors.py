"""Every bad input raises ValueError or TypeError that prints the value and what was expected."""

import math

import numpy as np
import pytest
import torch

import ema_ops

X, BASES = torch.randn(2, 10, 6), torch.randn(6, 4)
HEADS_X, HEADS_BASES = torch.randn(2, 3, 10, 6), torch.randn(3, 6, 4)

LOOP = [
    ("x no tensor", {"x": [1.0]}, TypeError, "x is list: expected a tensor"),
    ("x rank", {"x": torch.randn(10, 6)}, ValueError, r"x has shape \[10, 6\]: expected \[B, N, C\]"),
    ("x integer", {"x": X.long()}, TypeError, "x has dtype torch.int64: expected one of float32"),
    ("x complex", {"x": X.cfloat()}, TypeError, "x has dtype torch.complex64"),
    ("no channels", {"x": X[..., :0]}, ValueError, r"x has shape \[2, 10, 0\]: expected at least one channel"),
    ("bases no tensor", {"bases": None}, TypeError, "bases is NoneType: expected a tensor"),
    ("bases rank", {"bases": BASES[0]}, ValueError, r"bases has shape \[4\]: expected \[C, K\] or \[B, C, K\]"),
    ("channels differ", {"bases": torch.randn(5, 4)}, ValueError, "5 channels: expected .* with C = 6"),
    ("no bases", {"bases": BASES[:, :0]}, ValueError, r"\[6, 0\]: expected at least one channel and one base"),
    ("bases integer", {"bases": BASES.long()}, TypeError, "bases has dtype torch.int64"),
    ("bases double", {"bases": BASES.double()}, TypeError, "bases is float64 beside x of torch.float32"),
    ("bases batch", {"bases": torch.randn(3, 6, 4)}, ValueError, "bases is made for a batch of 3: expected B = 2"),
    ("bases device", {"bases": BASES.to("meta")}, ValueError, "bases is on meta: expected cpu"),
    ("num_iters 0", {"num_iters": 0}, ValueError, "num_iters is 0: expected at least 1"),
    ("num_iters float", {"num_iters": 3.0}, TypeError, r"num_iters is 3.0 \(float\): expected a whole number"),
    ("num_iters bool", {"num_iters": True}, TypeError, "num_iters is True"),
    ("grad_iters high", {"grad_iters": 4}, ValueError, "grad_iters is 4: expected 0 to num_iters = 3"),
    ("grad_iters low", {"grad_iters": -1}, ValueError, "grad_iters is -1"),
    ("grad_iters type", {"grad_iters": "all"}, TypeError, "grad_iters is 'all'"),
    ("scale nan", {"scale": math.nan}, ValueError, "scale is nan: expected a finite number"),
    ("scale inf", {"scale": math.inf}, ValueError, "scale is inf"),
    ("scale huge", {"scale": 10**400}, ValueError, "expected a finite number"),
    ("x sparse", {"x": X.to_sparse()}, TypeError, "x is a torch.sparse_coo tensor: expected a dense"),
    ("num_iters huge", {"num_iters": 2**70}, ValueError, "expected at least 1 and at most 2147483647"),
    ("eps mode type", {"eps_mode": 1}, ValueError, "eps_mode is 1"),
    ("scale type", {"scale": "1"}, TypeError, "scale is '1'"),
    ("eps negative", {"eps": -1e-6}, ValueError, "eps is -1e-06: expected a finite number >= 0"),
    ("eps nan", {"eps": math.nan}, ValueError, "eps is nan"),
    ("eps mode", {"eps_mode": "plus"}, ValueError, "eps_mode is 'plus': expected one of 'add', 'max'"),
    ("weight no tensor", {"weight": 1.0}, TypeError, "weight is float: expected a tensor or None"),
    ("weight integer", {"weight": torch.ones(2, 10).long()}, TypeError, "weight has dtype torch.int64: expected bool"),
    (
        "weight rank",
        {"weight": torch.ones(2, 1, 10)},
        ValueError,
        r"\[2, 1, 10\]: expected it to broadcast to \[B, N\]",
    ),
    ("weight size", {"weight": torch.ones(2, 9)}, ValueError, r"\[2, 9\]: expected it to broadcast to \[2, 10\]"),
    ("weight batch", {"weight": torch.ones(3, 10)}, ValueError, r"\[3, 10\]: expected it to broadcast to \[2, 10\]"),
    ("weight grad", {"weight": torch.ones(2, 10, requires_grad=True)}, ValueError, "expected weight.detach()"),
    ("weight sparse", {"weight": torch.ones(2, 10).to_sparse()}, TypeError, "weight is a torch.sparse_coo tensor"),
    ("weight device", {"weight": torch.ones(10, device="meta")}, ValueError, "weight is on meta: expected cpu"),
    (
        "weight negative",
        {"weight": torch.full((2, 10), -0.5)},
        ValueError,
        r"weight has the value -0.5: expected finite numbers >= 0",
    ),
    ("weight inf", {"weight": torch.full((2, 10), math.inf)}, ValueError, "weight has the value inf"),
    ("weight nan", {"weight": torch.full((2, 10), math.nan)}, ValueError, "weight has the value nan"),
    ("backend", {"backend": "fast"}, ValueError, "backend is 'fast': expected None or one of .*'torch'"),
    ("backend type", {"backend": ["torch"]}, ValueError, "backend is .*: expected None or one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), [c[1:] for c in LOOP], ids=[c[0] for c in LOOP])
def test_em_attention(change, error, message):
    arguments = {"x": X, "bases": BASES, **change}
    with pytest.raises(error, match=message):
        ema_ops.em_attention(arguments.pop("x"), arguments.pop("bases"), **arguments)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        (torch.randn(6, 4), r"expected \[H, C, K\] or \[B, H, C, K\]"),
        (torch.randn(2, 6, 4), r"bases has shape \[2, 6, 4\]: expected .* with H = 3"),
        (torch.randn(2, 2, 6, 4), "with H = 3"),
    ],
)
def test_heads(bases, message):
    with pytest.raises(ValueError, match=message):
        ema_ops.em_attention(HEADS_X, bases)


PARTS = [
    ("values K", {"value_bases": torch.randn(5, 3)}, ValueError, "3 bases: expected K = 4 as in logit_bases"),
    ("values rank", {"value_bases": torch.randn(4)}, ValueError, r"value_bases has shape \[4\]"),
    ("values batch", {"value_bases": torch.randn(3, 5, 4)}, ValueError, "value_bases is made for a batch of 3"),
    ("bias K", {"logit_bias": torch.randn(3)}, ValueError, r"logit_bias has shape \[3\]: expected \[K\] or \[B, K\]"),
    ("bias rank", {"logit_bias": torch.randn(2, 1, 4)}, ValueError, "logit_bias has shape"),
    ("bias batch", {"logit_bias": torch.randn(3, 4)}, ValueError, r"logit_bias has shape \[3, 4\]: expected B = 2"),
    ("bias type", {"logit_bias": 1.0}, TypeError, "logit_bias is float"),
    ("bias double", {"logit_bias": torch.randn(4).double()}, TypeError, "logit_bias is float64 beside x"),
    ("scale", {"scale": math.nan}, ValueError, "scale is nan"),
    ("backend", {"backend": "fast"}, ValueError, "backend is 'fast'"),
]


@pytest.mark.parametrize(("change", "error", "message"), [c[1:] for c in PARTS], ids=[c[0] for c in PARTS])
def test_parts(change, error, message):
    arguments = {"value_bases": torch.randn(5, 4), **change}
    with pytest.raises(error, match=message):
        ema_ops.em_reconstruct(X, BASES, arguments.pop("value_bases"), **arguments)
    if "value_bases" not in change:
        arguments.pop("value_bases", None)
        with pytest.raises(error, match=message):
            ema_ops.em_step(X, BASES, **arguments)


def test_a_weight_of_two_dimensions_is_ambiguous_beside_heads():
    with pytest.raises(
        ValueError, match=r"weight has shape \[3, 10\]: expected it to be \[N\] or to broadcast, with three"
    ):
        ema_ops.em_attention(HEADS_X, HEADS_BASES, weight=torch.ones(3, 10))
    expected = ema_ops.em_attention(HEADS_X, HEADS_BASES, weight=torch.ones(2, 1, 10))[0]
    assert torch.equal(ema_ops.em_attention(HEADS_X, HEADS_BASES, weight=torch.ones(10))[0], expected)


def test_values_are_checked_on_the_cpu_under_compile_too():
    with pytest.raises(ValueError, match="weight has the value -1"):
        torch.compile(ema_ops.em_attention, backend="eager")(X, BASES, weight=-torch.ones(2, 10))


def test_numbers_of_numpy_are_numbers():
    expected = ema_ops.em_attention(X, BASES, num_iters=2, scale=0.5)[0]
    got = ema_ops.em_attention(X, BASES, num_iters=np.int64(2), grad_iters=np.int32(2), scale=np.float32(0.5))[0]
    assert torch.equal(got, expected)


def test_a_wrong_word_for_checking_values_raises(monkeypatch):
    monkeypatch.setenv("EMA_OPS_CHECK_VALUES", "yes")
    with pytest.raises(ValueError, match="EMA_OPS_CHECK_VALUES is 'yes': expected 1 or 0"):
        ema_ops.em_attention(X, BASES, weight=torch.ones(2, 10))
