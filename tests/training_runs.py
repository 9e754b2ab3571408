"""Short trainings of a small network on striped images, shared by the tests of training."""

import pandas as pd
import pytest
import torch
from torch import nn

from siutils.data.images import ImageSet, Transform
from siutils.training.loop import fit
from siutils.training.recipes import Recipe, get_recipe

CPU = torch.device("cpu")
HALF = Transform((0.5,) * 3, (0.5,) * 3)
QUICK = Recipe("quick", epochs=4, batch_size=16, lr=0.05, crop_padding=1, rotation=10, bn_images=24)
AVERAGED = get_recipe(
    "fast", epochs=4, batch_size=16, lr=0.05, crop_padding=1, weight_decay=1e-3, cutout=2,
    bn_images=0, average=0.999, validate_every=1, dtype="float32",
)  # fmt: skip


def stripes(n, classes=3, seed=0):
    """Images whose class is the row that is bright, so that a small network learns them at once."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 60, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(n), :, 2 * labels + 1] += 150
    return ImageSet("stripes", images, labels, tuple("abcdefgh"[:classes]), "")


def small_net(classes=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8 * 64, classes),
        )


def no_dropout():
    return nn.Sequential(*(m for m in small_net() if not isinstance(m, nn.Dropout)))


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same(a, b):
    """Compares two results of `fitted`, but for the seconds."""
    assert same_weights(a[0], b[0])
    pd.testing.assert_frame_equal(*(history.drop(columns="seconds") for _, history in (a, b)))


def fitted(recipe=QUICK, cache=None, model=None, train=None, val=None, **options):
    """Trains a small network; returns it and the history."""
    model, val = model or small_net(), val or stripes(30, seed=1)
    options = {"transform": HALF, "device": "cpu", "cache": cache} | options
    return model, fit(model, train or stripes(49), val, recipe, **options)


class Stop(Exception):
    pass


def stop_after(epoch, recipe=QUICK, **options):
    """Trains as `fitted` does, until the line about an epoch."""

    def progress(line):
        if line.startswith(f"epoch {epoch}/"):
            raise Stop

    with pytest.raises(Stop):
        fitted(recipe, progress=progress, **options)


def run_folder(cache):
    (folder,) = (cache / "training").iterdir()
    return folder
