"""Optimizer and average of the weights against their definitions, step by step."""

import pytest
import torch
from torch import nn

from siutils.training.optimization import averaged_model, make_optimizer
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
    recipe = get_recipe("one_cycle_adamw", lr=0.5, weight_decay=0.1, decay_all=False)
    make_optimizer(model, recipe).step()
    for p in model.parameters():
        assert torch.allclose(p, torch.tensor(0.95 if p.ndim > 1 else 1.0))


def test_the_average_forgets_exponentially_and_holds_batchnorm_too():
    model = network()
    average = averaged_model(model, decay=0.25)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(5, 3, 4, 4))  # new statistics of BatchNorm
        average.update_parameters(model)
        decay = (0.0, 2 / 11, 0.25, 0.25)[step]  # the first step is copied
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert int(average.module[1].num_batches_tracked) == 4
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
            assert not torch.equal(value, model.state_dict()[name]), name
