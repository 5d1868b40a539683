"""One step: the loss over the whole batch, its gradient, precision, and what is not finite."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ema_ops.segmentation.config import OptimizerConfig, TrainingConfig
from ema_ops.segmentation.data import Batch
from ema_ops.segmentation.models import EMANet
from ema_ops.segmentation.training.distributed import World
from ema_ops.segmentation.training.optimizer import make_optimizer
from ema_ops.segmentation.training.step import NotFiniteError, TrainingStep, check_precision

CPU = World(0, 1, torch.device("cpu"))


def make_training(dtype=torch.float32, head="official", dropout=0.0, options=None, **settings):
    torch.manual_seed(0)
    network = EMANet(3, "small", 4, 4, 2, head, channels=8, dropout=dropout, **(options or {})).to(dtype).train()
    return TrainingStep(network, make_optimizer(network, OptimizerConfig()), CPU, TrainingConfig(**settings))


def make_batch(seed=0):
    """Four pictures, each with another share of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 3, (4, 12, 16), generator=generator)
    for number in range(4):
        masks[number, : 3 * number] = 255
    return Batch(torch.randn(4, 3, 12, 16, generator=generator), masks, list("abcd"))


def gradients(training):
    return {name: p.grad for name, p in training.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", ["official", "mmsegmentation"])
def test_loss_is_the_mean_over_labelled_pixels(head):
    training, batch = make_training(head=head, auxiliary_weight=0.4), make_batch()
    # the running bases move with every forward
    network = copy.deepcopy(training.network)
    logits, auxiliary = network(batch.images, return_auxiliary=True)
    expected = F.cross_entropy(logits, batch.masks, ignore_index=255)
    if auxiliary is not None:
        expected = expected + 0.4 * F.cross_entropy(auxiliary, batch.masks, ignore_index=255)
    wanted = torch.autograd.grad(expected, [p for p in network.parameters() if p.requires_grad])
    result = training(batch, 1)
    assert result.loss == pytest.approx(expected.item())
    assert (result.auxiliary_loss is None) == (head == "official")
    torch.testing.assert_close(list(gradients(training).values()), list(wanted))
    assert result.gradient_norm == pytest.approx(torch.cat([g.flatten() for g in wanted]).norm().item())


def test_accumulated_parts_equal_the_whole():
    # batch norm and running bases see one part after the other; these look at one picture at a time, or do not move
    options = {"norm_layer": partial(nn.GroupNorm, 2), "learnable_bases": True}
    batch = make_batch()
    results = {}
    for accumulate in (1, 2, 4):
        training = make_training(torch.float64, "mmsegmentation", options=options, accumulate=accumulate)
        results[accumulate] = (training(batch, 1), gradients(training), dict(training.network.named_parameters()))
    for accumulate in (2, 4):
        assert results[accumulate][0].loss == pytest.approx(results[1][0].loss, rel=1e-12)
        assert results[accumulate][0].auxiliary_loss == pytest.approx(results[1][0].auxiliary_loss, rel=1e-12)
        torch.testing.assert_close(results[accumulate][1:], results[1][1:], rtol=1e-9, atol=1e-12)


def test_batch_without_a_label():
    training, batch = make_training(head="mmsegmentation"), make_batch()
    result = training(batch._replace(masks=torch.full_like(batch.masks, 255)), 1)
    assert result == type(result)(0.0, 0.0, 0.0)
    assert all(value.isfinite().all() for value in training.network.state_dict().values())


def test_dropout_depends_on_seed_step_and_nothing_else():
    batch = make_batch()

    def loss(seed, step, draws=0):
        torch.rand(draws)
        return make_training(dropout=0.5, seed=seed)(batch, step).loss

    assert loss(1, 2) == loss(1, 2, draws=5)
    assert len({loss(1, 2), loss(1, 3), loss(2, 2)}) == 3


def test_bfloat16_is_near_float32():
    batch = make_batch()
    exact, rough = (make_training(precision=precision)(batch, 1) for precision in ("float32", "bfloat16"))
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert rough.loss != exact.loss


def test_channels_last_is_the_same_step():
    batch = make_batch()
    plain, last = make_training(torch.float64), make_training(torch.float64, channels_last=True)
    last.network.to(memory_format=torch.channels_last)
    images, _ = next(last.parts(batch))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert last(batch, 1).loss == pytest.approx(plain(batch, 1).loss, rel=1e-12)


def test_compiled_step_is_the_same(monkeypatch):
    batch = make_batch()
    compiled = []

    def without_a_compiler(module):
        compiled.append(module)
        return torch._dynamo.optimize("eager")(module)

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    training = make_training(compile=True)
    assert compiled == [training.network]
    assert training(batch, 1).loss == make_training()(batch, 1).loss


def test_float16_needs_cuda():
    with pytest.raises(ValueError, match=r"training\.precision is 'float16' on cpu: expected 'float32' or 'bfloat16'"):
        make_training(precision="float16")
    check_precision("float16", torch.device("cuda"))


def test_scaled_gradients_may_overflow_until_the_scale_is_one():
    training, batch = make_training(), make_batch()
    training.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    training.network.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
    assert not any(torch.tensor(training(batch, step).gradient_norm).isfinite() for step in (1, 2))
    assert training.scaler.get_scale() == 1
    with pytest.raises(NotFiniteError):
        training(batch, 3)
    torch.testing.assert_close(dict(training.network.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nothing_moves_when_something_is_not_finite(where):
    training, batch = make_training(), make_batch()
    if where == "loss":
        batch.images[2, 0, 3, 3] = torch.inf
    else:
        training.network.classifier.weight.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
    with pytest.raises(NotFiniteError) as caught:
        training(batch, 1)
    assert (where == "loss") != (caught.value.result.loss == pytest.approx(caught.value.result.loss))
    assert not torch.tensor(caught.value.result.gradient_norm).isfinite()
    torch.testing.assert_close(dict(training.network.named_parameters()), before, rtol=0, atol=0)
