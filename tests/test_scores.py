"""Separation scores and the division of the data against their oracles."""

import numpy as np
import pytest
import torch
from labeled_data import DATA, RNG, grid, random_data
from reference import run_scores, zscore

from siutils import SeparationIndex


def many_copies():
    """More copies of a sample than neighbors are searched at first, most of one class."""
    x = RNG(2).normal(size=(3, 4))[RNG(3).integers(0, 3, 200)]
    return x, RNG(4).integers(0, 10, 200) // 9


CASES = {**DATA, "grid": grid(), "many_copies": many_copies()}


@pytest.mark.parametrize("name", CASES)
def test_separation_score_equals_the_sorted_oracle(name):
    x, y = CASES[name]
    for normalize, scaled in ((False, x), (True, zscore(x))):
        scores = SeparationIndex(x, y, normalize=normalize).separation_score()
        np.testing.assert_array_equal(scores, run_scores(scaled, y))


def test_runs_of_pure_clusters_end_with_the_class():
    y = RNG(0).integers(0, 2, 90)
    x = y[:, None] * 1e3 + RNG(1).normal(size=(90, 2))
    scores = SeparationIndex(x, y).separation_score()
    assert torch.equal(scores, torch.bincount(torch.from_numpy(y))[y] - 1)


def test_score_signs_divide_the_data():
    x, y = random_data(2)
    s = SeparationIndex(x, y)
    scores = s.separation_score()
    assert s.divide().easy.tolist() == (scores > 0).nonzero().flatten().tolist()
    assert s.divide().difficult.tolist() == (scores < 0).nonzero().flatten().tolist()
    assert s.divide(3).easy.tolist() == (scores >= 3).nonzero().flatten().tolist()
    assert len(s.divide(3).easy) / s.n == s.high_order_si(3)
