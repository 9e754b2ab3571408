"""The Separation Index family: pure functions of neighbor labels.

With ``h_r(i) = 1`` where the r-th nearest neighbor of sample i carries i's label, and 0 elsewhere:

* SI: the mean of ``h_1``
* high-order SI of order r: the mean of ``h_1 · … · h_r``
* soft-order SI of order r: the mean of ``(h_1 + … + h_r) / r``
* anti SI of order r: the mean of ``(1 − h_1) · … · (1 − h_r)``

Source: A. Kalhor et al., "Evaluation of Dataflow through Layers of Deep Neural Networks in
Classification and Regression Problems" (2019), and the class library that goes with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INDICES = ("si", "high_order_si", "soft_order_si", "anti_si", "center_si")
LEVELS = ("dataset", "class", "sample")


def neighbor_hits(labels: Tensor, neighbor_labels: Tensor) -> Tensor:
    """Mark the neighbors that carry their sample's label.

    Args:
        labels: integer tensor ``(N,)``.
        neighbor_labels: integer tensor ``(N, k)``, the labels of the neighbors, nearest first.

    Returns:
        Bool tensor ``(N, k)``.

    >>> neighbor_hits(torch.tensor([0, 1]), torch.tensor([[0, 1], [0, 1]])).tolist()
    [[True, False], [False, True]]
    """
    return neighbor_labels == labels[:, None]


def high_order_si(hits: Tensor, order: int) -> Tensor:
    """Per sample: 1 where all of the ``order`` nearest neighbors share the label, else 0.

    Args:
        hits: bool tensor ``(N, k)`` of :func:`neighbor_hits`.
        order: number of neighbors looked at, 1 ≤ order ≤ k.

    Returns:
        Float64 tensor ``(N,)``.

    >>> high_order_si(torch.tensor([[True, True], [True, False]]), 2).tolist()
    [1.0, 0.0]
    """
    return _first(hits, order).all(dim=1).double()


def soft_order_si(hits: Tensor, order: int) -> Tensor:
    """Per sample: the fraction of the ``order`` nearest neighbors that share the label.

    Arguments and result as in :func:`high_order_si`.

    >>> soft_order_si(torch.tensor([[True, True], [True, False]]), 2).tolist()
    [1.0, 0.5]
    """
    return _first(hits, order).double().mean(dim=1)


def anti_si(hits: Tensor, order: int) -> Tensor:
    """Per sample: 1 where none of the ``order`` nearest neighbors shares the label, else 0.

    Arguments and result as in :func:`high_order_si`.

    >>> anti_si(torch.tensor([[True, True], [False, False]]), 2).tolist()
    [0.0, 1.0]
    """
    return (~_first(hits, order)).all(dim=1).double()


def class_means(features: Tensor, codes: Tensor, n_classes: int) -> Tensor:
    """Mean feature vector of each class, accumulated in float64.

    Args:
        features: real tensor ``(N, D)``.
        codes: int64 tensor ``(N,)``, class numbers 0 … C−1, each present.
        n_classes: C.

    Returns:
        Float64 tensor ``(C, D)``.

    >>> class_means(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1.0], [5.0]]
    """
    groups = (features[codes == c] for c in range(n_classes))
    return torch.stack([column_sum(group) / len(group) for group in groups])


def column_sum(features: Tensor) -> Tensor:
    """Sum over samples in float64, in one fixed order: bit-equal on CPU and CUDA.

    Args:
        features: real tensor ``(N, D)``, N ≥ 1.

    Returns:
        Float64 tensor ``(D,)``.

    >>> column_sum(torch.tensor([[1.0], [2.0], [4.0]])).tolist()
    [7.0]
    """
    rest = features.to(torch.float64, copy=True)
    while len(rest) > 1:  # fold the lower half onto the upper: elementwise adds only
        half = (len(rest) + 1) // 2
        rest[: len(rest) - half] += rest[half:]
        rest = rest[:half]
    return rest[0]


def aggregate(values: Tensor, codes: Tensor, n_classes: int, per: str) -> float | Tensor:
    """Reduce per-sample values to the data set or to classes.

    Args:
        values: float tensor ``(N,)``.
        codes: int64 tensor ``(N,)``, class numbers 0 … C−1, each present.
        n_classes: C.
        per: ``"dataset"``, ``"class"`` or ``"sample"``.

    Returns:
        A float, or a float64 CPU tensor ``(C,)`` or ``(N,)``.

    Raises:
        ValueError: for another value of ``per``.

    >>> aggregate(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]), 2, "class").tolist()
    [0.5, 1.0]
    """
    values, codes = values.double().cpu(), codes.cpu()
    if per == "dataset":
        return float(values.mean())
    if per == "sample":
        return values
    if per == "class":
        sums = torch.zeros(n_classes, dtype=torch.float64).index_add_(0, codes, values)
        return sums / torch.bincount(codes, minlength=n_classes)
    raise ValueError(f"per must be one of {', '.join(LEVELS)}; got {per!r}")


def chance(index: str, class_counts: list[int], order: int = 1) -> float:
    """Exact expectation of an index when the labels are permuted at random.

    The r nearest neighbors of a sample are r distinct other samples; under a random permutation of
    the labels theirs are drawn without replacement from the N−1 that remain. Hence for SI and
    soft-order SI ``Σ_c n_c (n_c−1) / (N (N−1))``, and falling factorials for high-order and anti.

    Args:
        index: a name of :data:`INDICES`; ``"center_si"`` has no closed form.
        class_counts: samples per class, n_1 … n_C.
        order: the order of the index, below N.

    Returns:
        The expectation, or ``nan`` for ``"center_si"``: a table shows it as not available.

    Raises:
        ValueError: for an unknown index.

    >>> chance("si", [2, 2])
    0.3333333333333333
    >>> chance("anti_si", [2, 2], order=2)
    0.3333333333333333
    """
    n = sum(class_counts)
    if index in ("si", "soft_order_si"):
        return sum(c * (c - 1) for c in class_counts) / (n * (n - 1))
    if index == "high_order_si":
        return sum(math.perm(c, order + 1) for c in class_counts) / math.perm(n, order + 1)
    if index == "anti_si":
        return sum(c * math.perm(n - c, order) for c in class_counts) / math.perm(n, order + 1)
    if index == "center_si":
        return math.nan
    raise ValueError(f"index must be one of {', '.join(INDICES)}; got {index!r}")


def _first(hits: Tensor, order: int) -> Tensor:
    if not 1 <= order <= hits.shape[1]:
        raise ValueError(f"order must lie in 1 … {hits.shape[1]} (neighbors known); got {order}")
    return hits[:, :order]
