"""Paired comparison: exact cases, corrections, and its error rate under a real null."""

from itertools import combinations

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
    for bad in ([1.2], [float("nan")], [[0.1]]):
        with pytest.raises(ValueError, match="p_values must be numbers from 0 to 1"):
            holm(bad)


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


@pytest.mark.parametrize("index", ["si", "soft_order_si", "anti_si", "center_si"])
def test_a_representation_does_not_differ_from_itself(index):
    x, y = random_data()
    found = SeparationIndex(x, y).compare(
        SeparationIndex(x * 2, y), index, 2 if "o" in index else 1
    )
    assert (found.effect, found.wins, found.losses, found.p_value) == (0, 0, 0, 1)
    assert -0.1 < found.low < 0 < found.high < 0.1


def test_a_clear_difference_is_found_and_survives_the_correction():
    x, y = random_data(0, 400)
    rng = np.random.default_rng(0)
    parts = {"good": x * 0.1 + 3 * y[:, None], "poor": x, "none": rng.normal(size=x.shape)}
    table = compare_all({name: SeparationIndex(part, y) for name, part in parts.items()})
    assert table[["first", "second"]].values.tolist() == [
        ["good", "poor"], ["good", "none"], ["poor", "none"],
    ]  # fmt: skip
    assert (table["p_holm"] < 0.001).all()
    assert (table["p_holm"] >= table["p_value"]).all()
    assert (table["low"] > 0).all()
    assert (table["n"] == 400).all()


def test_comparisons_that_make_no_sense_are_refused():
    x, y = random_data()
    s = SeparationIndex(x, y)
    with pytest.raises(ValueError, match="must hold the same samples; got 150 and 149"):
        s.compare(SeparationIndex(x[1:], y[1:]))
    other = y.copy()
    other[7] += 1
    with pytest.raises(
        ValueError, match="must hold the same samples; their labels differ at sample 7"
    ):
        s.compare(SeparationIndex(x, other))
    with pytest.raises(ValueError, match="representations must be two or more"):
        compare_all({"one": s})
    with pytest.raises(ValueError, match="index must be one of"):
        s.compare(s, "si2")


def test_pairs_within_groups_are_corrected_together():
    x, y = random_data(0, 200)
    rng = np.random.default_rng(0)
    parts = {
        name: SeparationIndex(x + rng.normal(size=x.shape) * s, y) for name, s in NOISE.items()
    }
    groups = {"all": parts, "two": {"a": parts["a"], "c": parts["c"]}, "one": {"b": parts["b"]}}
    table = compare_groups(groups, "soft_order_si", 2)
    assert table[["within", "first", "second"]].values.tolist() == [
        ["all", "a", "b"], ["all", "a", "c"], ["all", "b", "c"], ["two", "a", "c"],
    ]  # fmt: skip
    alone = compare_all(parts, "soft_order_si", 2)
    same = table[table["within"] == "all"].drop(columns=["within", "p_holm"])
    pd.testing.assert_frame_equal(same, alone.drop(columns="p_holm"))
    np.testing.assert_array_equal(table["p_holm"], holm(table["p_value"]))
    with pytest.raises(ValueError, match=r"groups must hold two .*; got {'one': 1}"):
        compare_groups({"one": {"b": parts["b"]}})


NOISE = {"a": 0.1, "b": 1.0, "c": 3.0}


def random_pairs(rng, names, share):
    rows = [(*(p if rng.random() < 0.5 else p[::-1]), rng.random() < share)
            for p in combinations(names, 2)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["first", "second", "differ"])
    return table.assign(p_holm=np.where(table["differ"], 0.049, 0.05)).sample(
        frac=1, random_state=0
    )


def largest_cliques(names, pairs):
    """All largest sets without a differing pair, by looking at every subset."""
    rows = pairs[["first", "second", "differ"]].itertuples(index=False)
    differ = {frozenset((first, second)) for first, second, differ in rows if differ}
    fine = [set(c) for size in range(1, len(names) + 1) for c in combinations(names, size)
            if not any(frozenset(p) in differ for p in combinations(c, 2))]  # fmt: skip
    return [c for c in fine if not any(c < other for other in fine)]


@pytest.mark.parametrize("seed", range(40))
def test_items_share_a_letter_exactly_if_they_do_not_differ(seed):
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(seed % 7 + 1)]
    pairs = random_pairs(rng, names, share=rng.random())
    scores = dict(zip(names, rng.integers(0, 4, len(names)) / 4, strict=True))
    lowest_first = bool(seed % 2)
    found = significant_groups(scores, pairs, lowest_first=lowest_first)
    for first, second, differ in pairs[["first", "second", "differ"]].itertuples(index=False):
        assert bool(set(found[first]) & set(found[second])) != differ
    ordered = list(found)
    assert [scores[n] for n in ordered] == sorted(scores.values(), reverse=not lowest_first)
    assert "a" in found[ordered[0]]
    letters = sorted(set("".join(found.values())))
    groups = [{name for name in names if letter in found[name]} for letter in letters]
    expected = largest_cliques(names, pairs)
    assert sorted(map(sorted, groups)) == sorted(map(sorted, expected))
    assert letters == list("abcdefghijklmnopqrstuvwxyz"[: len(letters)])


def test_all_alike_are_one_group_and_all_different_are_many():
    names = list("wxyz")
    scores = {name: float(i) for i, name in enumerate(names)}
    table = pd.DataFrame(combinations(names, 2), columns=["first", "second"])
    assert set(significant_groups(scores, table.assign(p_holm=1.0)).values()) == {"a"}
    assert significant_groups(scores, table.assign(p_holm=0.0)) == {
        "z": "a", "y": "b", "x": "c", "w": "d",
    }  # fmt: skip
    assert significant_groups({"alone": 0.5}, table.assign(p_holm=0.0)) == {"alone": "a"}
    assert set(significant_groups(scores, table.assign(p_holm=0.04), alpha=0.01).values()) == {"a"}


def test_a_pair_that_is_missing_or_twice_there_is_refused():
    table = pd.DataFrame({"first": ["x", "x"], "second": ["y", "z"], "p_holm": [0.5, 0.5]})
    with pytest.raises(ValueError, match="pairs lacks the comparison of 'y' and 'z'"):
        significant_groups({"x": 3, "y": 2, "z": 1}, table)
    with pytest.raises(ValueError, match="pairs compares 'x' and 'y' more than once"):
        significant_groups({"x": 3, "y": 2}, pd.concat([table, table]))
