"""Which samples make the value: neighbor confusion, hardest samples, suspected label errors.

All are functions of labels and nearest neighbors as :func:`siutils.kneighbors` finds them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from siutils.neighbors import Neighbors
from siutils.sampling import as_integers, check_positive

_ROWS = 2**22  # votes (rows · classes) held at once: 32 MB
_LEAST_RATIO = 0.1  # of two distances: nearer than that proves no more, duplicates least of all


def neighbor_confusion(labels: Any, neighbor_labels: Any) -> pd.DataFrame:
    """How often the neighbors of each class carry each label.

    Args:
        labels: integers ``(N,)`` of the samples.
        neighbor_labels: integers ``(N, k)``, labels of their k nearest neighbors; take the first
            column for the confusion that SI counts: the trace over N is SI.

    Returns:
        DataFrame of counts ``(C, C)``: row, the class of the sample (index ``label``); column, the
        class of the neighbor (``neighbor_label``); ascending labels of either. A row sums to k
        times the samples of its class.

    Raises:
        TypeError, ValueError: if these are no integers of fitting shapes.

    >>> table = neighbor_confusion([0, 0, 5], [[0], [5], [0]])
    >>> table.index.tolist(), table.to_numpy().tolist()
    ([0, 5], [[1, 1], [1, 0]])
    """
    y = as_integers(labels, "labels").cpu()
    near = torch.as_tensor(neighbor_labels).cpu()
    if near.ndim != 2 or len(near) != len(y) or near.shape[1] < 1:
        raise ValueError(
            f"neighbor_labels must be (N, k) with N = {len(y)}; got {tuple(near.shape)}"
        )
    near = as_integers(near.flatten(), "neighbor_labels").reshape(near.shape)
    classes, codes = torch.cat([y, near.flatten()]).unique(return_inverse=True)
    c = len(classes)
    pairs = codes[: len(y), None] * c + codes[len(y) :].reshape(near.shape)
    counts = torch.bincount(pairs.flatten(), minlength=c * c).reshape(c, c)
    names = classes.tolist()
    return pd.DataFrame(
        counts.numpy(),
        index=pd.Index(names, name="label"),
        columns=pd.Index(names, name="neighbor_label"),
    )


def hardest_samples(labels: Any, neighbors: Neighbors, n: int = 20) -> pd.DataFrame:
    """The samples with the most other-label neighbors before the first of their own label.

    Of samples with as many, the one whose nearest same-label neighbor is farther, in units of its
    nearest other-label neighbor, comes first, then the lower index. Where the list has none of a
    kind, the distance of its last neighbor stands in: a lower bound.

    Args:
        labels: integers ``(N,)``.
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
    y, distances, indices = _checked(labels, neighbors)
    check_positive(n, "n")
    hits = y[indices] == y[:, None]
    k = hits.shape[1]
    run = np.where(hits.any(axis=1), hits.argmax(axis=1), k)
    order = np.lexsort((-_distance_ratio(distances, hits), -run))[:n]  # stable: index comes last
    m = len(order)
    return pd.DataFrame(
        {
            "place": np.repeat(np.arange(1, m + 1), k),
            "sample": np.repeat(order, k),
            "label": np.repeat(y[order], k),
            "run": np.repeat(run[order], k),
            "rank": np.tile(np.arange(1, k + 1), m),
            "neighbor": indices[order].ravel(),
            "neighbor_label": y[indices[order]].ravel(),
            "distance": distances[order].ravel(),
        }
    )


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
        labels: integers ``(N,)``.
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
    y, distances, indices = _checked(labels, neighbors)
    if n is not None:
        check_positive(n, "n")
    classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
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
            "label": y,
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


def _checked(labels: Any, neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = as_integers(labels, "labels")
    distances, indices = (torch.as_tensor(each) for each in neighbors)
    if indices.ndim != 2 or indices.shape != distances.shape or len(indices) != len(y):
        raise ValueError(
            f"neighbors must be (N, k) with N = {len(y)}, as kneighbors(features, k) gives them; "
            f"got {tuple(indices.shape)} and {tuple(distances.shape)}"
        )
    return y.cpu().numpy(), distances.cpu().numpy(), indices.cpu().numpy()
