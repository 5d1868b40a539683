"""`EMAUnit` with its first convolution folded into the bases: the same results, gradients and side effects."""

import copy
import io

import pytest
import torch
from examples import features
from judge import assert_close_to_reference
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from ema_ops import EMAUnit, backends
from ema_ops.backends.eager import EagerBackend
from ema_ops.layers import unit as unit_module
from ema_ops.layers import unit_ways

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def make_unit(channels=16, num_bases=5, **options):
    """A unit in float64 whose every parameter and statistic counts."""
    torch.manual_seed(0)
    unit = EMAUnit(channels, num_bases, **options).double()
    with torch.no_grad():
        for parameter in (unit.conv1.bias, *unit.norm.parameters()):
            parameter.normal_()
        if isinstance(unit.norm, nn.BatchNorm2d):
            unit.norm.running_mean.normal_()
            unit.norm.running_var.uniform_(0.5, 2)
    return unit


def twins(unit):
    """The unit without folding, and a copy with it."""
    other = copy.deepcopy(unit)
    unit.fold, other.fold = False, True
    return unit, other


def image(*shape, memory_format=torch.contiguous_format, dtype=torch.float64):
    return features(*shape).to(dtype).to(memory_format=memory_format)


@pytest.fixture
def ways(monkeypatch):
    """How units with folding ran, in the order of the calls."""
    seen, choose = [], unit_module.choose_way

    def choose_and_tell(unit, x):
        way = choose(unit, x)
        if unit.fold is not False:
            seen.append(way)
        return way

    monkeypatch.setattr(unit_module, "choose_way", choose_and_tell)
    return seen


@pytest.mark.parametrize(("memory_format", "weighted"), [(torch.contiguous_format, False), (torch.channels_last, True)])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 2.0, "num_iters": 2}, {"grad_iters": 1}, {"grad_iters": 0}, {"eps": 1e-3, "eps_mode": "max"},
     {"learnable_bases": True}, {"norm_layer": lambda channels: nn.GroupNorm(4, channels)}],
    ids=["", "scale", "truncated", "detached", "max", "learnable", "group norm"],
)  # fmt: skip
def test_training_is_the_same(options, weighted, memory_format, ways):
    plain, folded = twins(make_unit(**options).to(memory_format=memory_format))
    weight = torch.rand(2, 6, 5, dtype=torch.float64) if weighted else None
    for _ in range(2):
        results = []
        for unit in (plain, folded):
            x = image(2, 16, 6, 5, memory_format=memory_format).requires_grad_()
            y, bases = unit(x, weight, return_bases=True)
            unit.zero_grad()
            y.backward(image(2, 16, 6, 5))
            assert y.stride() == x.stride()
            gradients = {name: parameter.grad for name, parameter in unit.named_parameters()}
            results.append((y, bases, x.grad, gradients, unit.state_dict()))
        torch.testing.assert_close(results[1], results[0], **CLOSE)
    assert ways == ["folded"] * 2


