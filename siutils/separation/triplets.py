"""Triplets: an anchor, a sample of its own label (positive), a sample of another (negative).

Local triplets take the nearest of each kind, global ones draw at random. Source: the local and the
global triplet index of A. Kalhor's class library.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from siutils.core import as_labels, as_matrix, check_positive, check_same_length
from siutils.neighbors import Neighbors, kneighbors, squared_distances

_LIST = 16  # neighbors looked through before a search among one kind of samples begins


class LocalTriplets(NamedTuple):
    """Per anchor the nearest sample of its own label and the nearest of another label.

    Attributes:
        same, other: int64 ``(N,)``, rows of the features; −1 where there is none.
        same_distances, other_distances: float64 ``(N,)``, Euclidean; infinity where there is none.
    """

    same: Tensor
    same_distances: Tensor
    other: Tensor
    other_distances: Tensor


def local_triplets(features: Any, labels: Any, neighbors: Neighbors | None = None) -> LocalTriplets:
    """The nearest same-label and the nearest other-label sample of every sample, exactly.

    Equal distances go to the lower index. A sample that is alone in its class has no ``same``, all
    samples of a single class have no ``other``: index −1, distance infinity.

    Args:
        features: real ``(N, D)``, torch or NumPy, N ≥ 2.
        labels: ``(N,)``, see `siutils.core.as_labels`.
        neighbors: nearest neighbors of all samples as `kneighbors` gives them, of any depth,
            if they are known already. Samples whose list lacks a kind are searched again.

    Returns:
        LocalTriplets, on the device of ``features``.

    Raises:
        TypeError, ValueError: as `kneighbors`; if lengths differ.

    >>> triplets = local_triplets([[0.0], [1.0], [3.0], [7.0]], [0, 0, 1, 1])
    >>> triplets.same.tolist(), triplets.same_distances.tolist()
    ([1, 0, 3, 2], [1.0, 1.0, 4.0, 4.0])
    >>> triplets.other.tolist(), triplets.other_distances.tolist()
    ([2, 2, 1, 1], [3.0, 2.0, 2.0, 6.0])
    """
    x, y = as_matrix(features, "features"), as_labels(labels, "labels").codes
    check_same_length(x, y, "features", "labels")
    y = y.to(x.device)
    if neighbors is None:
        neighbors = kneighbors(x, max(1, min(_LIST, len(x) - 1)))
    same_label = y[neighbors.indices] == y[:, None]
    same = _first_of(neighbors, same_label)
    other = _first_of(neighbors, ~same_label)
    for label in y[(same.indices < 0) | (other.indices < 0)].unique():
        inside, outside = (y == label).nonzero()[:, 0], (y != label).nonzero()[:, 0]
        if len(inside) > 1 and bool((same.indices[inside] < 0).any()):
            _store(same, inside, kneighbors(x[inside], 1), inside)
        rows = inside[other.indices[inside] < 0]
        if len(rows) and len(outside):
            _store(other, rows, kneighbors(x[outside], 1, queries=x[rows]), outside)
    return LocalTriplets(same.indices, same.distances, other.indices, other.distances)


def local_triplet_index(triplets: LocalTriplets) -> Tensor:
    """Per sample: 1 where the nearest same-label sample is nearer than any other-label one, else 0.

    The mean is the local triplet index. It equals SI but for samples whose two distances are equal:
    here they count 0, in SI the lower index decides. A sample that is alone in its class counts 0.

    Args:
        triplets: what `local_triplets` returns.

    Returns:
        Float64 tensor ``(N,)``.

    >>> local_triplet_index(local_triplets([[0.0], [1.0], [3.0], [7.0]], [0, 0, 1, 1])).tolist()
    [1.0, 1.0, 0.0, 1.0]
    """
    return (triplets.same_distances < triplets.other_distances).double()


def global_triplet_index(
    features: Any, labels: Any, n_triplets: int = 100_000, generator: torch.Generator | None = None
) -> float:
    """The share of random triplets whose positive is nearer to the anchor than the negative.

    Anchors are drawn uniformly from the samples that are not alone in their class, positives
    uniformly from the others of the anchor's class, negatives uniformly from the other classes, all
    with replacement. Equal distances count as not nearer. Around the share p over all triplets the
    value scatters with standard deviation √(p (1 − p) / n_triplets), at most 0.0016 by default.

    Args:
        features: real ``(N, D)``, torch or NumPy, finite.
        labels: ``(N,)``, of at least two classes, one of them with two samples or more.
        n_triplets: triplets drawn.
        generator: a CPU generator; without one, torch's global generator.

    Raises:
        TypeError, ValueError: if shapes do not fit or labels allow no triplet.

    >>> generator = torch.Generator().manual_seed(0)
    >>> global_triplet_index([[0.0], [1.0], [9.0]], [0, 0, 1], generator=generator)
    1.0
    """
    x, y = as_matrix(features, "features"), as_labels(labels, "labels").codes
    check_same_length(x, y, "features", "labels")
    check_positive(n_triplets, "n_triplets")
    triplets = torch.stack(_draw(y, n_triplets, generator)).to(x.device)
    nearer = 0
    for anchors, positives, negatives in triplets.split(2**20, dim=1):
        to_same = squared_distances(x, x, anchors, positives)
        nearer += int((to_same < squared_distances(x, x, anchors, negatives)).sum())
    return nearer / n_triplets


def _first_of(neighbors: Neighbors, wanted: Tensor) -> Neighbors:
    """The first neighbor that is wanted: distances and indices ``(N,)``, else infinity and −1."""
    k = wanted.shape[1]
    position = torch.where(wanted, torch.arange(k, device=wanted.device), k).amin(dim=1)
    missing = position == k
    at = position.clamp(max=k - 1)[:, None]
    distances = neighbors.distances.gather(1, at)[:, 0].masked_fill(missing, torch.inf)
    return Neighbors(distances, neighbors.indices.gather(1, at)[:, 0].masked_fill(missing, -1))


def _store(into: Neighbors, rows: Tensor, found: Neighbors, references: Tensor) -> None:
    """Write what a search among ``references`` found for ``rows``."""
    into.distances[rows] = found.distances[:, 0]
    into.indices[rows] = references[found.indices[:, 0]]


def _draw(
    labels: Tensor, n_triplets: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of anchors, positives and negatives, each ``(n_triplets,)``."""
    n = len(labels)
    order = labels.argsort(stable=True)
    counts = labels.unique(return_counts=True)[1]
    size = counts.repeat_interleave(counts)  # of its class, for each place in the order
    start = (counts.cumsum(0) - counts).repeat_interleave(counts)
    places = (size > 1).nonzero()[:, 0]
    if len(counts) < 2 or not len(places):
        raise ValueError(
            f"labels allow no triplet: {len(counts)} class(es), the largest of {int(counts.max())} "
            "sample(s); at least two classes and one of two samples are needed"
        )
    draws = torch.rand(3, n_triplets, dtype=torch.float64, generator=generator)
    anchor = places[_below(draws[0], torch.tensor(len(places)))]
    positive = start[anchor] + _below(draws[1], size[anchor] - 1)
    positive += positive >= anchor  # skips the anchor itself
    negative = _below(draws[2], n - size[anchor])
    negative += torch.where(negative >= start[anchor], size[anchor], 0)  # skips the anchor's class
    return order[anchor], order[positive], order[negative]


def _below(draws: Tensor, bounds: Tensor) -> Tensor:
    """Uniform draws from [0, 1) as integers 0 … bound − 1."""
    return torch.minimum((draws * bounds).long(), bounds - 1)
