"""A network with what goes wrong easily in reading its layers, and images for it."""

import torch
from torch import nn

from siutils.data.images import Transform

HALF = Transform((0.5,) * 3, (0.5,) * 3)
LAYERS = [*map(str, range(8)), "3.relu", "3.conv", "3.bn", "3.side", "3.pair", ""]


class Block(nn.Module):
    """What goes wrong easily: in-place operations, a module used twice, an unused output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(2, 2)
        self.side = nn.Conv2d(4, 1, 1)
        self.pair = Pair()
        self.named = Named()
        self.total = Total()

    def forward(self, x):
        out = self.bn(self.conv(self.relu(x)))
        out += x
        out = self.relu(out)
        self.total(self.named(self.pair(self.side(out))[0])["x"])
        return out


class Pair(nn.Module):
    def forward(self, x):
        return x, {"weights": None}


class Named(nn.Module):
    def forward(self, x):
        return {"x": x}


class Total(nn.Module):
    def forward(self, x):
        return x.sum()


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            Block(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4, 3),
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    model.transform = HALF
    model.feature_layer = "4"
    return model


def pictures(n=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 6, 5), generator=generator, dtype=torch.uint8)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def by_hooks(model, inputs, layers):
    """The oracle: all images at once, a hook per layer that copies; the last use wins."""
    found = {}

    def keep(name):
        return lambda _, __, output: found.update({name: first(output).detach().clone()})

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    with torch.no_grad():
        model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    return {name: output.reshape(len(inputs), -1) for name, output in found.items()}


def close(a, b):
    return set(a) == set(b) and all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
