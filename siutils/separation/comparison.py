"""Do two representations of the same samples differ, or is it chance?

The per-sample values are paired: only *discordant* samples, which one representation separates and
the other does not, speak. The exact McNemar test is a sign test on them, but takes samples to be
independent; here the discordance of one sample goes with that of its neighbors. So both counts are
divided by the design effect of the differences (see `uncertainty`), and the binomial tail
is continued between integers by the incomplete beta function. With the design effect measured, the
test cannot be exact, so the outcome itself counts by half (mid-p): closest to the nominal level.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from siutils.core import Labels
from siutils.separation import indices
from siutils.separation.record import Record, design_effect_of
from siutils.separation.uncertainty import quantile


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


def compare(
    first: Record,
    second: Record,
    index: str = "si",
    order: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare one index of two records of the same samples, sample by sample.

    Args:
        first, second: of the same samples in the same order, both scored within one set or both
            across two.
        index: a name of `indices.INDICES`.
        order: the order of high-order, soft-order and anti SI.
        level: coverage of the interval, in (0, 1).
        seed: of the random partitions.

    Raises:
        ValueError: different samples, an unknown index, a wrong order or level.

    >>> from siutils import SeparationIndex
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> line, wrapped = (SeparationIndex(f, y).record(lists=True) for f in (x, x % 3))
    >>> difference = compare(line, wrapped)
    >>> round(difference.effect, 3), difference.wins, difference.losses
    (0.833, 5, 0)
    """
    check_same_samples(first, second)
    a, b = first.values(index, order), second.values(index, order)
    difference, terms = a - b, [(1, first), (-1, second)]
    effect = design_effect_of(difference, terms, index, order, seed)
    mean, low, high = mean_difference(difference, effect, level)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(
        effect=mean,
        low=max(-1.0, low),
        high=min(1.0, high),
        p_value=sign_test(wins / effect, losses / effect, mid=True),
        value=float(a.mean()),
        other=float(b.mean()),
        wins=wins,
        losses=losses,
        n=len(difference),
        design_effect=effect,
        p_independent=sign_test(wins, losses),
        level=level,
        classes=_by_class(a, b, first, effect),
    )


def check_same_samples(*records: Record) -> None:
    """Raises a ValueError unless all records have the same labels in the same order.

    >>> check_same_samples()
    """
    for other in records[1:]:
        a, b = (Labels(r.labels, r.names).values(r.labels) for r in (records[0], other))
        if len(a) != len(b):
            raise ValueError(f"the records must hold the same samples; got {len(a)} and {len(b)}")
        if not np.array_equal(a, b):
            where = int((a != b).argmax())
            raise ValueError(
                f"the records must hold the same samples; their labels differ at sample {where}"
            )


