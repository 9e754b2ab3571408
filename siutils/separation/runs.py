"""Runs of neighbors with equal hits: the separation score, searched only as deep as a run goes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from siutils.neighbors import kneighbors, squared_distances

STEP = 4  # each round looks this many times deeper
ENTRIES = 2**23  # neighbors held at once
BLOCK = 2**26  # features copied at once


def nearest_others(features: Tensor, rows: Tensor, k: int, memory: float = math.inf) -> Tensor:
    """Searches the k nearest neighbors of chosen samples among all others, each but itself.

    Args:
        features: real ``(N, D)``.
        rows: int64 ``(M,)``, the chosen samples.
        k: 1 ≤ k ≤ N − 1.
        memory: as in `siutils.kneighbors`.

    Returns:
        Int64 ``(M, k)`` on the CPU, nearest first, equal distances by the lower index.

    >>> nearest_others(torch.tensor([[0.0], [0.0], [0.0], [2.0]]), torch.tensor([1, 3]), 2).tolist()
    [[0, 2], [0, 1]]
    """
    queries = features[rows.to(features.device)]
    nearest = kneighbors(features, k + 1, queries=queries, memory=memory).indices.cpu()
    keep = nearest != rows[:, None]
    keep[keep.all(dim=1), k] = False  # more than k copies of lower index: the sample is not listed
    return nearest[keep].view(len(rows), k)


def neighbors_among(features: Tensor, rows: Tensor, k: int, memory: float = math.inf) -> Tensor:
    """Searches the k nearest neighbors of chosen samples among each other, a block at a time.

    Args:
        features: real ``(N, D)``.
        rows: int64 ``(M,)``, the chosen samples, ascending.
        k: 1 ≤ k ≤ M − 1.
        memory: as in `siutils.kneighbors`.

    Returns:
        Int64 ``(M, k)`` on the CPU, places in ``rows``, nearest first.

    >>> neighbors_among(torch.tensor([[0.0], [0.5], [1.0], [3.0]]), torch.tensor([0, 2, 3]), 1)
    tensor([[1],
            [0],
            [1]])
    """
    blocks = max(1, min(-(-len(rows) * features.shape[1] // BLOCK), len(rows) // (k + 1)))
    nearest, parts = [], rows.to(features.device).tensor_split(blocks)
    for own in parts:
        queries, near, start = features[own], [], 0
        for part in parts:
            others = features[part] if part is not own else queries
            here = kneighbors(others, k, None if part is own else queries, memory=memory)
            near.append((here.distances, here.indices + start))
            start += len(part)
        distances, indices = (torch.cat(n, dim=1) for n in zip(*near, strict=True))
        pairs = own.repeat_interleave(indices.shape[1]), torch.cat(parts)[indices].flatten()
        squared = squared_distances(features, features, *pairs).view_as(distances)
        order = squared.argsort(dim=1, stable=True)  # different squares can have the same root
        order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))
        nearest.append(indices.gather(1, order[:, :k]).cpu())
    return torch.cat(nearest)


def run_lengths(hits: Tensor) -> Tensor:
    """Counts the equal values that each row begins with; negative for misses.

    Args:
        hits: bool ``(N, k)`` of `siutils.separation.indices.neighbor_hits`.

    Returns:
        Int64 ``(N,)``; ±k where the run fills the row.

    >>> run_lengths(torch.tensor([[True, True, False], [False, True, True]])).tolist()
    [2, -1]
    """
    same = (hits == hits[:, :1]).cummin(dim=1).values
    return same.sum(dim=1) * (2 * hits[:, 0].long() - 1)


def counted_runs(squared: Tensor, hits: Tensor) -> Tensor:
    """Counts the equal hits that each row begins with, once it is ordered by (distance, index).

    It takes no sort: a run ends at the nearest candidate whose hit is another.

    Args:
        squared: float64 ``(M, N)``, squared distances of all candidates, infinite for none.
        hits: bool ``(M, N)``; each row has hits and misses among its candidates.

    Returns:
        Int64 ``(M,)``, as `run_lengths`.

    >>> counted_runs(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[True, False, False]])).tolist()
    [-2]
    """
    place, lengths = torch.arange(squared.shape[1], device=squared.device), []
    for others in (~hits, hits):
        near = squared.where(others, torch.inf)
        least = near.amin(dim=1, keepdim=True)
        end = (near == least).int().argmax(dim=1, keepdim=True)
        lengths.append(((squared < least) | ((squared == least) & (place < end))).sum(dim=1))
    return lengths[0].where(lengths[0] > 0, -lengths[1])


def separation_score(
    hits: Tensor,
    same: Tensor,
    candidates: int,
    search: Callable[[Tensor, int], Tensor],
    count: Callable[[Tensor], Tensor],
) -> Tensor:
    """Counts the nearest neighbors in a row that share the label, or, negative, that do not.

    Args:
        hits: bool ``(N, k)``, what is known of the nearest neighbors.
        same: int64 ``(N,)``, how many of a sample's candidates share its label: no run is longer.
        candidates: how many neighbors a sample can have.
        search: ``search(rows, k)`` returns the hits ``(len(rows), k)`` of chosen samples; it is
            called, ever deeper, only for samples whose run fills what is known of them.
        count: ``count(rows)`` returns the scores of chosen samples by `counted_runs`, where a
            search would list a large part of the candidates.

    Returns:
        Int64 ``(N,)``, never 0.

    Source:
        ``data_score_si_anti_si`` of A. Kalhor's class (where all labels equal, it gives 0 instead
        of the run's length).

    >>> def search(rows, k):
    ...     return torch.tensor([[True, True, False]])[:, :k]
    >>> separation_score(torch.tensor([[True]]), torch.tensor([2]), 99, search, len).tolist()
    [2]
    """
    score, known = run_lengths(hits), hits.shape[1]
    score[same == 0], score[same == candidates] = -candidates, candidates  # no search can add to it
    longest = torch.where(score > 0, same, candidates - same)
    while len(rows := ((score.abs() == known) & (longest > known)).nonzero().flatten()):
        known = min(STEP * known, int(longest[rows].max()))
        if known > candidates / 8:
            for part in rows.split(max(1, ENTRIES // candidates)):
                score[part] = count(part)
            break
        for part in rows.split(max(1, ENTRIES // known)):
            score[part] = run_lengths(search(part, known))
    return score
