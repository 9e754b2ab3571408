"""Does a score rank models as their accuracy does? Rank correlations between the two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


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


def rank_correlation(scores: Sequence[float], accuracies: Sequence[float]) -> dict[str, float]:
    """Agreement of a score with the accuracy that it should predict, over M models.

    Args:
        scores: ``(M,)``, higher is better, M ≥ 2, finite, not all equal.
        accuracies: ``(M,)``, likewise.

    Returns:
        ``weighted_kendall`` (SciPy's ``weightedtau``, top ranks weigh most, as in the literature on
        transferability), ``kendall`` (tau-b), ``spearman`` and ``pearson``, each in −1 … 1;
        ``top1_regret``, the accuracy lost by taking the model with the highest score; ``n``, M.

    Raises:
        ValueError: if lengths differ, M < 2, a value is not finite, or all values are equal.

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
    return {
        "weighted_kendall": float(stats.weightedtau(x, y).statistic),
        "kendall": float(stats.kendalltau(x, y).statistic),
        "spearman": float(stats.spearmanr(x, y).statistic),
        "pearson": float(stats.pearsonr(x, y).statistic),
        "top1_regret": float(y.max() - y[x.argmax()]),
        "n": len(x),
    }
