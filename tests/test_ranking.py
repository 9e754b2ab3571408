"""Rank correlations against cases whose answer is known."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr, weightedtau

from siutils.ranking.correlation import null_band, rank_correlation


def test_perfect_reversed_and_swapped_orders():
    accuracy = [10.0, 20.0, 30.0, 40.0]
    same = rank_correlation([1, 2, 3, 4], accuracy)
    for name in ("weighted_kendall", "kendall", "spearman", "pearson"):
        assert same[name] == pytest.approx(1)
    reverse = rank_correlation([4, 3, 2, 1], accuracy)
    assert reverse["kendall"] == pytest.approx(-1)
    assert reverse["top1_regret"] == 30.0
    assert rank_correlation([1, 2, 4, 3], accuracy)["kendall"] == pytest.approx(4 / 6)


def test_regret_is_that_of_a_random_one_of_the_best_scored():
    accuracy = [40.0, 30.0, 20.0, 10.0]  # the best stands first, where argmax would find it
    assert rank_correlation([2, 2, 1, 0], accuracy)["top1_regret"] == 5.0
    assert rank_correlation([1, 2, 1, 2], accuracy)["top1_regret"] == 20.0


def test_weighted_kendall_minds_the_top_most():
    accuracy = [1.0, 2.0, 3.0, 4.0, 5.0]
    top = rank_correlation([1, 2, 3, 5, 4], accuracy)
    bottom = rank_correlation([2, 1, 3, 4, 5], accuracy)
    assert top["kendall"] == bottom["kendall"]
    assert top["weighted_kendall"] < bottom["weighted_kendall"]


@pytest.mark.parametrize(
    ("scores", "accuracies", "options", "message"),
    [
        ([1, 2], [1, 2, 3], {}, "one length"),
        ([1], [1], {}, "one length"),
        ([1, np.nan], [1, 2], {}, "scores must be finite"),
        ([1, 2], [3, 3], {}, "accuracies are all 3"),
        ([1, 2], [1, 2], {"interval": True}, "at least 3 models for an interval; got 2"),
        ([1, 2, 3], [1, 2, 3], {"interval": True, "repeats": 0}, "integer ≥ 1, got 0"),
    ],
)
def test_wrong_input_is_one_clear_error(scores, accuracies, options, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(scores, accuracies, **options)


def test_interval_holds_the_middle_of_all_resamples():
    scores, accuracies = np.array([1.0, 2.0, 2.0, 4.0, 3.0]), np.array([1.0, 4.0, 2.0, 3.5, 5.0])
    picks = [list(p) for p in product(range(5), repeat=5)]  # all there are
    ranked = [p for p in picks if np.ptp(scores[p]) > 0 and np.ptp(accuracies[p]) > 0]
    assert len(ranked) < len(picks) - 5  # two models share a score: such resamples are redrawn
    found = rank_correlation(scores, accuracies, interval=True, repeats=4000)
    naive = {
        "weighted_kendall": lambda x, y: weightedtau(x, y).statistic,
        "kendall": lambda x, y: kendalltau(x, y).statistic,
        "spearman": lambda x, y: spearmanr(x, y).statistic,
        "pearson": lambda x, y: pearsonr(x, y).statistic,
        "top1_regret": lambda x, y: y.max() - y[x == x.max()].mean(),
    }
    for name, measure in naive.items():
        values = [measure(scores[p], accuracies[p]) for p in ranked]
        for end, share in (("low", 0.025), ("high", 0.975)):
            around = np.quantile(values, [max(share - 0.01, 0), min(share + 0.01, 1)])
            assert around[0] - 1e-9 <= found[f"{name}_{end}"] <= around[1] + 1e-9, name


def test_interval_adds_to_the_result_and_follows_the_seed():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=9)
    accuracies = scores + rng.normal(size=9)
    plain = rank_correlation(scores, accuracies)
    runs = [rank_correlation(scores, accuracies, True, repeats=50, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    added = {f"{name}_{end}" for name in plain.keys() - {"n"} for end in ("low", "high")}
    assert runs[0].keys() - plain.keys() == added
    assert {k: v for k, v in runs[0].items() if k not in added} == plain
    low, high = runs[0]["weighted_kendall_low"], runs[0]["weighted_kendall_high"]
    assert -1 <= low < plain["weighted_kendall"] < high <= 1
    perfect = rank_correlation([1, 2, 3], [4, 5, 6], interval=True, repeats=50)
    assert perfect["weighted_kendall_low"] == pytest.approx(1)


def test_the_null_band_holds_random_rankings_whatever_their_ties():
    accuracies = [0.1, 0.4, 0.2, 0.3, 0.5]
    for scores in ([1, 2, 3, 4, 5], [1, 1, 2, 2, 2]):
        taus = [weightedtau(p, accuracies).statistic for p in permutations(scores)]
        low, high = null_band(scores, accuracies)
        for beyond, end in ((np.array(taus) > high, high), (np.array(taus) < low, low)):
            assert beyond.mean() <= 0.025
            assert end in taus
        assert np.mean(np.array(taus) >= high) >= 0.025  # no wider than it must be
    few, many = (null_band(range(n), range(n))[1] for n in (3, 40))
    assert few == pytest.approx(1)
    assert 0.2 < many < 0.5
    assert null_band(range(9), range(9), seed=1) == null_band(range(9), range(9), seed=1)
    assert null_band(range(9), range(9), seed=1) != null_band(range(9), range(9), seed=2)
