"""The Separation Index family: pure functions of neighbor labels.

With ``h_r(i) = 1`` where the r-th nearest neighbor of sample i carries i's label, and 0 elsewhere:

* SI: the mean of ``h_1``
* high-order SI of order r: the mean of ``h_1 · … · h_r``
* soft-order SI of order r: the mean of ``(h_1 + … + h_r) / r``
* anti SI of order r: the mean of ``(1 − h_1) · … · (1 − h_r)``
* separation score: the length of the run ``h_1 = h_2 = … = 1``, or minus that of ``h_1 = … = 0``

**Undefined cases, one rule.** A sample with fewer than r others of its label cannot have r
same-label neighbors. It stays in every mean and counts as what its neighbors are: not separated.
`undefined` counts such samples, `attainable` is the best value that they leave.

Source: A. Kalhor et al., "Evaluation of Dataflow through Layers of Deep Neural Networks in
Classification and Regression Problems" (2019), and the class library that goes with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INDEX_NAMES = {
    "si": "SI",
    "high_order_si": "high-order SI",
    "soft_order_si": "soft-order SI",
    "anti_si": "anti SI",
    "center_si": "center SI",
}
INDICES = tuple(INDEX_NAMES)
LEVELS = ("dataset", "class", "sample", "macro")


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
        hits: bool tensor ``(N, k)`` of `neighbor_hits`.
        order: number of neighbors looked at, 1 ≤ order ≤ k.

    Returns:
        Float64 tensor ``(N,)``.

    >>> high_order_si(torch.tensor([[True, True], [True, False]]), 2).tolist()
    [1.0, 0.0]
    """
    return _first(hits, order).all(dim=1).double()


def soft_order_si(hits: Tensor, order: int) -> Tensor:
    """Per sample: the fraction of the ``order`` nearest neighbors that share the label.

    Arguments and result as in `high_order_si`.

    >>> soft_order_si(torch.tensor([[True, True], [True, False]]), 2).tolist()
    [1.0, 0.5]
    """
    return _first(hits, order).double().mean(dim=1)


def anti_si(hits: Tensor, order: int) -> Tensor:
    """Per sample: 1 where none of the ``order`` nearest neighbors shares the label, else 0.

    Arguments and result as in `high_order_si`.

    >>> anti_si(torch.tensor([[True, True], [False, False]]), 2).tolist()
    [0.0, 1.0]
    """
    return (~_first(hits, order)).all(dim=1).double()


def sample_values(hits: Tensor, index: str, order: int) -> Tensor:
    """Per sample: an index of neighbors by its name. SI is high-order SI of order 1.

    Args:
        hits: bool tensor ``(N, k)`` of `neighbor_hits`.
        index: a name of `INDICES` but ``"center_si"``.
        order: number of neighbors looked at; none other than 1 for SI.

    >>> sample_values(torch.tensor([[True, True], [True, False]]), "si", 1).tolist()
    [1.0, 1.0]
    """
    if index == "si":
        index, order = "high_order_si", 1
    formulas = {"high_order_si": high_order_si, "soft_order_si": soft_order_si, "anti_si": anti_si}
    return formulas[index](hits, order)


