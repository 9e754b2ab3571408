"""Optimizers against their definitions, step by step; averages: `test_training`."""

import pytest
import torch
from torch import nn

from siutils.training.optimization import make_optimizer
from siutils.training.recipes import get_recipe


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_of_sgd_is_that_of_its_definition(nesterov, decay_all):
    model = network()
    recipe = get_recipe("study", nesterov=nesterov, decay_all=decay_all, weight_decay=0.3)
    weights = [p.detach().double() for p in model.parameters()]
    speeds = [torch.zeros_like(w) for w in weights]
    optimizer = make_optimizer(model, recipe)
    generator = torch.Generator().manual_seed(0)
    for lr in (0.05, 0.1, 0.02):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=generator)
            decay = 0.3 if decay_all or p.ndim > 1 else 0.0
            slope = p.grad.double() + decay * weights[i]
            speeds[i] = 0.9 * speeds[i] + slope
            weights[i] = weights[i] - lr * (slope + 0.9 * speeds[i] if nesterov else speeds[i])
        optimizer.step()
    for p, expected in zip(model.parameters(), weights, strict=True):
        assert torch.allclose(p.double(), expected, atol=1e-6)


def test_adamw_decays_only_weights_where_the_recipe_says_so():
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    recipe = get_recipe("study", optimizer="adamw", lr=0.5, weight_decay=0.1, decay_all=False)
    make_optimizer(model, recipe).step()
    for p in model.parameters():
        assert torch.allclose(p, torch.tensor(0.95 if p.ndim > 1 else 1.0))
