"""Every score of one network as a table."""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd

from siutils.core import as_matrix
from siutils.ranking.transferability import (
    ArrayLike,
    h_score,
    leep,
    linear_probe,
    logme,
    nce,
    nearest_center,
    regularized_h_score,
    silhouette,
    transrate,
)

_BY_FEATURES: tuple[Callable[[ArrayLike, ArrayLike], float], ...] = (
    logme, h_score, regularized_h_score, transrate, nearest_center, linear_probe, silhouette,
)  # fmt: skip
SCORES = {score.__name__: score for score in _BY_FEATURES}


def score_table(
    features: ArrayLike, labels: ArrayLike, source_probabilities: ArrayLike | None = None
) -> pd.DataFrame:
    """Every score of one network, with default options: one row each.

    Args:
        features, labels: as in `logme`.
        source_probabilities: as in `leep`; adds LEEP, and NCE of the likeliest class.

    Returns:
        Columns ``name``, ``value``, ``seconds``.

    Raises:
        TypeError, ValueError: as the scores.

    >>> import torch
    >>> x, y = torch.arange(20.0)[:, None], torch.arange(20) // 10
    >>> score_table(x, y).query("name == 'nearest_center'")["value"].item()
    1.0
    """
    jobs = [(name, score, features) for name, score in SCORES.items()]
    if source_probabilities is not None:
        likeliest = as_matrix(source_probabilities, "source_probabilities").argmax(dim=1)
        jobs += [("leep", leep, source_probabilities), ("nce", nce, likeliest)]
    rows = []
    for name, score, source in jobs:
        start = time.perf_counter()
        value = score(source, labels)
        rows.append({"name": name, "value": value, "seconds": time.perf_counter() - start})
    return pd.DataFrame(rows)
