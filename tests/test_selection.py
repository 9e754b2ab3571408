"""SI of single features and forward selection against brute force over every column and subset."""

import numpy as np
import pandas as pd
import pytest
import torch
from labeled_data import DATA, RNG, grid
from reference import index_values

import siutils.separation.selection as selection
from siutils import SeparationIndex
from siutils.separation.selection import best_subset, forward_selection, single_feature_si


def awkward(n=240):
    """Columns on which sorting could go wrong: ties, copies, scales, rounding."""
    rng = RNG(1)
    columns = [
        rng.normal(size=n),
        rng.integers(0, 2, n),
        rng.integers(0, 120, n),  # equal gaps to the left and to the right
        np.full(n, 3.0),
        rng.normal(size=n) * 1e-200,  # squares underflow
        rng.normal(size=n) * 1e200,  # squares overflow
        rng.normal(size=n) + 1e16 * (rng.random(n) < 0.1),  # gaps that round to the same number
        np.r_[rng.normal(size=n - 1) * 1e-170, 1.0],  # all squares but one are zero
        np.arange(n)[::-1],
    ]
    return np.stack(columns, axis=1), rng.integers(0, 3, n)


CASES = {
    **DATA,
    "awkward": awkward(),
    "grid": grid(),
    "int64": (RNG(2).integers(-(2**10), 2**10, (80, 4)), RNG(1).integers(0, 3, 80)),
}


@pytest.mark.parametrize("name", CASES)
def test_single_feature_si_equals_the_class_on_each_column(name):
    x, y = CASES[name]
    expected = [SeparationIndex(x[:, [j]], y).si() for j in range(x.shape[1])]
    assert single_feature_si(x, y).tolist() == expected


def test_features_do_not_depend_on_the_batch_they_are_in(monkeypatch):
    x, y = RNG(3).normal(size=(60, 40)), RNG(4).integers(0, 3, 60)
    whole = single_feature_si(x, y)
    monkeypatch.setattr(selection, "_BATCH", 60 * 7)
    assert torch.equal(single_feature_si(x, y), whole)


def greedy_oracle(x, y, steps):
    """At each step the SI of every candidate subset, by brute force."""
    chosen = []
    for _ in range(steps):
        left = [j for j in range(x.shape[1]) if j not in chosen]
        values = [index_values(x[:, [*chosen, j]], y, 1)["si"].mean() for j in left]
        chosen.append(left[int(np.argmax(values))])
    return chosen


def informative(n=130, d=6):
    y = RNG(5).integers(0, 3, n)
    return RNG(6).normal(size=(n, d)) + y[:, None] * np.array([0.4, 0, 1, 0.7, 0.1, 0.2])[:d], y


@pytest.mark.parametrize("length", [1, 8, 128])
@pytest.mark.parametrize("kind", ["real", "float32", "integers", "copies"])
def test_forward_selection_equals_the_greedy_oracle(monkeypatch, kind, length):
    monkeypatch.setattr(selection, "_LIST", length)  # short lists prove little, long ones all
    monkeypatch.setattr(selection, "_BLOCK", 1000)
    x, y = informative()
    x = {
        "real": x,
        "float32": (x + 1000).astype(np.float32),
        "integers": np.round(x),
        "copies": x[RNG(7).integers(0, 40, len(x))],
    }[kind]
    table = forward_selection(x, y)
    assert table["feature"].tolist() == greedy_oracle(x, y, 6)
    for step in range(1, 7):
        assert table["si"][step - 1] == SeparationIndex(x[:, table["feature"][:step]], y).si()
    assert table["step"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_forward_selection_does_not_depend_on_the_scale(scale):
    x, y = informative(80, 4)
    assert forward_selection(x * scale, y).equals(forward_selection(x, y))


def test_best_subset_is_the_shortest_prefix_with_the_highest_si():
    x, y = informative()
    table = forward_selection(x, y)
    columns = best_subset(table)
    assert SeparationIndex(x[:, columns], y).si() == table["si"].max()
    assert (table["si"][: len(columns) - 1] < table["si"].max()).all()
    assert len(forward_selection(x, y, max_features=2)) == 2


def test_inputs_are_not_modified():
    x, y = informative(50, 3)
    before = x.copy()
    single_feature_si(x, y), forward_selection(x, y)
    np.testing.assert_array_equal(x, before)
    pd.testing.assert_frame_equal(
        forward_selection(torch.from_numpy(x), y), forward_selection(x, y)
    )


X, Y = informative(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: single_feature_si(X, Y[:-1]), ValueError, "same length; got 10 and 9"),
        (lambda: single_feature_si(X[0], Y), ValueError, r"features must have shape \(N, D\)"),
        (lambda: single_feature_si(X[:1], Y[:1]), ValueError, "features has 1 sample"),
        (lambda: single_feature_si(X.astype(complex), Y), TypeError, "features must be real"),
        (lambda: single_feature_si(X / 0.0, Y), ValueError, "features must be finite"),
        (lambda: single_feature_si(X, Y + 0.5), TypeError, "labels must be integers"),
        (lambda: single_feature_si(X * 1e308, Y), ValueError, "finite"),
        (lambda: forward_selection(X, Y, 4), ValueError, r"max_features must lie in 1 … 3"),
        (lambda: forward_selection(X, Y, 0), ValueError, "max_features must be an integer"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_wrong_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
