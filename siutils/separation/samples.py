"""Which samples make the value: neighbor confusion, hardest samples, suspected label errors.

All are functions of labels and nearest neighbors as `siutils.kneighbors` finds them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from siutils.core import Labels, as_integers, as_labels, check_positive
from siutils.neighbors import Neighbors

_ROWS = 2**22  # votes (rows · classes) held at once: 32 MB
_LEAST_RATIO = 0.1  # of two distances: nearer than that proves no more, duplicates least of all


def neighbor_confusion(labels: Any, neighbor_labels: Any) -> pd.DataFrame:
    """How often the neighbors of each class carry each label.

    Args:
        labels: ``(N,)`` of the samples, see `siutils.core.as_labels`.
        neighbor_labels: ``(N, k)``, labels of their k nearest neighbors; take the first column for
            the confusion that SI counts: the trace over N is SI.

    Returns:
        DataFrame of counts ``(C, C)``: row, the class of the sample (index ``label``); column, the
        class of the neighbor (``neighbor_label``); ascending labels of either. A row sums to k
        times the samples of its class.

    Raises:
        TypeError, ValueError: if these are no labels of fitting shapes.

    >>> table = neighbor_confusion([0, 0, 5], [[0], [5], [0]])
    >>> table.index.tolist(), table.to_numpy().tolist()
    ([0, 5], [[1, 1], [1, 0]])
    """
    y = as_labels(labels, "labels")
    if not isinstance(neighbor_labels, Labels):
        rows = np.asarray(neighbor_labels)
        flat = as_labels(rows.reshape(-1), "neighbor_labels")
        neighbor_labels = Labels(flat.codes.reshape(rows.shape), flat.names)
    shape = tuple(neighbor_labels.codes.shape)
    if len(shape) != 2 or shape[0] != len(y) or shape[1] < 1:
        raise ValueError(f"neighbor_labels must be (N, k) with N = {len(y)}; got {shape}")
    own = y.values(y.codes.repeat_interleave(shape[1]))
    other = neighbor_labels.values(neighbor_labels.codes.flatten())
    counts = pd.crosstab(own, other, rownames=["label"], colnames=["neighbor_label"])
    classes = counts.index.union(counts.columns)
    return counts.reindex(
        index=classes.rename("label"), columns=classes.rename("neighbor_label"), fill_value=0
    )


def hardest_samples(labels: Any, neighbors: Neighbors, n: int = 20) -> pd.DataFrame:
    """The samples with the most other-label neighbors before the first of their own label.

    Among samples with equally many, the one with the largest ratio of the distances to its nearest
    same-label and its nearest other-label neighbor comes first, then the lower index. Where the
    list has no neighbor of a kind, the distance of its last neighbor, a lower bound, stands in.

    Args:
        labels: ``(N,)``, see `siutils.core.as_labels`.
        neighbors: ``(N, k)``, nearest first, self excluded.
        n: samples wanted; all if there are fewer.

    Returns:
        Tidy DataFrame, k rows for each sample, hardest first, nearest neighbor first: ``place``
        (from 1), ``sample``, ``label``, ``run`` (other-label neighbors before the first of its own
        label; k means k or more), ``rank`` (from 1), ``neighbor``, ``neighbor_label``,
        ``distance``.

    Raises:
        TypeError, ValueError: if shapes do not fit or ``n`` is no positive integer.

    >>> near = Neighbors(torch.tensor([[1.0, 2.0], [1.0, 3.0], [2.0, 3.0]]),
    ...                  torch.tensor([[1, 2], [0, 2], [0, 1]]))
    >>> hardest_samples([4, 7, 4], near, n=1)
       place  sample  label  run  rank  neighbor  neighbor_label  distance
    0      1       1      7    2     1         0               4       1.0
    1      1       1      7    2     2         2               4       3.0
    """
    labels, y, distances, indices = _checked(labels, neighbors)
    check_positive(n, "n")
    hits = y[indices] == y[:, None]
    k = hits.shape[1]
    run = np.where(hits.any(axis=1), hits.argmax(axis=1), k)
    order = np.lexsort((-_distance_ratio(distances, hits), -run))[:n]  # stable: index comes last
    table = _strips(labels, distances, indices, order)
    table.insert(3, "run", np.repeat(run[order], k))
    return table


def neighbor_table(labels: Any, neighbors: Neighbors, chosen: Any) -> pd.DataFrame:
    """The nearest neighbors of chosen samples, in the order given.

    Args:
        labels: ``(N,)``, see `siutils.core.as_labels`.
        neighbors: ``(N, k)``, nearest first, self excluded.
        chosen: integers ``(M,)``, sample numbers.

    Returns:
        As `hardest_samples`, without ``run``.

    Raises:
        TypeError, ValueError: if shapes do not fit, or there is no such sample.

    >>> near = Neighbors(torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([[1], [0], [0]]))
    >>> neighbor_table([4, 7, 4], near, [2]).values.tolist()
    [[1.0, 2.0, 4.0, 1.0, 0.0, 4.0, 2.0]]
    """
    labels, y, distances, indices = _checked(labels, neighbors)
    rows = as_integers(chosen, "chosen").cpu().numpy()
    if rows.min() < 0 or rows.max() >= len(y):
        raise ValueError(f"chosen must be 0 … {len(y) - 1}, got {rows.min()} … {rows.max()}")
    return _strips(labels, distances, indices, rows)


def _strips(
    labels: Labels, distances: np.ndarray, indices: np.ndarray, rows: np.ndarray
) -> pd.DataFrame:
    m, k = len(rows), indices.shape[1]
    y = labels.codes.numpy()
    return pd.DataFrame(
        {
            "place": np.repeat(np.arange(1, m + 1), k),
            "sample": np.repeat(rows, k),
            "label": labels.values(np.repeat(y[rows], k)),
            "rank": np.tile(np.arange(1, k + 1), m),
            "neighbor": indices[rows].ravel(),
            "neighbor_label": labels.values(y[indices[rows]].ravel()),
            "distance": distances[rows].ravel(),
        }
    )


def score_transitions(
    before: Any, after: Any, bounds: Sequence[int] = (1, 2, 4, 10)
) -> pd.DataFrame:
    """Counts samples by their separation scores in two representations, both in bins.

    Args:
        before, after: integers ``(N,)``, `siutils.SeparationIndex.separation_score` of the
            same samples in two representations, never 0.
        bounds: where a new bin begins, from 1, ascending; the same for scores below 0.

    Returns:
        DataFrame ``before, after, samples``, a row for every two bins, lowest score first; a bin
        is called by its scores, such as ``"−1"`` or ``"4…9"``.

    Raises:
        TypeError, ValueError: scores of different length, a score of 0, or bounds that do not
            ascend from 1.

    >>> table = score_transitions([-1, -1, 3], [1, 2, 3], bounds=[1, 2])
    >>> table[table["samples"] > 0].values.tolist()
    [['−1', '1', 1], ['−1', '≥ 2', 1], ['≥ 2', '≥ 2', 1]]
    """
    scores = [as_integers(s, a).cpu() for s, a in ((before, "before"), (after, "after"))]
    lengths = " and ".join(str(len(s)) for s in scores)
    if len(scores[0]) != len(scores[1]):
        raise ValueError(f"before and after must be of the same samples; got {lengths}")
    starts = list(bounds)
    if starts[:1] != [1] or starts != sorted(set(starts)):
        raise ValueError(f"bounds must ascend from 1; got {starts}")
    if any((s == 0).any() for s in scores):
        raise ValueError("before and after must be separation scores, which are never 0")
    names = _bin_names(starts)
    # each bin ends with the score before the next bin; no score is 0
    ends = [-math.inf, *(-s for s in reversed(starts)), *(s - 1 for s in starts[1:]), math.inf]
    first, second = (pd.cut(s.numpy(), ends, labels=names) for s in scores)
    pairs = pd.DataFrame({"before": first, "after": second})
    table = pairs.groupby(["before", "after"], observed=False).size().reset_index(name="samples")
    return table.astype({"before": str, "after": str})


def separated_by_first(
    first: Any, second: Any, labels: Any, classes: Sequence[Any], n: int = 5
) -> list[int]:
    """Samples that the first of two representations separates and the second does not.

    The classes take turns, in the order of ``classes``, until there are n samples. Each turn takes
    the clearest sample that is left: that with the largest difference of its scores, and among
    equal differences that with the lowest index.

    Args:
        first, second: integers ``(N,)``, separation scores of the same samples.
        labels: ``(N,)``, see `siutils.core.as_labels`.
        classes: labels to take samples from.
        n: samples wanted.

    Returns:
        Up to n sample numbers.

    Raises:
        TypeError, ValueError: if lengths differ or ``n`` is no positive integer.

    >>> separated_by_first([3, 1, 2, 4], [-1, -1, -5, 2], [0, 0, 0, 1], classes=[1, 0], n=2)
    [2, 0]
    """
    a, b = (
        as_integers(s, name).cpu().numpy() for s, name in ((first, "first"), (second, "second"))
    )
    labels = as_labels(labels, "labels")
    y = labels.values(labels.codes)
    if not len(a) == len(b) == len(y):
        raise ValueError(
            f"first, second and labels differ in length: {len(a)}, {len(b)} and {len(y)}"
        )
    check_positive(n, "n")
    clearest_first = np.argsort(b - a, kind="stable")
    only_first = clearest_first[(a[clearest_first] > 0) & (b[clearest_first] < 0)]
    queues = [only_first[y[only_first] == label].tolist() for label in dict.fromkeys(classes)]
    turns = itertools.zip_longest(*queues)  # one sample of each class, None where it has no more
    in_turn = (sample for turn in turns for sample in turn if sample is not None)
    return list(itertools.islice(in_turn, n))


def _bin_names(starts: list[int]) -> list[str]:
    inner = [(start, following - 1) for start, following in itertools.pairwise(starts)]
    above = [f"{a}" if a == b else f"{a}…{b}" for a, b in inner] + [f"≥ {starts[-1]}"]
    below = [f"−{a}" if a == b else f"−{b}…−{a}" for a, b in inner] + [f"≤ −{starts[-1]}"]
    return [*reversed(below), *above]


def label_errors(labels: Any, neighbors: Neighbors, n: int | None = None) -> pd.DataFrame:
    """All samples, ranked by how much their neighbors speak against their label.

    The neighbor of rank r votes for its label with weight 1/r; the vote ``v_c`` of class c is its
    sum over the most that the class could reach with its members, the sample left out. With the
    distances of the nearest same-label and other-label sample, the suspicion is

        log (max_c≠y v_c + 1/k) − log (v_y + 1/k) + ½ log (d_same / d_other)

    where a class without a neighbor in the list takes the distance of the last one, and the ratio
    is kept in 0.1 … 10. Above 0 the neighbors prefer another label. A sample alone in its class has
    no vote to compare: its suspicion is NaN and it comes last. Of a thousand labels some look
    wrong where none is: this is a ranking for a look at the samples, not a test.

    Args:
        labels: ``(N,)``, see `siutils.core.as_labels`.
        neighbors: ``(N, k)``, nearest first, self excluded. The more classes overlap, the more
            neighbors help: 200, or all of a small set, did well from clean to poor features.
        n: rows wanted; by default all.

    Returns:
        DataFrame, most suspect first, equal ones by index: ``sample``, ``label``, ``suggested``
        (the other label with the highest vote, of equal ones the lowest), ``suspicion``, ``vote``
        (v of its label), ``suggested_vote``, ``distance_ratio``.

    Raises:
        TypeError, ValueError: if shapes do not fit, or all labels are the same.

    >>> near = Neighbors(torch.tensor([[1.0], [1.0], [4.0], [4.0]]),
    ...                  torch.tensor([[1], [0], [3], [2]]))
    >>> label_errors([0, 0, 0, 1], near, n=1)[["sample", "label", "suggested", "vote"]]
       sample  label  suggested  vote
    0       2      0          1   0.0
    """
    labels, y, distances, indices = _checked(labels, neighbors)
    if n is not None:
        check_positive(n, "n")
    classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    classes = labels.values(classes)
    if len(classes) < 2:
        raise ValueError(f"labels are all {classes[0]}: there is no other label to suspect")
    own, other, suggested = _votes(codes, counts, indices)
    ratio = _distance_ratio(distances, y[indices] == y[:, None])
    floor = 1 / indices.shape[1]
    suspicion = np.log(other + floor) - np.log(own + floor) + 0.5 * np.log(ratio)
    suspicion[counts[codes] == 1] = math.nan
    table = pd.DataFrame(
        {
            "sample": np.arange(len(y)),
            "label": labels.values(y),
            "suggested": classes[suggested],
            "suspicion": suspicion,
            "vote": own,
            "suggested_vote": other,
            "distance_ratio": ratio,
        }
    )
    order = np.argsort(-suspicion, kind="stable")  # NaN comes last
    return table.iloc[order if n is None else order[:n]].reset_index(drop=True)


def _votes(
    codes: np.ndarray, counts: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vote of the own class, the highest of another, and which that is: ``(N,)`` each."""
    n, k = indices.shape
    weights = torch.from_numpy(1 / np.arange(1, k + 1))
    reach = np.concatenate([[1.0], np.cumsum(weights.numpy())])  # by a class of 0, 1, … members
    reach_own = reach[np.minimum(counts - 1, k)][codes]
    reach_other = torch.from_numpy(reach[np.minimum(counts, k)])
    labels = torch.from_numpy(codes)
    own, other = np.empty(n), np.empty(n)
    suggested = np.empty(n, dtype=np.int64)
    step = max(1, _ROWS // len(counts))
    for start in range(0, n, step):
        part = slice(start, start + step)
        near = labels[torch.from_numpy(indices[part])]
        votes = torch.zeros(len(near), len(counts), dtype=torch.float64)
        votes.scatter_add_(1, near, weights.expand(near.shape))
        mine = labels[part, None]
        own[part] = votes.gather(1, mine)[:, 0].numpy() / reach_own[part]
        rest = (votes / reach_other).scatter_(1, mine, -1.0).numpy()
        suggested[part] = rest.argmax(axis=1)  # NumPy's: of equal ones the first
        other[part] = rest.max(axis=1)
    return own, other, suggested


def _distance_ratio(distances: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Distance of the nearest same-label over that of the nearest other-label neighbor."""
    same, other = (_first_distance(distances, kind) for kind in (hits, ~hits))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(same == other, 1.0, same / other)
    return np.clip(ratio, _LEAST_RATIO, 1 / _LEAST_RATIO)


def _first_distance(distances: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.where(wanted.any(axis=1), wanted.argmax(axis=1), wanted.shape[1] - 1)
    return np.take_along_axis(distances, at[:, None], axis=1)[:, 0]


def _checked(
    labels: Any, neighbors: Neighbors
) -> tuple[Labels, np.ndarray, np.ndarray, np.ndarray]:
    y = as_labels(labels, "labels")
    distances, indices = (torch.as_tensor(each) for each in neighbors)
    if indices.ndim != 2 or indices.shape != distances.shape or len(indices) != len(y):
        raise ValueError(
            f"neighbors must be (N, k) with N = {len(y)}, as kneighbors(features, k) gives them; "
            f"got {tuple(indices.shape)} and {tuple(distances.shape)}"
        )
    return y, y.codes.numpy(), distances.cpu().numpy(), indices.cpu().numpy()
