"""Separation across two sets: every index and order against the oracle; classes that one lacks."""

import numpy as np
import pytest
import torch
from labeled_data import DATA, random_data
from reference import center_values, class_values, index_values, run_scores

from siutils import SeparationIndex


def scaled(x, test_x, normalize):
    if not normalize:
        return x, test_x
    mean, std = x.astype(float).mean(0), x.astype(float).std(0, ddof=1) + 1e-10
    std = np.where(x.min(0) == x.max(0), 1.0, std)  # a constant feature keeps its unit
    return (x - mean) / std, (test_x - mean) / std


def moved_part(x, y):
    """A part of the data moved a little, some exact copies, and two classes the data lack."""
    rng = np.random.default_rng(8)
    pick = rng.integers(0, len(x), 60)
    moved = x[pick] + (rng.normal(size=(60, x.shape[1])) * 0.3).astype(x.dtype)
    moved[:10] = x[pick[:10]]
    labels = y[pick].copy()
    labels[-5:], labels[-6] = y.max() + 3, y.min() - 2
    return moved, labels


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_every_cross_index_equals_the_oracle(name, normalize):
    x, y = DATA[name]
    test_x, test_y = moved_part(x, y)
    a, b = scaled(x, test_x, normalize)
    s = SeparationIndex(x, y, normalize=normalize)
    cross = s.cross(test_x, test_y)
    for order in (1, 2, 5):
        oracle = index_values(a, y, order, queries=b, query_labels=test_y)
        for index in ("high_order_si", "soft_order_si", "anti_si"):
            method = getattr(cross, index)
            np.testing.assert_array_equal(method(order, per="sample"), oracle[index])
            by_class = class_values(oracle[index], test_y)
            np.testing.assert_allclose(method(order, per="class"), by_class, atol=1e-12)
            assert method(order) == pytest.approx(oracle[index].mean(), abs=1e-12)
            assert method(order, per="macro") == pytest.approx(by_class.mean(), abs=1e-12)
    oracle = center_values(a, y, b, test_y)
    np.testing.assert_array_equal(cross.center_si(per="sample"), oracle)
    assert cross.center_si() == pytest.approx(oracle.mean(), abs=1e-12)
    assert cross.si() == s.cross_si(test_x, test_y) == pytest.approx(cross.soft_order_si(1))
    np.testing.assert_array_equal(cross.separation_score(), run_scores(a, y, b, test_y))


def test_classes_missing_on_either_side_are_reported():
    x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    s = SeparationIndex(x, torch.tensor([3, 3, 4, 9]))
    cross = s.cross(torch.tensor([[0.2], [5.1], [8.0], [9.0]]), torch.tensor([3, 4, 7, 7]))
    assert cross.missing_classes.tolist() == [7]
    assert cross.unused_classes.tolist() == [9]
    assert cross.classes.tolist() == [3, 4, 7]
    table = cross.report(2).set_index(["index", "order"])
    row = table.loc[("high_order_si", 2)]
    assert row["value"] == row["attainable"] == 0.25  # class 3 alone has two samples here
    assert row["undefined"] == 3
    assert row[["n", "n_reference", "missing_classes", "unused_classes"]].tolist() == [4, 4, 1, 1]
    assert table.loc[("si", 1), ["value", "attainable", "undefined"]].tolist() == [0.5, 0.5, 2]
    assert table.loc[("anti_si", 2), ["value", "attainable"]].tolist() == [0.5, 0.5]
    assert table.loc[("si", 1), "chance"] == (2 / 4 + 1 / 4) / 4
    row = table.loc[("center_si", 0), ["value", "attainable", "undefined"]]
    assert row.tolist() == [0.5, 0.5, 2]


def test_all_of_the_reference_can_be_neighbors():
    x, y = random_data(n=6)
    assert 0 <= SeparationIndex(x, y).cross(x[:1], y[:1]).soft_order_si(6) <= 1
    with pytest.raises(ValueError, match=r"order must lie in 1 … 6"):
        SeparationIndex(x, y).cross(x, y).anti_si(7)


def test_interval_given_the_reference_is_wilson_with_independent_samples():
    x, y = random_data()
    test_x, test_y = random_data(7, 90)
    found = SeparationIndex(x, y).cross(test_x, test_y).interval("si")
    p, n, z = found.value, 90, 1.959964
    centre, half = p + z * z / 2 / n, z * np.sqrt(p * (1 - p) / n + z * z / 4 / n**2)
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-6)
    assert found.design_effect == 1


@pytest.mark.cuda
@pytest.mark.parametrize("name", DATA)
def test_cuda_equals_cpu(name):
    x, y = DATA[name]
    parts = [
        SeparationIndex(x, y, True, device=d).cross(*moved_part(x, y)) for d in ("cpu", "cuda")
    ]
    assert parts[0].report(5).equals(parts[1].report(5))
    assert torch.equal(parts[0].separation_score(), parts[1].separation_score())
