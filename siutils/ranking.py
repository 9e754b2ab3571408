"""Scores that rank models, and whether they rank them as their accuracy does.

The scores are those of :mod:`siutils.transferability`, beside the Separation Index family.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from siutils.sampling import check_positive
from siutils.transferability import (
    h_score,
    leep,
    linear_probe,
    logme,
    nce,
    nearest_center,
    regularized_h_score,
    score_table,
    silhouette,
    transrate,
)

__all__ = [
    "h_score",
    "leep",
    "linear_probe",
    "logme",
    "nce",
    "nearest_center",
    "rank_correlation",
    "regularized_h_score",
    "require_equal_n",
    "rounded",
    "score_table",
    "silhouette",
    "transrate",
]


def require_equal_n(table: pd.DataFrame, column: str = "n") -> pd.DataFrame:
    """Refuse to rank rows of different N: the Separation Index grows with N.

    Args:
        table: rows to be ranked or compared.
        column: where N stands.

    Returns:
        The table itself.

    Raises:
        ValueError: if N differs, naming the values.

    >>> len(require_equal_n(pd.DataFrame({"si": [0.2, 0.3], "n": [100, 100]})))
    2
    """
    if table[column].nunique() > 1:
        raise ValueError(
            f"rows differ in N and cannot be compared: column {column!r} holds "
            f"{sorted(table[column].unique().tolist())}; score equal subsets"
        )
    return table


def rounded(values: ArrayLike) -> np.ndarray:
    """Scores of networks as multiples of the largest, to nine digits: rounding is no order.

    With D ≥ N, for example, all networks have the H-score C − 1, but for its last bits.

    Args:
        values: ``(M,)``; NaN, where a network has no such score, stays.

    >>> rounded([4.0, 4.0 - 1e-14, 2.0, np.nan]).tolist()
    [1.0, 1.0, 0.5, nan]
    """
    x = np.asarray(values, dtype=float)
    return np.round(x / np.nanmax(np.abs(x), initial=1e-300), 9)


def rank_correlation(
    scores: Sequence[float],
    accuracies: Sequence[float],
    interval: bool = False,
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Agreement of a score with the accuracy that it should predict, over M models.

    The interval holds the middle 95 % of weighted Kendall over ``repeats`` resamples of M models,
    drawn with replacement. Copies of a model are tied in both rankings and so do not count as
    agreement; a resample whose scores or accuracies are all equal ranks nothing and is redrawn.
    Of 200 simulated studies each (bivariate normal, correlation 0.7) it covered 95 % with 6 and
    with 12 models, being 1.4 and 0.8 wide on average: few models say little.

    Args:
        scores: ``(M,)``, higher is better, M ≥ 2, finite, not all equal.
        accuracies: ``(M,)``, likewise.
        interval: add ``weighted_kendall_low`` and ``weighted_kendall_high``; M ≥ 3.
        repeats: number of resamples.
        seed: of the resamples.

    Returns:
        ``weighted_kendall`` (SciPy's ``weightedtau``, top ranks weigh most, as in the literature on
        transferability), ``kendall`` (tau-b), ``spearman`` and ``pearson``, each in −1 … 1;
        ``top1_regret``, the accuracy lost by taking the model with the highest score, of several
        with that score the mean; ``n``, M.

    Raises:
        ValueError: if lengths differ, M is too small, a value is not finite, all values are equal,
            or ``repeats`` is not positive.

    >>> result = rank_correlation([0.1, 0.2, 0.3], [50.0, 70.0, 90.0])
    >>> result["kendall"], result["top1_regret"], result["n"]
    (1.0, 0.0, 3)
    """
    x, y = np.asarray(scores, dtype=float), np.asarray(accuracies, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            "scores and accuracies must be 1-D, of one length ≥ 2; "
            f"got shapes {x.shape} and {y.shape}"
        )
    for name, values in (("scores", x), ("accuracies", y)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite; got {values.tolist()}")
        if np.ptp(values) == 0:
            raise ValueError(f"{name} are all {values[0]}: no ranking to compare")
    result = {
        "weighted_kendall": float(stats.weightedtau(x, y).statistic),
        "kendall": float(stats.kendalltau(x, y).statistic),
        "spearman": float(stats.spearmanr(x, y).statistic),
        "pearson": float(stats.pearsonr(x, y).statistic),
        "top1_regret": _regret(x, y),
        "n": len(x),
    }
    if interval:
        low, high = _interval(x, y, repeats, seed)
        result |= {"weighted_kendall_low": low, "weighted_kendall_high": high}
    return result


def _regret(x: np.ndarray, y: np.ndarray) -> float:
    return float(y.max() - y[x == x.max()].mean())  # the first of a tie would be an arbitrary one


def _interval(x: np.ndarray, y: np.ndarray, repeats: int, seed: int) -> list[float]:
    check_positive(repeats, "repeats")
    if len(x) < 3:
        raise ValueError(f"scores must be of at least 3 models for an interval; got {len(x)}")
    rng = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < repeats:
        drawn = rng.integers(0, len(x), len(x))
        if np.ptp(x[drawn]) > 0 and np.ptp(y[drawn]) > 0:
            found.append(stats.weightedtau(x[drawn], y[drawn]).statistic)
    return np.quantile(found, [0.025, 0.975]).tolist()
