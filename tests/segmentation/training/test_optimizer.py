"""Parameter groups and the schedule."""

import pytest
import torch
from torch import nn

from ema_ops import PRESETS
from ema_ops.segmentation.config import OptimizerConfig
from ema_ops.segmentation.models import EMANet
from ema_ops.segmentation.training.optimizer import learning_rate, make_optimizer, parameter_groups, set_learning_rate

PAPER = OptimizerConfig()


def network(**options):
    return EMANet(3, "small", 4, 4, 2, channels=8, **options)


def named_groups(net, config=PAPER):
    """Names in each group, and its options."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    return [
        ({names[p] for p in group["params"]}, group["lr_factor"], group["weight_decay"])
        for group in parameter_groups(net, config)
    ]


def test_groups_of_the_paper():
    net = network(**PRESETS["official"])
    (weights, *of_weights), (biases, *of_biases), (norms, *of_norms) = named_groups(net)
    assert of_weights == [1.0, 1e-4]
    assert of_biases == [2.0, 0.0]
    assert of_norms == [1.0, 0.0]
    assert {"classifier.weight", "unit.conv2.weight", "reduce.conv.weight"} <= weights
    assert biases == {name for name, _ in net.named_parameters() if name.endswith("bias")} - {"unit.conv1.bias"}
    assert {"unit.norm.weight", "reduce.norm.weight"} <= norms
    # the first convolution of the unit is frozen without a gradient through the loop
    assert {name for name, _ in net.named_parameters()} - weights - biases - norms == {
        "unit.conv1.weight",
        "unit.conv1.bias",
    }


def test_learnable_bases_do_not_decay():
    groups = named_groups(network(learnable_bases=True))
    assert [decay for names, _, decay in groups if "unit.attention.bases" in names] == [0.0]
    assert [decay for names, _, decay in groups if "unit.conv1.weight" in names] == [1e-4]


def test_every_parameter_is_in_one_group_once():
    shared = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 2))
    shared[1].weight = shared[0].weight
    groups = parameter_groups(shared, PAPER)
    assert [len(group["params"]) for group in groups] == [2, 2]


def test_decay_on_all():
    config = OptimizerConfig(decay="all", weight_decay=5e-4, bias_lr_factor=1)
    assert [tuple(rest) for _, *rest in named_groups(network(), config)] == [(1.0, 5e-4)] * 3


def test_norm_momentum_is_set():
    net = network()
    make_optimizer(net, PAPER)
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {3e-4}


@pytest.mark.parametrize(("step", "last_change"), [(1, 0), (9, 0), (10, 10), (19, 10), (15000, 15000), (29999, 29990)])
def test_schedule_of_the_paper(step, last_change):
    assert learning_rate(step, 30000, PAPER) == 9e-3 * (1 - last_change / 30000) ** 0.9


def test_schedule_ends_at_the_least_rate():
    assert learning_rate(30000, 30000, PAPER) == 0
    config = OptimizerConfig(lr=0.01, min_lr=1e-4, schedule_every=1)
    assert learning_rate(100, 100, config) == 1e-4
    assert learning_rate(50, 100, config) == pytest.approx(1e-4 + 0.0099 * 0.5**0.9)


def test_biases_learn_twice_as_fast():
    net = nn.Conv2d(1, 1, 1)
    optimizer = make_optimizer(net, OptimizerConfig(momentum=0, weight_decay=0))
    set_learning_rate(optimizer, 0.5)
    weight, bias = net.weight.item(), net.bias.item()
    net.weight.grad, net.bias.grad = torch.ones_like(net.weight), torch.ones_like(net.bias)
    optimizer.step()
    assert net.weight.item() == pytest.approx(weight - 0.5)
    assert net.bias.item() == pytest.approx(bias - 1.0)


def test_warmup_grows_to_the_schedule():
    config = OptimizerConfig(lr=0.01, warmup=20, schedule_every=1)
    plain = OptimizerConfig(lr=0.01, schedule_every=1)
    assert learning_rate(5, 100, config) == pytest.approx(learning_rate(5, 100, plain) / 4)
    assert learning_rate(20, 100, config) == learning_rate(20, 100, plain)
    assert learning_rate(60, 100, config) == learning_rate(60, 100, plain)


def test_adamw_has_the_same_groups():
    optimizer = make_optimizer(network(), OptimizerConfig(name="adamw", lr=1e-3))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(group["lr_factor"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1.0, 1e-4),
        (2.0, 0.0),
        (1.0, 0.0),
    ]
