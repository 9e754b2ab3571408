"""Rank correlations against cases whose answer is known."""

import numpy as np
import pytest

from siutils.ranking import rank_correlation


def test_perfect_reversed_and_swapped_orders():
    accuracy = [10.0, 20.0, 30.0, 40.0]
    same = rank_correlation([1, 2, 3, 4], accuracy)
    assert [same[k] for k in ("weighted_kendall", "kendall", "spearman", "pearson")] == (
        pytest.approx([1.0] * 4)
    )
    reverse = rank_correlation([4, 3, 2, 1], accuracy)
    assert reverse["kendall"] == pytest.approx(-1)
    assert reverse["top1_regret"] == 30.0
    assert rank_correlation([1, 2, 4, 3], accuracy)["kendall"] == pytest.approx(4 / 6)


def test_weighted_kendall_minds_the_top_most():
    accuracy = [1.0, 2.0, 3.0, 4.0, 5.0]
    top = rank_correlation([1, 2, 3, 5, 4], accuracy)
    bottom = rank_correlation([2, 1, 3, 4, 5], accuracy)
    assert top["kendall"] == bottom["kendall"]
    assert top["weighted_kendall"] < bottom["weighted_kendall"]


@pytest.mark.parametrize(
    ("scores", "accuracies", "message"),
    [
        ([1, 2], [1, 2, 3], "one length"),
        ([1], [1], "one length"),
        ([1, np.nan], [1, 2], "scores must be finite"),
        ([1, 2], [3, 3], "accuracies are all 3"),
    ],
)
def test_wrong_input_is_one_clear_error(scores, accuracies, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(scores, accuracies)
