"""SGD as in the paper's code, or AdamW: three groups of parameters and the poly schedule."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer

from ..config import OptimizerConfig


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters of `network` that learn, each in one of three groups for an optimizer.

    Weights of convolutions (and of linear layers, 1x1 convolutions by another name) decay. Biases, those of norms too,
    learn `bias_lr_factor` times as fast and do not decay. All others, weights of norms and learnable bases of EM
    attention, do not decay. With `decay="all"` everything decays. `lr_factor` of a group multiplies the scheduled rate.
    """
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if name.endswith("bias"):
                biases.append(parameter)
            else:
                (weights if isinstance(module, (_ConvNd, nn.Linear)) else others).append(parameter)
    decay = config.weight_decay
    rest = decay if config.decay == "all" else 0.0
    groups = [
        {"params": weights, "lr_factor": 1.0, "weight_decay": decay},
        {"params": biases, "lr_factor": config.bias_lr_factor, "weight_decay": rest},
        {"params": others, "lr_factor": 1.0, "weight_decay": rest},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """SGD or AdamW over `parameter_groups`; the momentum of every batch norm of `network` becomes `norm_momentum`."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = config.norm_momentum
    groups = parameter_groups(network, config)
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The poly schedule at `step`, which counts from 1 to `steps`: a new value every `schedule_every` steps.

    As in the paper's code, so the rate stays at `lr` until the first multiple of `schedule_every`, and is `min_lr` in
    the last step if `steps` is a multiple. In the first `warmup` steps a factor grows linearly to 1.
    """
    last_change = step - step % config.schedule_every
    rate = config.min_lr + (config.lr - config.min_lr) * (1 - last_change / steps) ** config.power
    return rate * min(1.0, step / config.warmup) if config.warmup else rate


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