def mean_difference(
    difference: Tensor, effect: float, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of paired differences and its interval at a design effect.

    >>> mean, low, high = mean_difference(torch.tensor([1.0, 1.0, 1.0, 0.0]), 1.0)
    >>> mean, round(high - mean, 2)
    (0.75, 0.32)
    """
    n, mean = len(difference), float(difference.mean())
    # half a win and half a loss more: with no discordant sample the interval is not a point
    spread = (float(difference.square().sum()) + effect) / (n + 2 * effect) - mean**2
    half = quantile(level) * math.sqrt(max(spread, 0.0) * effect / n)
    return mean, mean - half, mean + half


def _by_class(first: Tensor, second: Tensor, record: Record, effect: float) -> pd.DataFrame:
    classes, codes = record.classes_and_codes
    table = pd.DataFrame({"label": classes, "n": record.class_counts})
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
        representations: name → `siutils.SeparationIndex`, at least two.
        index, order, level, seed: as in `siutils.SeparationIndex.compare`.

    Returns:
        DataFrame, a row per pair: ``first, second, index, order, value, other, effect, low, high,
        p_value, p_holm, wins, losses, design_effect, n, level``; ``p_holm`` is corrected for the
        number of pairs, ``low`` and ``high`` are not.

    Raises:
        ValueError: fewer than two, or as `siutils.SeparationIndex.compare`.

    >>> from siutils import SeparationIndex
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> parts = {"line": SeparationIndex(x, y), "wrapped": SeparationIndex(x % 3, y)}
    >>> compare_all(parts)[["first", "second", "wins", "losses"]].values.tolist()
    [['line', 'wrapped', 5, 0]]
    """
    if len(representations) < 2:
        raise ValueError(f"representations must be two or more; got {list(representations)}")
    return compare_groups({"": representations}, index, order, level, seed)[_COLUMNS]


def compare_groups(
    groups: Mapping[str, Mapping[str, Any]],
    index: str = "si",
    order: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare each pair within each group, and correct for the number of pairs in all of them.

    Args:
        groups: name of the group → representations of the same samples, as in `compare_all`;
            a group of one gives no row.
        index, order, level, seed: as in `siutils.SeparationIndex.compare`.

    Returns:
        DataFrame as of `compare_all` with the name of the group before it, ``within``.

    Raises:
        ValueError: no group holds two, or as `siutils.SeparationIndex.compare`.

    >>> from siutils import SeparationIndex
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> line, wrapped = SeparationIndex(x, y), SeparationIndex(x % 3, y)
    >>> groups = {"all": {"line": line, "wrapped": wrapped}, "alone": {"line": line}}
    >>> compare_groups(groups)[["within", "first", "second", "effect"]].round(2).values.tolist()
    [['all', 'line', 'wrapped', 0.83]]
    """
    rows = []
    for name, members in groups.items():
        for (a, first), (b, second) in combinations(members.items(), 2):
            row = {"within": name, "first": a, "second": b, "index": index, "order": order}
            rows.append(row | first.compare(second, index, order, level, seed)._asdict())
    if not rows:
        sizes = {name: len(members) for name, members in groups.items()}
        raise ValueError(f"groups must hold two representations in one of them; got {sizes}")
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p_value"].tolist())
    return table[["within", *_COLUMNS]]


def significant_groups(
    scores: Mapping[str, float],
    pairs: pd.DataFrame,
    alpha: float = 0.05,
    lowest_first: bool = False,
) -> dict[str, str]:
    """Letters that say which of M items differ: two share one exactly if they do not.

    "Not different" does not carry over from pair to pair: a may not differ from b, nor b from c,
    and yet a from c. So an item can stand in several groups, and has a letter for each.

    Args:
        scores: name → value; the best item is in group ``a``.
        pairs: a row per pair with the columns ``first``, ``second`` and ``p_holm``, as of
            `compare_all`; rows of other names are left aside.
        alpha: pairs whose ``p_holm`` is below it differ.
        lowest_first: the lowest value is the best, as of anti SI.

    Returns:
        name → letters, best item first.

    Raises:
        ValueError: a pair is missing or twice there, or there are more than 52 groups.

    Source:
        H.-P. Piepho, "An algorithm for a letter-based representation of all-pairwise comparisons"
        (2004): insert and absorb.

    >>> pairs = pd.DataFrame({"first": ["x", "x", "y"], "second": ["y", "z", "z"]})
    >>> significant_groups({"x": 0.3, "y": 0.2, "z": 0.1}, pairs.assign(p_holm=[0.2, 0.01, 0.4]))
    {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    names = sorted(scores, key=lambda name: scores[name], reverse=not lowest_first)
    p_values = _checked_pairs(names, pairs)
    groups = [frozenset(names)]
    for pair in sorted(p_values, key=lambda pair: sorted(pair)):
        if p_values[pair] < alpha:
            cut = [g - {name} if pair <= g else g for g in groups for name in pair]
            groups = [g for g in dict.fromkeys(cut) if not any(g < other for other in cut)]
    if len(groups) > len(string.ascii_letters):
        raise ValueError(f"scores: {len(names)} items make {len(groups)} groups, more than letters")
    groups.sort(key=lambda g: [place for place, name in enumerate(names) if name in g])
    lettered = list(zip(string.ascii_letters, groups, strict=False))
    return {name: "".join(letter for letter, g in lettered if name in g) for name in names}


def _checked_pairs(names: Sequence[str], pairs: pd.DataFrame) -> dict[frozenset[str], float]:
    p_values: dict[frozenset[str], float] = {}
    for first, second, p in pairs[["first", "second", "p_holm"]].itertuples(index=False):
        if {first, second} <= set(names):
            if frozenset((first, second)) in p_values:
                raise ValueError(f"pairs compares {first!r} and {second!r} more than once")
            p_values[frozenset((first, second))] = float(p)
    for first, second in combinations(names, 2):
        if frozenset((first, second)) not in p_values:
            raise ValueError(f"pairs lacks the comparison of {first!r} and {second!r}")
    return p_values


_COLUMNS = [
    *("first", "second", "index", "order", "value", "other", "effect", "low", "high"),
    *("p_value", "p_holm", "wins", "losses", "design_effect", "n", "level"),
]
