"""The index formulas and their chance levels against enumeration."""

import math
from itertools import permutations

import pytest
import torch
from allocations import Largest

from siutils import SeparationIndex
from siutils.separation import indices


def labels_of(counts):
    return [c for c, n in enumerate(counts) for _ in range(n)]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("counts", "reference"),
    [
        *(([2, 2], None), ([3, 2, 1], None), ([1, 1, 1, 1], None), ([5, 1], None)),
        *(([2, 1], [2, 3]), ([1, 2, 3], [2, 0, 1, 3])),  # across two sets
    ],
)
def test_chance_is_the_mean_over_all_labelings_of_the_reference(counts, reference, order):
    own, others = torch.tensor(labels_of(counts)), labels_of(reference or counts)
    # Sample i's neighbors are i+1, i+2, … (cyclic): any fixed choice of distinct others will do.
    neighbors = (torch.arange(len(own))[:, None] + torch.arange(1, order + 1)) % len(others)
    hits = torch.cat([
        indices.neighbor_hits(own if reference else labels, labels[neighbors])
        for labels in map(torch.tensor, set(permutations(others)))
    ])  # fmt: skip
    for name in ("high_order_si", "soft_order_si", "anti_si"):
        expected = float(getattr(indices, name)(hits, order).mean())
        assert indices.chance(name, counts, order, reference) == pytest.approx(expected)


@pytest.mark.parametrize("counts", [[6, 5, 3], [4, 2, 1, 1], [1, 1, 1], [3]])
@pytest.mark.parametrize("order", [1, 2])
def test_far_clusters_reach_the_attainable_value(counts, order):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.rand(len(labels), 2, generator=torch.Generator().manual_seed(0))
    x = labels[:, None] * 1e4 + noise
    table = SeparationIndex(x, labels).report(order)
    assert table["value"].tolist() == pytest.approx(table["attainable"].tolist())
    small = {r: sum(n for n in counts if n <= r) for r in (1, order)}
    found = table.set_index(["index", "order"])["undefined"]
    assert found["si", 1] == found["anti_si", order] == small[1]
    assert found["high_order_si", order] == found["soft_order_si", order] == small[order]
    assert found["center_si", 0] == 0


def test_lift_is_a_multiple_of_chance_where_there_is_one():
    x, y = torch.rand(30, 2, generator=torch.Generator().manual_seed(1)), torch.arange(30) % 3
    table = SeparationIndex(x, y).report(2).set_index("index")
    assert table.loc["si", "lift"] == table.loc["si", "value"] / (9 / 29)
    assert math.isnan(table.loc["center_si", "lift"])
    pairs = SeparationIndex(x, y // 3 * 3).report(2)
    assert not pairs["lift"].isin([math.inf]).any()


def test_column_sum_does_not_depend_on_the_columns_beside_it():
    x = torch.randn(1001, 37, generator=torch.Generator().manual_seed(1))
    assert torch.equal(indices.column_sum(x)[5:6], indices.column_sum(x[:, 5:6]))
    torch.testing.assert_close(indices.column_sum(x), x.double().sum(0))


def test_class_means_copy_no_whole_class_and_change_no_bit():
    x = torch.randn(601, 60_000, generator=torch.Generator().manual_seed(2))
    codes = torch.arange(len(x)) % 2
    with Largest() as largest:
        means = indices.class_means(x, codes, 2)
    assert largest.bytes <= 8 * 2**24 < 8 * (codes == 0).sum() * x.shape[1]
    for c, mean in enumerate(means):
        group = x[codes == c]
        assert torch.equal(mean, indices.column_sum(group) / len(group))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: indices.chance("SI", [2, 2]), "index must be one of si, high_order_si"),
        (lambda: indices.anti_si(torch.ones(4, 2) > 0, 0), "order must lie in 1 … 2"),
        (lambda: indices.anti_si(torch.ones(4, 2) > 0, 3), "order must lie in 1 … 2"),
    ],
)
def test_wrong_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_means_of_many_classes_are_those_of_each_alone():
    """To the last bit, though all classes of one size are summed at once."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 7, generator=generator)
    classes, codes = torch.randint(0, 900, (3000,), generator=generator).unique(return_inverse=True)
    means = indices.class_means(x, codes, len(classes))
    for c in range(len(classes)):
        assert torch.equal(means[c], indices.column_sum(x[codes == c]) / int((codes == c).sum()))
