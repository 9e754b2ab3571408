"""Paired comparison: exact cases, corrections, and its error rate under a real null."""

from itertools import combinations
from string import ascii_lowercase

import numpy as np
import pandas as pd
import pytest
import torch
from labeled_data import random_data
from scipy import stats

from siutils import SeparationIndex
from siutils.neighbors import Neighbors
from siutils.separation.comparison import (
    compare,
    compare_all,
    compare_groups,
    holm,
    sign_test,
    significant_groups,
)
from siutils.separation.record import Record


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (3, 9), (40, 20), (7, 7), (1, 2)])
def test_sign_test_is_the_binomial_test(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == sign_test(losses, wins) == pytest.approx(expected)
    here = 2 * stats.binom.pmf(wins, wins + losses, 0.5) if wins != losses else 0
    assert sign_test(wins, losses, mid=True) == pytest.approx(min(1, expected - here / 2))


def test_sign_test_of_fractions_lies_between_its_neighbors():
    assert sign_test(12, 4) < sign_test(11.5, 4.2) < sign_test(11, 5)


def test_holm_on_a_case_done_by_hand_and_in_any_order():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(p[::-1]).tolist() == pytest.approx(holm(p)[::-1].tolist())
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def copies(generator, n=200, noise=0.7):
    """Records of two equally noisy copies of the same samples."""
    labels = torch.randint(0, 3, (n,), generator=generator)
    x = torch.randn(n, 3, generator=generator) + 1.5 * torch.eye(3)[labels]
    for _ in range(2):
        noisy = x + noise * torch.randn(n, 3, generator=generator)
        distances = torch.cdist(noisy, noisy, compute_mode="donot_use_mm_for_euclid_dist")
        near = Neighbors(*distances.fill_diagonal_(torch.inf).topk(8, largest=False))
        yield Record(labels, near, labels[near.indices] == labels[:, None])


def test_type_one_error_is_near_5_percent_where_mcnemar_is_far_above(one_thread):
    generator = torch.Generator().manual_seed(0)
    rejected, uncorrected, excluded, repetitions = 0, 0, 0, 600
    for _ in range(repetitions):
        found = compare(*copies(generator))
        rejected += found.p_value < 0.05
        uncorrected += found.p_independent < 0.05
        excluded += not found.low <= 0 <= found.high
    assert 0.03 <= rejected / repetitions <= 0.07
    assert 0.03 <= excluded / repetitions <= 0.07
    assert uncorrected / repetitions > 0.08


def test_comparison_says_which_samples_and_classes_speak():
    x, y = random_data(0, 300)
    noisy = x + np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * 3
    a, b = SeparationIndex(x, y * 5), SeparationIndex(noisy, y * 5)
    found, mirrored = a.compare(b, "high_order_si", 2), b.compare(a, "high_order_si", 2)
    first = a.high_order_si(2, per="sample").numpy()
    second = b.high_order_si(2, per="sample").numpy()
    assert found.effect == pytest.approx(a.high_order_si(2) - b.high_order_si(2))
    assert (found.wins, found.losses) == ((first > second).sum(), (first < second).sum())
    independent = stats.binomtest(found.wins, found.wins + found.losses).pvalue
    assert found.p_independent == pytest.approx(independent)
    assert found.p_value > found.p_independent
    assert found.low < found.effect < found.high
    assert mirrored.p_value == found.p_value
    assert (mirrored.effect, mirrored.low) == pytest.approx((-found.effect, -found.high))
    assert found.classes["label"].tolist() == [0, 5, 10, 15]
    assert found.classes[["n", "wins", "losses"]].sum().tolist() == [300, found.wins, found.losses]
    np.testing.assert_allclose(found.classes["value"], a.high_order_si(2, per="class"))
    np.testing.assert_allclose(found.classes["p_holm"], holm(found.classes["p_value"]))


@pytest.mark.parametrize(
    ("index", "order"), [("si", 1), ("soft_order_si", 2), ("anti_si", 1), ("center_si", 1)]
)
def test_a_representation_does_not_differ_from_itself(index, order):
    found = S.compare(SeparationIndex(X * 2, Y), index, order)
    assert (found.effect, found.wins, found.losses, found.p_value) == (0, 0, 0, 1)
    assert -0.1 < found.low < 0 < found.high < 0.1


def test_clear_differences_are_found_and_all_groups_are_corrected_together():
    x, y = random_data(0, 400)
    none = np.random.default_rng(0).normal(size=x.shape)
    features = {"good": x * 0.1 + 3 * y[:, None], "poor": x, "none": none}
    parts = {name: SeparationIndex(part, y) for name, part in features.items()}
    few = {name: parts[name] for name in ("good", "none")}
    groups = {"all": parts, "two": few, "one": {"poor": parts["poor"]}}
    table = compare_groups(groups, "soft_order_si", 2)
    assert table[["within", "first", "second"]].values.tolist() == [
        ["all", "good", "poor"], ["all", "good", "none"], ["all", "poor", "none"],
        ["two", "good", "none"],
    ]  # fmt: skip
    assert (table["p_holm"] < 0.001).all()
    assert (table["low"] > 0).all()
    assert (table["n"] == 400).all()
    np.testing.assert_array_equal(table["p_holm"], holm(table["p_value"]))
    alone = compare_all(parts, "soft_order_si", 2)
    np.testing.assert_array_equal(alone["p_holm"], holm(alone["p_value"]))
    same = table[table["within"] == "all"].drop(columns=["within", "p_holm"])
    pd.testing.assert_frame_equal(same, alone.drop(columns="p_holm"))


def random_pairs(rng, names, p_values):
    pairs = pd.DataFrame(map(rng.permutation, combinations(names, 2)), columns=["first", "second"])
    pairs["p_holm"] = rng.choice(p_values, len(pairs), p=rng.dirichlet([1, 1]))
    return pairs.sample(frac=1, random_state=0)


def largest_cliques(names, differ):
    """All largest sets without a differing pair, by looking at every subset."""
    subsets = [set(c) for size in range(1, len(names) + 1) for c in combinations(names, size)]
    fine = [s for s in subsets if not any(set(pair) <= s for pair in differ)]
    return [s for s in fine if not any(s < other for other in fine)]


@pytest.mark.parametrize("seed", range(21))
@pytest.mark.parametrize("options", [{}, {"lowest_first": True}, {"alpha": 0.01}])
def test_items_share_a_letter_exactly_if_they_do_not_differ(seed, options):
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(seed % 7 + 1)]
    alpha = options.get("alpha", 0.05)
    pairs = random_pairs(rng, names, [0.98 * alpha, alpha])
    scores = dict(zip(names, rng.integers(0, 4, len(names)) / 4, strict=True))
    found = significant_groups(scores, pairs, **options)
    ordered = list(found)
    highest_first = "lowest_first" not in options
    assert [scores[n] for n in ordered] == sorted(scores.values(), reverse=highest_first)
    assert "a" in found[ordered[0]]
    letters = sorted(set("".join(found.values())))
    assert letters == list(ascii_lowercase[: len(letters)])
    groups = [[name for name in names if letter in found[name]] for letter in letters]
    differ = pairs.loc[pairs["p_holm"] < alpha, ["first", "second"]].to_numpy()
    assert sorted(groups) == sorted(map(sorted, largest_cliques(names, differ)))


