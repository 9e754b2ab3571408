"""What a step of training does besides the network: optimizer and average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from siutils.training.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Makes the recipe's optimizer; undecayed biases and BatchNorm form a group of their own.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> recipe = Recipe("plain", epochs=1, decay_all=False)
        >>> for group in make_optimizer(model, recipe).param_groups:
        ...     group["weight_decay"], [tuple(p.shape) for p in group["params"]]
        (0.0005, [(3, 2)])
        (0.0, [(3,), (3,), (3,)])
    """
    decay = recipe.weight_decay
    parameters = list(model.parameters())
    groups = [{"params": parameters, "weight_decay": decay}]
    if not recipe.decay_all:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, (recipe.momentum, 0.999), fused=True)
    momentum, nesterov = recipe.momentum, recipe.nesterov
    return torch.optim.SGD(groups, recipe.lr, momentum, nesterov=nesterov, fused=True)


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Makes an exponential moving average of weights and buffers; see `Recipe.average`.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> average = averaged_model(model, decay=0.99)
    >>> for value in (0.0, 1.0):
    ...     _ = torch.nn.init.constant_(model.weight, value)
    ...     average.update_parameters(model)
    >>> round(average.module.weight.item(), 2)  # 2 / 11 is old, 9 / 11 new
    0.82
    """

    def update(old: Any, new: Any, steps: Any) -> None:
        most = (1 + int(steps)) / (10 + int(steps))
        floats = old[0].is_floating_point()  # counts of batches are copied
        get_ema_multi_avg_fn(min(decay, most) if floats else 0.0)(old, new, steps)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
