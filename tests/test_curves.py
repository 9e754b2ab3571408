"""Curves over N: exact at every size, one spread between subsamples."""

import numpy as np
import pandas as pd
import pytest
from labeled_data import random_data
from reference import index_values

from siutils import SeparationIndex
from siutils.ranking.correlation import require_equal_n


def test_curve_ends_at_the_value_of_all_samples_without_spread():
    x, y = random_data(0, 120)
    s = SeparationIndex(x, y, normalize=True)
    table = s.curve([30, 120], repeats=5, max_order=3)
    last = table[table["n"] == 120].set_index(["index", "order"])
    report = s.report(3).set_index(["index", "order"])["value"].iloc[:-1]
    assert last["value"].to_dict() == report.to_dict()
    assert (last["std"] == 0).all()
    assert (last["repeats"] == 1).all()
    first = table[table["n"] == 30]
    assert (first["std"] > 0).all()
    assert (first["repeats"] == 5).all()
    assert (first["low"] < first["value"]).all()


def test_each_size_is_exact_and_without_copies():
    x, y = random_data(0, 60)
    table = SeparationIndex(x, y).curve([59], repeats=150, max_order=2)
    left_out = [index_values(np.delete(x, i, 0), np.delete(y, i), 2) for i in range(60)]
    for index in ("si", "high_order_si", "soft_order_si", "anti_si"):
        exact = np.mean([part[index].mean() for part in left_out])
        order = 1 if index == "si" else 2
        row = table[(table["index"] == index) & (table["order"] == order)].iloc[0]
        assert row["value"] == pytest.approx(exact, abs=4 * row["std"] / np.sqrt(150))


def test_curve_rises_with_n_and_is_reproducible():
    x, y = random_data(0, 600)
    s = SeparationIndex(x, y)
    table = s.curve([40, 600], repeats=10, seed=4)
    assert table.equals(s.curve([40, 600], repeats=10, seed=4))
    assert not table.equals(s.curve([40, 600], repeats=10, seed=5))
    by_n = table[table["index"] == "si"].set_index("n")["value"]
    assert by_n[600] > by_n[40]


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([2], {}, r"n_list must lie in 3 … 60; got 2"),
        ([61], {}, r"n_list must lie in 3 … 60; got 61"),
        ([30], {"repeats": 1}, "repeats must be 2 or more"),
        ([30], {"max_order": 0}, "max_order must be 1 or more"),
    ],
)
def test_sizes_out_of_range_are_an_error(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        SeparationIndex(*random_data(0, 60)).curve(sizes, **options)


def test_rows_of_different_n_are_not_ranked():
    table = pd.DataFrame({"si": [0.2, 0.5], "n": [100, 200]})
    with pytest.raises(ValueError, match=r"rows differ in N .* holds \[100, 200\]"):
        require_equal_n(table)
    assert require_equal_n(table[:1]) is not None