X, Y = random_data()
S = SeparationIndex(X, Y)
PAIRS = pd.DataFrame({"first": ["x", "x"], "second": ["y", "z"], "p_holm": [0.5, 0.5]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: holm([1.2]), "p_values must be numbers from 0 to 1"),
        (lambda: holm([float("nan")]), "p_values must be numbers from 0 to 1"),
        (lambda: holm([[0.1]]), "p_values must be numbers from 0 to 1"),
        (lambda: S.compare(SeparationIndex(X[1:], Y[1:])), "the same samples; got 150 and 149"),
        (
            lambda: S.compare(SeparationIndex(X, Y + (np.arange(150) == 7))),
            "must hold the same samples; their labels differ at sample 7",
        ),
        (lambda: S.compare(S, "si2"), "index must be one of"),
        (lambda: compare_all({"one": S}), "representations must be two or more"),
        (lambda: compare_groups({"one": {"b": S}}), r"groups must hold two .*; got {'one': 1}"),
        (
            lambda: significant_groups({"x": 3, "y": 2, "z": 1}, PAIRS),
            "pairs lacks the comparison of 'y' and 'z'",
        ),
        (
            lambda: significant_groups({"x": 3, "y": 2}, pd.concat([PAIRS, PAIRS])),
            "pairs compares 'x' and 'y' more than once",
        ),
    ],
)
def test_wrong_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