@pytest.mark.parametrize(("memory_format", "weighted"), [(torch.contiguous_format, True), (torch.channels_last, False)])
@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d, nn.SyncBatchNorm, lambda channels: nn.BatchNorm2d(channels, affine=False)],
    ids=["batch norm", "sync", "not affine"],
)
def test_evaluation_is_one_operator(norm, weighted, memory_format, ways):
    unit = EMAUnit(16, 5, 2, norm_layer=norm, scale=1.5).double().eval()
    unit.norm.running_mean.normal_()
    unit.norm.running_var.uniform_(0.5, 2)
    plain, folded = twins(unit)
    x, weight = image(2, 16, 6, 5, memory_format=memory_format), torch.rand(2, 6, 5).double() if weighted else None
    with torch.no_grad():
        expected, got = (unit(x, weight, num_iters=4, return_bases=True) for unit in (plain, folded))
    torch.testing.assert_close(got, expected, **CLOSE)
    assert got[0].stride() == x.stride()
    assert ways == ["one"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_error_is_that_of_the_plain_unit(mode, dtype, ways):
    exact = make_unit(48, 9).train(mode == "train")
    rounded = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(rounded.state_dict())
    exact.fold, (plain, folded) = False, twins(rounded)
    x = image(2, 48, 15, 11, dtype=dtype).relu()
    results = []
    for unit in (exact, plain, folded):
        leaf = x.detach().to(unit.conv1.weight.dtype).requires_grad_(mode == "train")
        with torch.set_grad_enabled(mode == "train"):
            y, bases = unit(leaf, return_bases=True)
        if mode == "train":
            y.backward(image(2, 48, 15, 11).to(y.dtype))
            gradients = [p.grad for p in (leaf, *unit.parameters())]
        else:
            gradients = []
        results.append((y.detach(), bases.detach(), *gradients))
    assert ways == ["folded" if mode == "train" else "one"]
    for i, (reference, yardstick, ours) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == yardstick.dtype
        assert_close_to_reference(ours, reference, yardstick, factor=2.0 if i < 2 else 3.0, name=str(i))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_autocast(mode, x_dtype, ways):
    exact = make_unit(48, 9).train(mode == "train")
    exact.fold, (plain, folded) = False, twins(copy.deepcopy(exact).float())
    x = image(2, 48, 15, 11).to(x_dtype)
    results = []
    for unit in (exact, plain, folded):
        leaf = x.detach().to(torch.float64 if unit is exact else x_dtype).requires_grad_(mode == "train")
        with torch.autocast("cpu", torch.bfloat16, enabled=unit is not exact), torch.set_grad_enabled(mode == "train"):
            y, bases = unit(leaf, return_bases=True)
        if mode == "train":
            y.float().square().mean().backward()
        results.append((y.detach(), bases.detach(), leaf.grad, unit.conv1.weight.grad))
    # where x is not rounded the sum with it is not either, and the operator would round both or none
    assert ways == ["one" if mode == "eval" and x_dtype == torch.bfloat16 else "folded"]
    for i, (reference, yardstick, ours) in enumerate(zip(*results, strict=True)):
        if yardstick is not None:
            assert ours.dtype == yardstick.dtype
            # judged as 16 bits: that is what autocast rounds to
            assert_close_to_reference(
                ours.bfloat16() if i < 2 else ours, reference, yardstick.bfloat16() if i < 2 else yardstick,
                factor=2.0 if i < 2 else 3.0, name=str(i),
            )  # fmt: skip


def test_running_bases_move_alike():
    plain, folded = twins(make_unit(momentum=0.3, renormalize="mean"))
    x = image(3, 16, 6, 5)
    for unit in (plain, folded):
        unit.train()(x)
        with torch.no_grad():
            unit.train()(x)
            unit.eval()(x, update_bases=True)
    torch.testing.assert_close(folded.attention.bases, plain.attention.bases, **CLOSE)
    before = folded.attention.bases.clone()
    folded(x, update_bases=False)
    folded.eval()(x)
    assert torch.equal(folded.attention.bases, before)


def test_state_copies_and_files():
    unit = make_unit(fold=True)
    assert unit.state_dict().keys() == EMAUnit(16, 5).state_dict().keys()
    file, x = io.BytesIO(), image(2, 16, 4, 4)
    torch.save(unit, file)
    file.seek(0)
    for other in (copy.deepcopy(unit), torch.load(file, weights_only=False)):
        assert other.fold is True
        assert torch.equal(other.eval()(x), unit.eval()(x))


def add_hook(unit):
    unit.conv1.register_forward_hook(lambda *_: None)


def add_hook_of_attention(unit):
    unit.attention.register_forward_pre_hook(lambda *_: None)


def add_parametrization(unit):
    parametrizations.weight_norm(unit.conv1)


def add_pruning(unit):
    prune.random_unstructured(unit.conv1, "weight", 0.5)


def replace_convolution(unit):
    unit.conv1 = nn.Sequential(unit.conv1)


def replace_kernel(unit):
    unit.conv1 = nn.Conv2d(16, 16, 3, padding=1).double()


def replace_forward(unit):
    unit.conv1.forward = lambda x: 2 * x


CHANGES = {
    add_hook: "conv1 has hooks",
    add_hook_of_attention: "attention has hooks",
    add_parametrization: "conv1 is ParametrizedConv2d: expected Conv2d itself",
    add_pruning: "conv1 has hooks",
    replace_convolution: "conv1 is Sequential: expected Conv2d itself",
    replace_kernel: "conv1 is no 1x1 convolution",
    replace_forward: "conv1 has another forward",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules_are_not_replaced(change, monkeypatch, ways):
    monkeypatch.setattr(unit_ways, "folding_is_faster", lambda *_: True)
    unit, x = make_unit().eval(), image(2, 16, 4, 4)
    with torch.no_grad():
        unit(x)
        change(unit)
        unit(x)
        assert ways == ["one", "plain"]
        unit.fold = True
        with pytest.raises(ValueError, match=f"fold is True: {CHANGES[change]}"):
            unit(x)


@pytest.mark.parametrize(
    ("part", "change"),
    [("norm", lambda unit: unit.norm.train()), ("norm", lambda unit: unit.norm.register_forward_hook(lambda *_: None)),
     ("conv2", lambda unit: unit.conv2.register_forward_hook(lambda *_: None))],
)  # fmt: skip
def test_the_second_half_may_change_too(part, change, ways):
    plain, folded = twins(make_unit().eval())
    change(plain)
    change(folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(image(2, 16, 4, 4)), plain(image(2, 16, 4, 4)), **CLOSE)
    assert ways == ["folded"], part


def test_biases_may_be_others():
    unit = make_unit().eval()
    unit.conv1 = nn.Conv2d(16, 16, 1, bias=False).double()
    unit.conv2 = nn.Conv2d(16, 16, 1).double()
    plain, folded = twins(unit)
    x = image(2, 16, 4, 4)
    torch.testing.assert_close(folded(x), plain(x), **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), plain(x), **CLOSE)


@pytest.mark.parametrize("gradient", ["of x", "of a parameter", "of the bases", "none"])
def test_the_operator_is_for_no_gradient(gradient, ways):
    unit = make_unit(fold=True, learnable_bases=gradient == "of the bases").eval().requires_grad_(False)
    unit.conv2.requires_grad_(gradient == "of a parameter")
    unit.attention.requires_grad_(gradient == "of the bases")
    y = unit(image(2, 16, 4, 4).requires_grad_(gradient == "of x"))
    assert y.requires_grad == (gradient != "none")
    assert ways == ["one" if gradient == "none" else "folded"]


def test_a_backend_without_the_operator_gets_the_parts(ways, monkeypatch):
    monkeypatch.setattr(backends, "WITH_UNIT", ())
    monkeypatch.setattr(EagerBackend, "em_unit", backends.Backend.em_unit)
    x = image(2, 16, 4, 4)
    for named, default in (("torch", ""), (None, "torch")):
        monkeypatch.setenv("EMA_OPS_BACKEND", default)
        plain, folded = twins(make_unit(backend=named).eval())
        with torch.no_grad():
            torch.testing.assert_close(folded(x), plain(x), **CLOSE)
    assert ways == ["folded", "folded"]


@pytest.mark.parametrize("has_core", [False, True])
def test_a_gpu_without_the_core_keeps_the_kernels_of_the_parts(has_core, monkeypatch):
    monkeypatch.setattr(backends, "HAS_CORE", has_core)
    assert backends.may_offer_unit(None, "cuda") == has_core
    assert backends.may_offer_unit(None, "cpu")
    assert backends.may_offer_unit("torch", "cuda")
    assert not backends.may_offer_unit("triton", "cuda")


def test_the_backends_that_are_asked_have_the_operator():
    for name in backends.WITH_UNIT:
        assert type(backends.load(name)).em_unit is not backends.Backend.em_unit, name


def test_errors():
    with pytest.raises(TypeError, match="fold is 1"):
        EMAUnit(8, fold=1)
    with pytest.raises(ValueError, match="fold is True: num_heads is 2: expected 1"):
        EMAUnit(8, 5, num_heads=2, fold=True)
    unit = EMAUnit(8, 5, fold=True)
    with pytest.raises(ValueError, match=r"x has shape \[2, 7, 3, 3\]: expected \[B, 8, H, W\]"):
        unit(torch.randn(2, 7, 3, 3))
    with pytest.raises(RuntimeError):
        unit(torch.randn(2, 8, 3, 3).bfloat16())
    with pytest.raises(ValueError, match=r"weight has shape \[2, 4\]"):
        unit(torch.randn(2, 8, 3, 3), torch.ones(2, 4))


def test_folding_is_chosen_where_nobody_asked(ways):
    x = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        EMAUnit(16, 64).eval()(x)
        EMAUnit(16, 64, num_heads=2).eval()(x)
        EMAUnit(16, 64).eval().to("meta")(x.to("meta"))
        EMAUnit(256, 64).train()(torch.randn(1, 256, 2, 2))
        EMAUnit(256, 64).eval()(torch.randn(1, 256, 2, 2))
    EMAUnit(256, 64).eval()(torch.randn(1, 256, 2, 2))
    assert ways == ["plain", "plain", "plain", "folded", "one", "folded"]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_compiles_without_a_break(mode):
    torch._dynamo.reset()
    plain, inner = twins(make_unit(8, 4).train(mode == "train"))
    compiled = torch.compile(inner, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 8, 6, 5), (3, 8, 7, 4)):
            results = []
            for unit in (plain, compiled):
                x = image(*shape).requires_grad_(mode == "train")
                with torch.set_grad_enabled(mode == "train"):
                    y = unit(x)
                if mode == "train":
                    y.sin().sum().backward()
                results.append((y, x.grad))
            torch.testing.assert_close(results[1], results[0], **CLOSE)
            torch.testing.assert_close(inner.attention.bases, plain.attention.bases, **CLOSE)


