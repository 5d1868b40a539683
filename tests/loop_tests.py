"""What the loop of every backend must do: a test class of its folder inherits these and has a fixture `backend`."""

from __future__ import annotations

import os

import pytest
import torch
from backend_checks import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    check_forward,
    check_loop,
    make_bases,
    make_features,
    run_loop,
    uniform,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ema_ops

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
orders = pytest.mark.parametrize("layout", ["rows", "image"])
# with the M-step in the same kernel as the E-step, and not
either_plan = pytest.mark.parametrize("num_bases", [9, 70])
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # seconds for a call
examples = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


class LoopTests:
    """Results and gradients of `em_attention` against float64, and what holds for their bits."""

    @dtypes
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_dtypes_and_memory_orders(self, backend, dtype, layout):
        sizes = (1, 2, 67, 19) if layout == "heads inside" else (2, 67, 19)
        x = make_features(sizes, dtype, layout)
        y, _, grad_x, _ = check_loop(x, make_bases(*sizes[1:-2], 19, 7), backend, num_iters=2)
        if layout != "slice":
            assert y.stride() == grad_x.stride() == x.stride()

    @dtypes
    @orders
    def test_several_tiles(self, backend, layout, dtype):
        check_loop(make_features((1, 200, 64), dtype, layout), make_bases(64, 16), backend, num_iters=2)

    @pytest.mark.parametrize(
        ("channels", "num_bases", "layout", "dtype"),
        [
            (129, 256, "rows", "bf16"),
            (257, 130, "image", "fp16"),
            (512, 65, "rows", "bf16"),
            (512, 200, "image", "fp16"),
            (513, 64, "rows", "bf16"),
            (520, 256, "rows", "fp32"),
            (1024, 33, "image", "fp32"),
            (1024, 256, "image", "bf16"),
        ],
    )
    def test_large_channels_and_bases(self, backend, channels, num_bases, layout, dtype):
        x = make_features((1, 33, channels), DTYPES[dtype], layout)
        check_loop(x, make_bases(channels, num_bases), backend, num_iters=2, scale=0.2)

    @dtypes
    @pytest.mark.parametrize(("channels", "num_bases"), [(1, 1), (3, 1), (64, 7), (1, 16)])
    def test_a_single_position(self, backend, channels, num_bases, dtype):
        check_forward(make_features((2, 1, channels), dtype), make_bases(channels, num_bases), backend)

    @dtypes
    @pytest.mark.parametrize("shape", [(2, 50), (1, 50), (50,), (2, 1), ()], ids=str)
    def test_weight(self, backend, shape, dtype):
        x, bases = make_features((2, 50, 20), dtype), make_bases(20, 6)
        check_loop(x, bases, backend, weight=uniform(*shape, seed=1), num_iters=2)

    @dtypes
    def test_weight_of_stored_responsibilities(self, backend, dtype):
        x, bases = make_features((2, 70, 24), dtype, "image"), make_bases(24, 66)
        check_loop(x, bases, backend, weight=uniform(2, 70, seed=1), num_iters=2)

    @dtypes
    @either_plan
    def test_weights_of_any_size(self, backend, num_bases, dtype):
        """Only their ratios matter without eps: a power of two in all weights changes no bit."""
        x, bases, weight = make_features((1, 45, 24), dtype), make_bases(24, num_bases), uniform(1, 45, seed=1)
        first, *others = (
            run_loop(x, bases, backend, num_iters=2, weight=weight * size, eps=0.0) for size in (1.0, 2.0**-40, 2.0**40)
        )
        for other in others:
            assert_same_bits(first, other)

    def test_mask_of_every_head(self, backend):
        x, bases = make_features((1, 2, 41, 16), torch.float32), make_bases(2, 16, 5)
        check_loop(x, bases, backend, weight=uniform(1, 2, 41, seed=4) > 0.4, num_iters=2)

    @either_plan
    @orders
    def test_a_masked_position_is_not_seen(self, backend, layout, num_bases):
        """Whatever is at a position of weight 0 leaves bases, and what the others get, alone."""
        x, bases = make_features((1, 90, 20), torch.bfloat16, layout), make_bases(20, num_bases)
        mask, other = torch.arange(90) < 60, x.clone()
        other[:, 60:] = 3.0
        (y, last), (other_y, other_last) = (
            ema_ops.em_attention(features, bases, weight=mask, backend=backend) for features in (x, other)
        )
        assert torch.equal(last, other_last)
        assert torch.equal(y[:, :60], other_y[:, :60])
        check_forward(x, bases, backend, weight=mask)

    @either_plan
    def test_the_same_bits_without_a_gradient(self, backend, num_bases):
        x, weight = make_features((2, 70, 24), torch.bfloat16, "image"), uniform(2, 70, seed=1)
        heads = x.unflatten(2, (2, 12)).transpose(1, 2)
        for features, bases, weights in (
            (x, make_bases(24, num_bases), weight),
            (x, make_bases(2, 24, num_bases), None),
            (heads, make_bases(2, 12, num_bases), None),
        ):
            wanted, plain = (
                ema_ops.em_attention(f, bases, num_iters=2, weight=weights, backend=backend)
                for f in (features.clone().requires_grad_(), features)
            )
            assert_same_bits(wanted, plain)

    @dtypes
    @pytest.mark.parametrize("grad_iters", [1, 2, 3, 4])
    def test_gradient_through_the_last_iterations(self, backend, grad_iters, dtype):
        x, bases = make_features((1, 70, 12), dtype), make_bases(12, 5)
        *_, grad_bases = check_loop(x, bases, backend, num_iters=4, grad_iters=grad_iters, scale=1.7)
        assert (grad_bases is None) == (grad_iters < 4)

    @pytest.mark.parametrize("eps_mode", ["add", "max"])
    @pytest.mark.parametrize("eps", [0.0, 1e-6, 0.3, 3.0])
    def test_eps(self, backend, eps, eps_mode):
        x, bases = make_features((1, 40, 20), torch.float32), make_bases(20, 6)
        check_loop(x, bases, backend, num_iters=2, eps=eps, eps_mode=eps_mode)

    @dtypes
    @pytest.mark.parametrize("scale", [-0.5, 0.0, 0.25, 2.0])
    def test_scale(self, backend, scale, dtype):
        check_loop(make_features((1, 70, 20), dtype), make_bases(20, 6), backend, num_iters=2, scale=scale)

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x[:, 3:40],
            lambda x: x[:, ::2, 1:30],
            lambda x: x[..., ::3],
            lambda x: x[:1].expand(3, -1, -1),
            lambda x: x[:, :1].expand(-1, 40, -1),
            lambda x: x[..., :1].expand(-1, -1, 20),
            lambda x: x.transpose(1, 2)[:, 2:34, 5:],
            lambda x: x.transpose(1, 2)[:, 1:34, ::2],
            lambda x: x.flip(1)[:, 1:17],
            lambda x: x[:, 5:6],
            lambda x: x[..., 7:8],
        ],
        ids=[
            "rows", "steps", "channel-steps", "one-image", "repeated-position", "repeated-channel", "transposed",
            "transposed-steps", "copied", "one-position", "one-channel",
        ],
    )  # fmt: skip
    def test_any_strides(self, backend, view):
        x = view(make_features((2, 64, 48), torch.float16))
        check_loop(x, make_bases(x.shape[-1], 6), backend, num_iters=2)

    def test_heads_inside_an_image_are_heads(self, backend):
        x, bases = make_features((2, 2, 33, 24), torch.float32), make_bases(2, 24, 5)
        inside = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert_same_bits(run_loop(x, bases, backend), run_loop(inside, bases, backend))

    def test_an_expanded_gradient(self, backend):
        x, bases = make_features((2, 35, 20), torch.float32).requires_grad_(), make_bases(20, 6).requires_grad_()
        y, last = ema_ops.em_attention(x, bases, backend=backend)
        expanded = torch.autograd.grad(y.sum() + last.sum(), (x, bases), retain_graph=True)
        written_out = torch.autograd.grad((y, last), (x, bases), (torch.ones_like(y), torch.ones_like(last)))
        assert_same_bits(expanded, written_out)

    @orders
    def test_a_gradient_in_the_other_memory_order(self, backend, layout):
        x, bases = make_features((2, 35, 20), torch.float32, layout).requires_grad_(), make_bases(20, 6)
        y, _ = ema_ops.em_attention(x, bases, backend=backend)
        grad_y = make_features(y.shape, torch.float32, "image" if layout == "rows" else "rows", seed=5)
        same_order = torch.empty_strided(y.shape, y.stride()).copy_(grad_y)
        first, second = (torch.autograd.grad(y, x, grad, retain_graph=True) for grad in (grad_y, same_order))
        assert_same_bits(first, second)

    @dtypes
    @pytest.mark.parametrize("only", ["grad_y", "grad_bases"])
    def test_a_gradient_of_one_of_the_two_results(self, backend, only, dtype):
        unwanted = {"grad_y", "grad_bases"} - {only}
        x, bases = make_features((2, 70, 20), dtype), make_bases(20, 6)
        check_loop(x, bases, backend, num_iters=2, **dict.fromkeys(unwanted, False))

    @dtypes
    @pytest.mark.parametrize("num_iters", [1, 3])
    @pytest.mark.parametrize("eps", [0.0, 1e-6])
    def test_a_dead_base_leaves_the_gradient_finite(self, backend, eps, num_iters, dtype):
        x, bases = make_features((1, 34, 16), dtype).abs(), make_bases(16, 5).abs()
        bases[:, 2] = -1e4
        arguments = None, False, "BHNC", num_iters, num_iters, 1.0, eps, "add", backend
        *_, mass, length = torch.ops.ema_ops.em_forward(x[:, None], bases[None], *arguments)
        assert mass[0, 0, 0, 2] == length[0, 0, 0, 2] == 0
        for result in run_loop(x, bases, backend, num_iters=num_iters, eps=eps):
            assert result.isfinite().all()

    @dtypes
    @pytest.mark.parametrize("eps", [0.0, 1e-6])
    def test_nothing_to_see(self, backend, eps, dtype):
        x, bases = make_features((2, 34, 16), dtype), make_bases(16, 5)
        weight = torch.tensor([[0.0], [1.0]]).expand(2, 34)
        for features, of_position in ((torch.zeros_like(x), None), (x, weight)):
            results = run_loop(features, bases, backend, weight=of_position, eps=eps)
            assert not results[1][0].any()
            for result in results:
                assert result.isfinite().all()
        check_forward(x, bases, backend, weight=weight, eps=eps)

    @pytest.mark.parametrize(("dtype", "layout"), [("fp32", "image"), ("bf16", "rows"), ("fp16", "image")])
    @either_plan
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_nan_stays_in_its_image(self, backend, num_bases, layout, dtype):
        self.check_nan(backend, 70, num_bases, layout, DTYPES[dtype])

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_nan_stays_in_its_image_of_many_channels(self, backend):
        self.check_nan(backend, 1000, 33, "rows", torch.bfloat16)

    def check_nan(self, backend, channels, num_bases, layout, dtype):
        clean, bases = make_features((3, 30, channels), dtype, layout), make_bases(3, channels, num_bases)
        dirty, others = clean.clone(), slice(None, None, 2)
        dirty[1] = float("nan")
        before, after = (run_loop(x, bases, backend, of=others, num_iters=2) for x in (clean, dirty))
        assert_same_bits(before, after, of=others)
        assert after[0][1].isnan().all()
        assert after[1][1].isnan().all()

    @dtypes
    @either_plan
    def test_same_call_same_bits(self, backend, num_bases, dtype):
        x, bases = make_features((2, 100, 40), dtype), make_bases(40, num_bases)
        first, second = (run_loop(x, bases, backend, num_iters=2) for _ in range(2))
        assert_same_bits(first, second)

    @settings(max_examples=5 if INTERPRETED else 12, **examples)
    @given(
        batch=st.integers(1, 2),
        heads=st.integers(1, 2),
        # with a few positions or channels all bases coincide, and their gradient is rounding noise
        positions=st.integers(16, 90),
        channels=st.integers(16, 100),
        num_bases=st.integers(1, 70),
        num_iters=st.integers(1, 2),
        dtype=st.sampled_from(list(DTYPES.values())),
        layout=st.sampled_from(LAYOUTS),
        weighted=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_any_shape(
        self, backend, batch, heads, positions, channels, num_bases, num_iters, dtype, layout, weighted, seed
    ):
        x = make_features((batch, heads, positions, channels), dtype, layout, seed)
        weight = uniform(batch, heads, positions, seed=seed) if weighted else None
        bases = make_bases(heads, channels, num_bases, seed=seed + 1)
        check_loop(x, bases, backend, num_iters=num_iters, weight=weight, scale=0.7)

    @settings(max_examples=20, **examples)
    @given(
        positions=st.integers(1, 20),
        channels=st.integers(1, 40),
        num_bases=st.integers(1, 20),
        num_iters=st.integers(1, 3),
        dtype=st.sampled_from(list(DTYPES.values())),
        scale=st.sampled_from([-0.5, 0.0, 1.0]),
        seed=st.integers(0, 9),
    )
    def test_any_few_positions(self, backend, positions, channels, num_bases, num_iters, dtype, scale, seed):
        x, bases = make_features((2, positions, channels), dtype, seed=seed), make_bases(2, channels, num_bases)
        check_forward(x, bases * torch.tensor([0.5, 1.0]).view(2, 1, 1), backend, num_iters=num_iters, scale=scale)
