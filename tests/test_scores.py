"""Separation scores and the division of the data against their oracles."""

import numpy as np
import pytest
import torch
from labeled_data import DATA, RNG, duplicates, grid, random_data
from reference import run_scores, zscore

from siutils import SeparationIndex
from siutils.separation import runs


@pytest.mark.parametrize("name", DATA)
def test_separation_score_equals_the_sorted_oracle(name):
    x, y = DATA[name]
    np.testing.assert_array_equal(SeparationIndex(x, y).separation_score(), run_scores(x, y))
    np.testing.assert_array_equal(
        SeparationIndex(x, y, normalize=True).separation_score(), run_scores(zscore(x), y)
    )


def test_separation_score_on_ties_and_pure_clusters():
    x, y = grid()
    np.testing.assert_array_equal(SeparationIndex(x, y).separation_score(), run_scores(x, y))
    y = RNG(0).integers(0, 2, 90)
    x = y[:, None] * 1e3 + RNG(1).normal(size=(90, 2))  # runs end with the class
    scores = SeparationIndex(x, y).separation_score()
    assert torch.equal(scores, torch.bincount(torch.from_numpy(y))[y] - 1)


def test_only_unfinished_runs_are_searched_deeper(monkeypatch):
    asked = []
    search = runs.nearest_others
    monkeypatch.setattr(
        "siutils.separation.runs.nearest_others",
        lambda x, rows, k, memory: asked.append((len(rows), k)) or search(x, rows, k),
    )
    x, y = random_data(3, 400)
    scores = SeparationIndex(x, y).separation_score().abs()
    assert asked[0] == (int((scores >= 4).sum()), 16)  # 4 in vain may also be the end
    assert [n for n, _ in asked] == sorted((n for n, _ in asked), reverse=True)


def test_nearest_others_removes_the_own_index_not_the_first_place():
    x, _ = duplicates()
    rows = torch.arange(0, 200, 3)
    for k in (1, 4, 199):
        oracle = SeparationIndex(x, np.zeros(200, int)).record(k).neighbors.indices[rows]
        assert torch.equal(runs.nearest_others(torch.from_numpy(x), rows, k), oracle)


def test_score_signs_divide_the_data():
    x, y = random_data(2)
    s = SeparationIndex(x, y)
    scores = s.separation_score()
    assert s.divide().easy.tolist() == (scores > 0).nonzero().flatten().tolist()
    assert s.divide().difficult.tolist() == (scores < 0).nonzero().flatten().tolist()
    assert s.divide(3).easy.tolist() == (scores >= 3).nonzero().flatten().tolist()
    assert len(s.divide(3).easy) / s.n == s.high_order_si(3)
