"""torch.compile as a contract: one graph, forward and backward, and no second one when only N or B changes."""

import copy
import io

import pytest
import torch
from examples import features
from torch.utils.checkpoint import checkpoint

import ema_ops


@pytest.fixture(autouse=True)
def no_recompile():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def test_em_attention_compiles_once_for_all_sizes():
    compiled = torch.compile(
        lambda x, bases, weight: ema_ops.em_attention(x, bases, weight=weight), fullgraph=True, dynamic=True
    )
    bases = torch.randn(6, 4, requires_grad=True)
    for batch, positions in ((2, 10), (3, 17), (2, 33), (5, 7)):
        x, weight = torch.randn(batch, positions, 6, requires_grad=True), torch.rand(batch, positions)
        results = []
        for function in (compiled, lambda x, b, w: ema_ops.em_attention(x, b, weight=w)):
            y, last = function(x, bases, weight)
            results.append((y, last, *torch.autograd.grad(y.sin().sum() + last.sum(), (x, bases))))
        torch.testing.assert_close(*results)


def test_parts_compile_once_for_all_sizes():
    def parts(x, bases, bias):
        sums, mass = ema_ops.em_step(x, bases, logit_bias=bias)
        return ema_ops.em_reconstruct(x, bases, sums / mass[:, None], logit_bias=bias)

    compiled = torch.compile(parts, fullgraph=True, dynamic=True)
    for batch, positions in ((2, 10), (3, 17)):
        x, bases, bias = (torch.randn(s, requires_grad=True) for s in ((batch, positions, 6), (6, 4), (4,)))
        results = []
        for function in (compiled, parts):
            y = function(x, bases, bias)
            results.append((y, *torch.autograd.grad(y.sin().sum(), (x, bases, bias))))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_in_training_compiles_once_and_moves_its_bases_as_in_eager(memory_format, num_heads):
    eager = ema_ops.EMAttention(8, 4, num_heads=num_heads)
    inner = copy.deepcopy(eager)
    compiled = torch.compile(inner, fullgraph=True, dynamic=True)
    for shape in ((2, 8, 5, 7), (3, 8, 6, 9), (2, 8, 11, 4), (2, 8, 5, 7)):
        x = torch.randn(shape).to(memory_format=memory_format)
        grad_y, results = torch.randn(shape), []
        for layer in (eager, compiled):
            leaf = x.detach().clone().requires_grad_()
            y = layer(leaf)
            y.backward(grad_y)
            assert y.is_contiguous(memory_format=memory_format)
            results.append((y, leaf.grad))
        torch.testing.assert_close(*results)
        torch.testing.assert_close(inner.bases, eager.bases)


def test_layer_with_a_weight_compiles_once():
    layer = ema_ops.EMAttention(8, 4).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for shape in ((2, 8, 5, 7), (3, 8, 6, 9)):
        x, weight = torch.randn(shape), torch.rand(shape[0], *shape[2:])
        torch.testing.assert_close(compiled(x, weight), layer(x, weight))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_unit_in_training_for_several_steps(memory_format):
    eager = ema_ops.EMAUnit(8, 4).double().to(memory_format=memory_format)
    inner = copy.deepcopy(eager)
    compiled = torch.compile(inner, fullgraph=True)
    optimizers = [torch.optim.SGD(unit.parameters(), 0.1) for unit in (eager, inner)]
    for _ in range(3):
        x, results = features(2, 8, 6, 5).to(memory_format=memory_format), []
        for unit, optimizer in zip((eager, compiled), optimizers, strict=True):
            leaf = x.clone().requires_grad_()
            optimizer.zero_grad()
            y = unit(leaf)
            y.square().sum().backward()
            optimizer.step()
            results.append((y, leaf.grad))
        torch.testing.assert_close(*results)
        torch.testing.assert_close(inner.attention.bases, eager.attention.bases)


def test_checkpoint_refuses_to_move_the_bases_twice():
    layer, x = ema_ops.EMAttention(8, 4), torch.randn(2, 8, 5, 5, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="update_bases=False"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("compiled", ["inside", "outside"])
def test_compiled_checkpoint_refuses_to_move_the_bases_twice(backend, compiled):
    layer, x = ema_ops.EMAttention(8, 4, momentum=0.5), torch.randn(2, 8, 5, 5, requires_grad=True)
    inner = torch.compile(layer, backend=backend) if compiled == "inside" else layer

    def run(x):
        return checkpoint(inner, x, use_reentrant=False)

    run = torch.compile(run, backend=backend) if compiled == "outside" else run
    (expected,) = torch.autograd.grad(layer(x, update_bases=False).sin().sum(), x)
    grad = gradient_or_refusal(run(x).sin().sum(), x)
    if compiled == "inside":
        assert grad is None
    elif grad is not None:
        # some versions of PyTorch keep the results of the operator instead of making them again
        torch.testing.assert_close(grad, expected)


def gradient_or_refusal(loss, x):
    """The gradient of `loss`, or None if it was refused with the advice to pass update_bases=False."""
    try:
        return torch.autograd.grad(loss, x)[0]
    except RuntimeError as error:
        if "update_bases=False" not in str(error):
            raise
        return None


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_without_moving_is_exact(use_reentrant):
    layer, x = ema_ops.EMAttention(8, 4), torch.randn(2, 8, 5, 5, requires_grad=True)
    before = layer.bases.clone()
    (expected,) = torch.autograd.grad(layer(x, update_bases=False).sin().sum(), x)
    checkpoint(lambda x: layer(x, update_bases=False), x, use_reentrant=use_reentrant).sin().sum().backward()
    assert torch.equal(x.grad, expected)
    assert torch.equal(layer.bases, before)


def test_export_with_dynamic_shapes():
    layer = ema_ops.EMAttention(8, 4).eval()
    sizes = {0: torch.export.Dim("batch", min=2), 2: torch.export.Dim("height", min=2)}
    program = torch.export.export(layer, (torch.randn(2, 8, 6, 7),), dynamic_shapes={"x": sizes})
    x = torch.randn(3, 8, 9, 7)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_a_layer_exported_in_training_can_be_saved():
    layer, file = ema_ops.EMAttention(8, 4), io.BytesIO()
    torch.export.save(torch.export.export(layer, (torch.randn(2, 8, 6, 7),)), file)
    file.seek(0)
    loaded, x = torch.export.load(file).module(), torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(loaded(x), layer(x))