def index_orders(max_order: int) -> list[tuple[str, int]]:
    """Every index with its orders. SI is high-order SI of order 1; center SI has none: 0.

    >>> index_orders(1)
    [('si', 1), ('high_order_si', 1), ('soft_order_si', 1), ('anti_si', 1), ('center_si', 0)]
    """
    ordered = [(name, order) for name in INDICES[1:4] for order in range(1, max_order + 1)]
    return [("si", 1), *ordered, ("center_si", 0)]


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
    shape = n_classes, features.shape[1]
    means = torch.empty(shape, dtype=torch.float64, device=features.device)
    order, counts = codes.argsort(stable=True), torch.bincount(codes, minlength=n_classes)
    first = counts.cumsum(0) - counts
    for size in counts.unique().tolist():  # all classes of one size at once
        chosen = (counts == size).nonzero().flatten()
        rows = order[first[chosen] + torch.arange(size, device=order.device)[:, None]]
        # a slice of features at a time: a class may be as large as the data set
        step = max(1, 2**24 // rows.numel())
        for part, out in zip(features.split(step, 1), means.split(step, 1), strict=True):
            out[chosen] = column_sum(part[rows]) / size
    return means


def column_sum(features: Tensor) -> Tensor:
    """Sum over samples in float64, in one fixed order: bit-equal on CPU and CUDA.

    Args:
        features: real tensor ``(N, …)``, N ≥ 1.

    Returns:
        Float64 tensor ``(…)``.

    >>> column_sum(torch.tensor([[1.0], [2.0], [4.0]])).tolist()
    [7.0]
    """
    rest = features.to(torch.float64, copy=True)
    while len(rest) > 1:  # fold the lower half onto the upper: elementwise adds only
        half = (len(rest) + 1) // 2
        rest[: len(rest) - half] += rest[half:]
        rest = rest[:half]
    return rest[0]


def mean(values: Tensor) -> float:
    """Mean of values (N,), summed as in `column_sum`, so that no number of threads changes a bit.

    >>> mean(torch.tensor([1.0, 0.0]))
    0.5
    """
    return float(column_sum(values[:, None])) / len(values)


def aggregate(values: Tensor, codes: Tensor, n_classes: int, per: str) -> float | Tensor:
    """Reduce per-sample values to the data set or to classes.

    Args:
        values: float tensor ``(N,)``.
        codes: int64 tensor ``(N,)``, class numbers 0 … C−1, each present.
        n_classes: C.
        per: ``"dataset"`` and ``"macro"`` (mean of the class means, each class weighing the same)
            give a float, ``"class"`` and ``"sample"`` a tensor.

    Returns:
        A float, or a float64 CPU tensor ``(C,)`` or ``(N,)``.

    Raises:
        ValueError: for another value of ``per``.

    >>> aggregate(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]), 2, "class").tolist()
    [0.5, 1.0]
    >>> aggregate(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]), 2, "macro")
    0.75
    """
    check_level(per)
    values, codes = values.double().cpu(), codes.cpu()
    if per == "dataset":
        return mean(values)
    if per == "sample":
        return values
    sums = torch.zeros_like(values[:n_classes]).index_add_(0, codes, values)
    means = sums / torch.bincount(codes, minlength=n_classes)
    return mean(means) if per == "macro" else means


def check_level(per: str) -> None:
    """Raise a ValueError unless ``per`` is one of `LEVELS`.

    >>> check_level("sample")
    """
    if per not in LEVELS:
        raise ValueError(f"per must be one of {', '.join(LEVELS)}; got {per!r}")


def chance(
    index: str, class_counts: list[int], order: int = 1, reference_counts: list[int] | None = None
) -> float:
    """Exact expectation of an index when the labels are permuted at random.

    The r nearest neighbors of a sample are r distinct others; under a random permutation of the
    labels theirs are drawn without replacement from the N−1 that remain. Hence for SI and
    soft-order SI ``Σ_c n_c (n_c−1) / (N (N−1))``, and falling factorials for high-order and anti.
    Across two sets, with the labels of the N reference samples permuted and m_c of M test samples
    in class c, they are drawn from all N: ``Σ_c m_c n_c / (M N)`` for SI.

    Args:
        index: a name of `INDICES`; ``"center_si"`` has no closed form.
        class_counts: scored samples per class.
        order: the order of the index, at most the number of candidates.
        reference_counts: across two sets, the reference samples of the same classes, then those
            of any other class.

    Returns:
        The expectation, or ``nan`` for ``"center_si"``: a table shows it as not available.

    Raises:
        ValueError: for an unknown index.

    >>> chance("si", [2, 2])
    0.3333333333333333
    >>> chance("anti_si", [2, 2], order=2)
    0.3333333333333333
    >>> chance("si", [1, 1], reference_counts=[3, 1])
    0.5
    """
    check_index(index)
    if index == "center_si":
        return math.nan
    same, candidates = same_label_candidates(class_counts, reference_counts)
    n = sum(class_counts)
    if index in ("si", "soft_order_si"):
        return sum(m * s for m, s in same) / (n * candidates)
    draws = math.perm(candidates, order)
    if index == "high_order_si":
        return sum(m * math.perm(s, order) for m, s in same) / (n * draws)
    return sum(m * math.perm(candidates - s, order) for m, s in same) / (n * draws)


def attainable(
    index: str, class_counts: list[int], order: int = 1, reference_counts: list[int] | None = None
) -> float:
    """The best value that the class sizes allow: the lowest for anti SI, else the highest.

    With s_i samples of sample i's label to be neighbors to it (n_c − 1; across sets, those of the
    reference): the share with ``s_i ≥ r`` for SI and high-order SI, the mean of ``min(s_i, r)/r``
    for soft-order SI, the share with ``s_i = 0`` for anti SI, the share whose class has a mean
    for center SI.

    Arguments and errors as in `chance`.

    >>> attainable("si", [3, 1]), attainable("soft_order_si", [3, 1], 4)
    (0.75, 0.375)
    >>> attainable("anti_si", [3, 1])
    0.25
    """
    check_index(index)
    if index == "center_si":
        return 1 - undefined(index, class_counts, order, reference_counts) / sum(class_counts)
    same, _ = same_label_candidates(class_counts, reference_counts)
    n = sum(class_counts)
    if index == "soft_order_si":
        return sum(m * min(s, order) for m, s in same) / (n * order)
    if index == "anti_si":
        return sum(m for m, s in same if s == 0) / n
    return sum(m for m, s in same if s >= order) / n


def undefined(
    index: str, class_counts: list[int], order: int = 1, reference_counts: list[int] | None = None
) -> int:
    """How many samples have too few others of their label for the index: fewer than ``order``.

    For anti SI: none at all. For center SI: its class has no mean, which happens across two sets
    only. Arguments and errors as in `chance`.

    >>> undefined("si", [3, 1]), undefined("high_order_si", [3, 1], 3)
    (1, 4)
    """
    check_index(index)
    if index == "center_si" and reference_counts is None:
        return 0
    needed = 1 if index in ("anti_si", "center_si") else order
    same, _ = same_label_candidates(class_counts, reference_counts)
    return sum(m for m, s in same if s < needed)


def same_label_candidates(
    class_counts: list[int], reference_counts: list[int] | None = None
) -> tuple[list[tuple[int, int]], int]:
    """Who can be a neighbor: per class (samples, candidates of their label), and all candidates.

    Arguments as in `chance`.

    >>> same_label_candidates([3, 1])
    ([(3, 2), (1, 0)], 3)
    """
    if reference_counts is None:
        return [(c, c - 1) for c in class_counts], sum(class_counts) - 1
    return list(zip(class_counts, reference_counts, strict=False)), sum(reference_counts)


def check_index(index: str) -> None:
    """Raise a ValueError unless ``index`` is one of `INDICES`.

    >>> check_index("anti_si")
    """
    if index not in INDICES:
        raise ValueError(f"index must be one of {', '.join(INDICES)}; got {index!r}")


def _first(hits: Tensor, order: int) -> Tensor:
    if not 1 <= order <= hits.shape[1]:
        raise ValueError(f"order must lie in 1 … {hits.shape[1]} (neighbors known); got {order}")
    return hits[:, :order]
