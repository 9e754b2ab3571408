"""Inputs on which implementations of the indices differ: duplicates, shifts, gaps, tiny classes."""

import numpy as np
import torch

from siutils.neighbors import Neighbors
from siutils.separation import Record

RNG = np.random.default_rng


def random_data(seed=0, n=150, d=5, classes=4):
    rng = RNG(seed)
    labels = rng.integers(0, classes, n)
    return (rng.normal(size=(n, d)) + labels[:, None] * 0.6).astype(np.float32), labels


def record_across(separated, labels=None):
    """A record of samples among those of a second set, of which only the hits matter."""
    y = torch.zeros(separated.shape[-1]).long() if labels is None else labels
    near = Neighbors(torch.zeros(len(y), 1), torch.zeros(len(y), 1).long())
    return Record(y, near, separated[:, None], reference_counts=[len(y)])


def duplicates():
    x, _ = random_data(1, 60)
    pick = RNG(2).integers(0, 60, 200)
    return x[pick], RNG(3).integers(0, 3, 200)


def constant_feature():
    x, y = random_data(4)
    x[:, 2] = 0.1
    return x, y


def grid():
    x = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2)
    return x, RNG(5).integers(0, 3, len(x))


DATA = {
    "random": random_data(),
    "duplicates": duplicates(),
    "shifted": (random_data()[0] + np.float32(1000), random_data()[1]),
    "constant_feature": constant_feature(),
    "label_gap": (random_data()[0], random_data()[1] * 7),
    "negative_labels": (random_data()[0], random_data()[1] - 2),
    "single_sample_class": (random_data()[0], np.r_[99, random_data()[1][1:]]),
    "one_class": (random_data()[0][:20], np.zeros(20, int)),
}
