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


@pytest.mark.parametrize("n", [60, 300])
def test_long_runs_are_counted_as_they_are_searched(n):
    """Two samples of each class somewhere: runs of misses through half of all others."""
    x = RNG(0).integers(0, 4, (n, 3)).astype(float)  # with many equal distances
    y = np.arange(n) % (n // 2)
    for scale in (1.0, 2.0**-660, 2.0**400):
        assert (
            SeparationIndex(x * scale, y).separation_score().tolist() == run_scores(x, y).tolist()
        )


def test_known_scores_take_no_search(monkeypatch):
    monkeypatch.setattr(SeparationIndex, "_search", None)
    x = RNG(0).normal(size=(100_000, 2))
    assert SeparationIndex(x, np.arange(100_000)).separation_score().eq(-99_999).all()
    assert SeparationIndex(x, np.zeros(100_000, int)).separation_score().eq(99_999).all()


def test_score_signs_divide_the_data():
    x, y = random_data(2)
    s = SeparationIndex(x, y)
    scores = s.separation_score()
    assert s.divide().easy.tolist() == (scores > 0).nonzero().flatten().tolist()
    assert s.divide().difficult.tolist() == (scores < 0).nonzero().flatten().tolist()
    assert s.divide(3).easy.tolist() == (scores >= 3).nonzero().flatten().tolist()
    assert len(s.divide(3).easy) / s.n == s.high_order_si(3)
