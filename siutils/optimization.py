"""What a step of training does besides the network: loss, optimizer, average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from siutils.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; biases and BatchNorm are a group of their own where not decayed.

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


def mixed_loss(logits: Tensor, labels: Tensor, share: Tensor | None, smoothing: float) -> Tensor:
    """Mean cross-entropy with label smoothing, in nats, in float32.

    Args:
        logits: (N, C).
        labels: (N,).
        share: (N,) weight of a sample's own label, the rest is that of the previous sample's; None
            is 1 throughout. See `cutmix`.
        smoothing: that much of the target is spread over all classes evenly.

    Example:
        >>> logits, labels = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 1])
        >>> mixed_loss(logits, labels, None, 0.0)  # (0.018 + 4.018) / 2
        tensor(2.0181)
        >>> mixed_loss(logits, labels, torch.tensor([1.0, 0.5]), 0.0)  # (0.018 + 2.018) / 2
        tensor(1.0181)
    """
    logits = logits.float()
    if share is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    own, other = (
        F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        for target in (labels, labels.roll(1))
    )
    return (share * own + (1 - share) * other).mean()


class WeightAverage:
    """Exponential moving average of a model's weights and buffers; see `Recipe.average`.

    Attributes:
        network: a copy of the model that holds the average.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> average = WeightAverage(model, decay=0.99)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> average.update(step=0)
    >>> round(average.network.weight.item(), 2)  # 1 / 10 is old, 9 / 10 new
    0.9
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.network, self._decay = copy.deepcopy(model), decay
        old, new = self.network.state_dict().values(), model.state_dict().values()
        pairs = list(zip(old, new, strict=True))  # both are changed in place from now on
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self, step: int) -> None:
        """Move the average toward the model, after a step counted from 0 over the whole run."""
        decay = min(self._decay, (1 + step) / (10 + step))
        old, new = ([pair[side] for pair in self._floats] for side in (0, 1))
        get_ema_multi_avg_fn(decay)(old, new, None)
        for kept, current in self._counts:  # of batches that BatchNorm has seen
            kept.copy_(current)
