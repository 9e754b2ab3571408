"""Stratified splits and balanced subsets of samples, by seed.

Every random choice draws one uniform number per sample from its own PCG64 stream. NumPy keeps the
raw numbers of PCG64 stable, so a seed picks the same samples on every platform. No global seed
changes.
"""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from siutils.core.checks import check_positive
from siutils.core.labels import as_labels


def train_val_split(
    labels: Tensor | ArrayLike, val_fraction: float = 0.2, seed: int = 42
) -> tuple[Tensor, Tensor]:
    """Splits samples by class into training and validation indices, both sorted.

    ``round(N · val_fraction)`` of N samples go to validation. Each class gives its share rounded
    down or up: up for the largest remainders (ties go to the lower label). Each class keeps one
    sample in training, so a class with a single sample stays there; validation is smaller by the
    samples that this rule holds back.

    Args:
        labels: (N,), see `as_labels`.
        val_fraction: strictly between 0 and 1.
        seed: non-negative integer.

    Raises:
        ValueError: arguments out of range, or too few samples to leave any for validation.

    >>> train, val = train_val_split([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    >>> len(train), [0 <= val[0] < 5, 5 <= val[1] < 10]
    (8, [tensor(True), tensor(True)])
    """
    y = as_labels(labels, "labels").codes.numpy()
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}")
    _, counts = np.unique(y, return_counts=True)
    share = counts * val_fraction
    # The tiny addend keeps 0.2 · 15 = 3.0000000000000004 and 0.7 · 10 = 6.999… at their integers.
    quota = np.minimum(np.floor(share + 1e-9), counts - 1).astype(int)
    missing = int(np.floor(len(y) * val_fraction + 0.5 + 1e-9)) - int(quota.sum())
    remainder = np.where(quota < counts - 1, np.round(share - quota, 9), 0)
    by_remainder = np.argsort(-remainder, kind="stable")[: np.count_nonzero(remainder)]
    quota[by_remainder[: max(missing, 0)]] += 1
    order, rank = _shuffled_by_class(y, counts, seed, stream=0)
    in_val = rank < np.repeat(quota, counts)
    if not in_val.any():
        raise ValueError(
            f"labels: {len(y)} samples in {len(counts)} classes leave none for validation at "
            f"val_fraction={val_fraction}; give more samples or a larger fraction"
        )
    return _sorted_indices(order[~in_val]), _sorted_indices(order[in_val])


def balanced_subset(labels: Tensor | ArrayLike, per_class: int, seed: int = 42) -> Tensor:
    """Picks sorted indices of `per_class` random samples of each class, without replacement.

    Raises:
        ValueError: a class has fewer than `per_class` samples; the error names it.

    >>> balanced_subset([5, 5, 7, 7], per_class=2)
    tensor([0, 1, 2, 3])
    """
    y = as_labels(labels, "labels").codes.numpy()
    check_positive(per_class, "per_class")
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < per_class:
        short = int(counts.argmin())
        raise ValueError(
            f"per_class={per_class}, but class {classes[short]} has only {counts[short]} samples"
        )
    return capped_subset(labels, int(per_class), seed)


def capped_subset(labels: Tensor | ArrayLike, most: int | Sequence[int], seed: int = 42) -> Tensor:
    """Picks sorted indices of at most `most` random samples of each class, without replacement.

    Args:
        labels: (N,), see `as_labels`.
        most: one limit for all classes, or one for each class that occurs, in ascending order.
        seed: non-negative integer.

    Raises:
        ValueError: a limit is below 1, or the number of limits is not the number of classes.

    >>> capped_subset([5, 5, 7], most=2), len(capped_subset([5, 5, 7], most=[1, 1]))
    (tensor([0, 1, 2]), 2)
    """
    y = as_labels(labels, "labels").codes.numpy()
    _, counts = np.unique(y, return_counts=True)
    limits = [most] * len(counts) if isinstance(most, int) else list(most)
    for limit in limits:
        check_positive(limit, "most")
    if len(limits) != len(counts):
        raise ValueError(f"most must have one number per class ({len(counts)}), got {len(limits)}")
    order, rank = _shuffled_by_class(y, counts, seed, stream=1)
    return _sorted_indices(order[rank < np.repeat(limits, counts)])


def _shuffled_by_class(
    y: np.ndarray, counts: np.ndarray, seed: int, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices in ascending order of class, shuffled within each, and their ranks in it.

    `stream` makes the choices of two functions with the same seed independent.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    keys = np.random.Generator(np.random.PCG64([int(seed), stream])).random(len(y))
    rank = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.lexsort((keys, y)), rank


def _sorted_indices(indices: np.ndarray) -> Tensor:
    return torch.from_numpy(np.sort(indices).astype(np.int64))
