"""Do two representations of the same samples differ, or is it chance?

The per-sample values are paired: only *discordant* samples, which one representation separates and
the other does not, speak. The exact McNemar test is a sign test on them, but takes samples to be
independent; here the discordance of one sample goes with that of its neighbors. So both counts are
divided by the design effect of the differences (:mod:`siutils.uncertainty`), and the binomial tail
is continued between integers by the incomplete beta function. With the design effect measured, the
test cannot be exact, so the outcome itself counts by half (mid-p): closest to the nominal level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from siutils import indices
from siutils.uncertainty import quantile


class Comparison(NamedTuple):
    """``effect`` = first value − second, in ``low … high`` at confidence ``level``.

    ``wins`` and ``losses`` count the samples with a higher and a lower value in the first;
    ``p_value`` is for no difference (corrected, mid-p), ``p_independent`` the exact McNemar test
    without correction.
    ``classes`` is a DataFrame with a row per class: ``label, n, value, other, effect, wins, losses,
    p_value, p_holm``, the last corrected for the number of classes.
    """

    effect: float
    low: float
    high: float
    p_value: float
    value: float
    other: float
    wins: int
    losses: int
    n: int
    design_effect: float
    p_independent: float
    level: float
    classes: pd.DataFrame


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for their number, so that the chance of any false alarm stays in bounds.

    Args:
        p_values: ``(M,)``, each in 0 … 1.

    Returns:
        Float64 ``(M,)`` in the same order, at most 1.

    Raises:
        ValueError: if a value is not in 0 … 1 or the shape is not ``(M,)``.

    Source:
        S. Holm, "A simple sequentially rejective multiple test procedure" (1979).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must be numbers from 0 to 1 in one dimension; got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def sign_test(wins: float, losses: float, mid: bool = False) -> float:
    """Two-sided sign test; counts may be fractions.

    Args:
        wins, losses: counts, 0 or more.
        mid: count the outcome itself by half (the mid-p value), whose error rate is nearer to the
            nominal one; else the exact test, never above it.

    Source:
        M. W. Fagerland et al., "The McNemar test for binary matched-pairs data: mid-p and
        asymptotic are better than exact conditional" (2013).

    >>> sign_test(3, 0), sign_test(3, 0, mid=True), sign_test(2, 2)
    (0.25, 0.125, 1.0)
    """
    more, fewer = max(wins, losses), min(wins, losses)
    if more == fewer:
        return 1.0
    tail = float(special.betainc(more, fewer + 1, 0.5))  # P(X ≥ more) of a fair coin
    beyond = float(special.betainc(more + 1, fewer, 0.5)) if fewer else 0.0  # P(X > more)
    return min(1.0, tail + beyond if mid else 2 * tail)


def compare_values(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    effect: float,
    level: float = 0.95,
) -> Comparison:
    """Compare per-sample values of one index in two representations.

    Args:
        first, second: float ``(N,)``, of the same samples.
        labels: int64 ``(N,)``.
        effect: design effect of the differences.
        level: coverage of the interval, in (0, 1).

    >>> a, b = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 0.0])
    >>> found = compare_values(a, b, torch.tensor([0, 0, 1, 1]), 1.0)
    >>> found.effect, found.wins, found.losses, found.p_value
    (0.75, 3, 0, 0.125)
    """
    difference = first - second
    n, mean = len(difference), float(difference.mean())
    # half a win and half a loss more: with no discordant sample the interval is not a point
    spread = (float(difference.square().sum()) + effect) / (n + 2 * effect) - mean**2
    half = quantile(level) * math.sqrt(max(spread, 0.0) * effect / n)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(
        effect=mean,
        low=max(-1.0, mean - half),
        high=min(1.0, mean + half),
        p_value=sign_test(wins / effect, losses / effect, mid=True),
        value=float(first.mean()),
        other=float(second.mean()),
        wins=wins,
        losses=losses,
        n=n,
        design_effect=effect,
        p_independent=sign_test(wins, losses),
        level=level,
        classes=_by_class(first, second, labels, effect),
    )


def _by_class(first: Tensor, second: Tensor, labels: Tensor, effect: float) -> pd.DataFrame:
    classes, codes = labels.unique(return_inverse=True)
    table = pd.DataFrame({"label": classes.numpy(), "n": torch.bincount(codes).numpy()})
    for column, values in (("value", first), ("other", second), ("effect", first - second)):
        table[column] = np.asarray(indices.aggregate(values, codes, len(classes), "class"))
    for column, which in (("wins", first > second), ("losses", first < second)):
        table[column] = torch.bincount(codes[which], minlength=len(classes)).numpy()
    counts = zip(table["wins"] / effect, table["losses"] / effect, strict=True)
    table["p_value"] = [sign_test(*pair, mid=True) for pair in counts]
    return table.assign(p_holm=holm(table["p_value"].tolist()))


def compare_all(
    representations: Mapping[str, Any],
    index: str = "si",
    order: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare each pair of representations of the same samples.

    Args:
        representations: name → :class:`siutils.SeparationIndex`, at least two.
        index, order, level, seed: as in :meth:`siutils.SeparationIndex.compare`.

    Returns:
        DataFrame, a row per pair: ``first, second, index, order, value, other, effect, low, high,
        p_value, p_holm, wins, losses, design_effect, n, level``; ``p_holm`` is corrected for the
        number of pairs, ``low`` and ``high`` are not.

    Raises:
        ValueError: fewer than two, or as :meth:`siutils.SeparationIndex.compare`.

    >>> from siutils import SeparationIndex
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> parts = {"line": SeparationIndex(x, y), "wrapped": SeparationIndex(x % 3, y)}
    >>> compare_all(parts)[["first", "second", "wins", "losses"]].values.tolist()
    [['line', 'wrapped', 5, 0]]
    """
    if len(representations) < 2:
        raise ValueError(f"representations must be two or more; got {list(representations)}")
    rows = []
    for (a, first), (b, second) in combinations(representations.items(), 2):
        found = first.compare(second, index, order, level, seed)._asdict()
        rows.append({"first": a, "second": b, "index": index, "order": order, **found})
    table = pd.DataFrame(rows).drop(columns=["classes", "p_independent"])
    table["p_holm"] = holm(table["p_value"].tolist())
    columns = ["first", "second", "index", "order", "value", "other", "effect", "low", "high"]
    tail = ["p_value", "p_holm", "wins", "losses", "design_effect", "n", "level"]
    return table[columns + tail]
