"""The index formulas and their chance levels against enumeration."""

from itertools import permutations

import pytest
import torch

from siutils import indices


def all_labelings(counts):
    return set(permutations([c for c, n in enumerate(counts) for _ in range(n)]))


@pytest.mark.parametrize("counts", [[2, 2], [3, 2, 1], [1, 1, 1, 1], [5, 1]])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_chance_is_the_mean_over_all_labelings(counts, order):
    # Sample i's neighbors are i+1, i+2, … (cyclic): any fixed choice of distinct others will do.
    n = sum(counts)
    neighbors = torch.tensor([[(i + r) % n for r in range(1, order + 1)] for i in range(n)])
    total = dict.fromkeys(("high_order_si", "soft_order_si", "anti_si"), 0.0)
    labelings = all_labelings(counts)
    for labels in map(torch.tensor, labelings):
        hits = indices.neighbor_hits(labels, labels[neighbors])
        for name in total:
            total[name] += float(getattr(indices, name)(hits, order).mean())
    for name, value in total.items():
        assert indices.chance(name, counts, order) == pytest.approx(value / len(labelings))


def test_identities_between_the_indices():
    hits = torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    for order in range(1, 7):
        high = indices.high_order_si(hits, order)
        soft = indices.soft_order_si(hits, order)
        anti = indices.anti_si(hits, order)
        assert (high <= soft).all()
        assert (soft <= 1 - anti).all()
    assert torch.equal(indices.high_order_si(hits, 1), 1 - indices.anti_si(hits, 1))
    assert torch.equal(indices.soft_order_si(hits, 1), hits[:, 0].double())


def test_column_sum_does_not_depend_on_the_columns_beside_it():
    x = torch.randn(1001, 37, generator=torch.Generator().manual_seed(1))
    assert torch.equal(indices.column_sum(x)[5:6], indices.column_sum(x[:, 5:6]))
    torch.testing.assert_close(indices.column_sum(x), x.double().sum(0))


@pytest.mark.parametrize("order", [0, 3])
def test_order_out_of_range_is_an_error(order):
    with pytest.raises(ValueError, match=r"order must lie in 1 … 2"):
        indices.anti_si(torch.ones(4, 2, dtype=torch.bool), order)