def test_compiled_training_for_several_steps():
    torch._dynamo.reset()
    plain, inner = twins(make_unit(8, 4, num_iters=2, norm_layer=nn.Identity, momentum=0.5))
    compiled = torch.compile(inner, fullgraph=True)
    optimizers = [torch.optim.SGD(unit.parameters(), 0.1) for unit in (plain, inner)]
    for _ in range(2):
        for unit, optimizer in zip((plain, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            unit(image(2, 8, 6, 5)).square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(inner.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant):
    plain, folded = twins(make_unit().eval())
    x = image(2, 16, 4, 4).requires_grad_()
    (expected,) = torch.autograd.grad(plain(x).sin().sum(), x)
    checkpoint(folded, x, use_reentrant=use_reentrant).sin().sum().backward()
    torch.testing.assert_close(x.grad, expected, **CLOSE)
    y = checkpoint(folded.train(), x, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match="update_bases=False"):
        y.sum().backward()


def test_vmap_over_units_and_gradient_by_func(ways):
    unit, x = make_unit(8, 4, fold=True).eval(), image(2, 8, 4, 4)
    parameters = {name: p.detach() for name, p in unit.named_parameters()}

    def call(parameters, x):
        return torch.func.functional_call(unit, parameters, (x,))

    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    got = torch.vmap(call, (0, None))(stacked, x)
    torch.testing.assert_close(got[1], call({name: p[1] for name, p in stacked.items()}, x), **CLOSE)
    grads = torch.func.grad(lambda p: call(p, x).sin().sum())(parameters)
    unit(x).sin().sum().backward()
    for name, parameter in unit.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, **CLOSE)
    assert ways[-1] == "folded"
