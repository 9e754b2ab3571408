"""Distances of pairs of samples in float64, results of blocks, and how to merge them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from siutils.neighbors.sketch import PIECE, spread_out

DELAY = 2  # seconds without a progress bar
_NO_MEMORY = ("allocate memory", "out of memory", "could not create a primitive")  # last: oneDNN


class Neighbors(NamedTuple):
    """Nearest neighbors of M samples, nearest first; equal distances are ordered by index.

    Attributes:
        distances: (M, k) float64, Euclidean.
        indices: (M, k) int64, rows of the reference features.
    """

    distances: Tensor
    indices: Tensor


def squared_distances(q: Tensor, x: Tensor, row: Tensor, col: Tensor, unit: float = 1) -> Tensor:
    """Squared distances of pairs q[row], x[col]: (P,) float64, bit-identical everywhere.

    Differences are taken in float64, squared, and summed by halving: the second half of the terms
    is added to the first until one is left. These are elementwise operations, so neither device
    nor batch nor thread count can change a bit, as it can in a matrix product or ``sum``.
    ``unit``, a power of two, multiplies the differences (exactly) where squares would leave the
    range of float64.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    >>> squared_distances(x, x, torch.tensor([0]), torch.tensor([1]))
    tensor([25.], dtype=torch.float64)
    """
    out = torch.empty(len(row), dtype=torch.float64, device=x.device)
    step = max(1, PIECE // x.shape[1])
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        terms = q.index_select(0, row[part]).double()  # a copy
        terms -= x.index_select(0, col[part])
        if unit != 1:
            terms *= unit
        terms.square_()
        width = terms.shape[1]
        while width > 1:
            half = (width + 1) // 2
            terms[:, : width - half] += terms[:, half:width]
            width = half
        out[part] = terms[:, 0]
    return out


def block_neighbors(
    queries: Tensor,
    references: Tensor,
    k: int,
    *,
    first_query: int | None = None,
    first: int = 0,
    unit: float = 1,
) -> Neighbors:
    """The k nearest of one block of references for one block of queries, by *squared* distance.

    Blocks over all references, combined with `merge` in any order and grouping, give the whole
    result, wherever each was computed.

    Args:
        queries: (M, D) block; references: (R, D) block.
        k: Neighbors wanted; where fewer are left, the rest is (infinity, -1).
        first_query: Global index of the first query, to exclude it from its own neighbors; None
            if queries are no references.
        first: Global index of the first reference; indices returned are global.
        unit: See `squared_distances`.

    >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
    >>> left = block_neighbors(x, x[:2], 2, first_query=0)
    >>> right = block_neighbors(x, x[2:], 2, first_query=0, first=2)
    >>> merge(left, right).indices.tolist(), merge(left, right).distances[0].tolist()
    ([[1, 2], [0, 2], [3, 1], [2, 1]], [1.0, 9.0])
    """
    m, n = len(queries), len(references)
    row = torch.arange(m, device=queries.device).repeat_interleave(n)
    col = torch.arange(n, device=queries.device).repeat(m)
    squared = squared_distances(queries, references, row, col, unit)
    if first_query is not None:
        squared[row + first_query == col + first] = torch.inf
    block = Neighbors(squared.view(m, n), (col + first).view(m, n))
    return merge(no_neighbors(m, k, queries.device), block)


def merge(a: Neighbors, b: Neighbors) -> Neighbors:
    """The nearest of two results for the same queries over disjoint references.

    Associative and commutative: it keeps the first k by (distance, index), as many as ``a`` has.
    """
    distances = torch.cat([a.distances, b.distances], dim=1)
    indices = torch.cat([a.indices, b.indices], dim=1)
    indices = indices.masked_fill(distances.isinf(), -1)
    order = indices.argsort(dim=1, stable=True)
    order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))
    order = order[:, : a.distances.shape[1]]
    return Neighbors(distances.gather(1, order), indices.gather(1, order))


@dataclass(frozen=True)
class Job:
    """One call of `kneighbors` with its checked arguments and the scale of its data."""

    x: Tensor  # (N, D) references
    q: Tensor  # (M, D) queries
    k: int
    own: bool  # queries are the references: exclude each from its own neighbors
    unit: float  # power of two that keeps float64 squares in range; 1 for ordinary data
    scale: float  # power of two that brings the spread of the data to about 1
    center: Tensor  # (D,) float64, near the mean
    chunk: int | None  # rows per step, where the caller asked for a number
    memory: float = math.inf  # bytes that the search may take beside the features

    @property
    def room(self) -> int:
        """Bytes to work in beside the features: a quarter of theirs, and a billion, if allowed."""
        sets = [self.x] if self.own else [self.x, self.q]
        size = sum(s.numel() * s.element_size() for s in sets)
        return int(min(10**9 + size // 4, self.memory))

    @property
    def short(self) -> bool:
        """True if dimensions are few enough for a useful error bound of float32 sums."""
        return self.x.shape[1] < 2**20

    @property
    def quick(self) -> bool:
        """True if float32 differences are exact up to rounding, so that they can rule out pairs."""
        exact = self.x.dtype not in (torch.float64, torch.int32, torch.int64)
        same = exact and self.q.dtype == self.x.dtype
        return same and self.short and 2.0**-40 < self.scale < 2.0**40


def no_neighbors(rows: int, k: int, device: torch.device) -> Neighbors:
    """A result in which every neighbor is still missing: distance infinity, index -1."""
    distances = torch.full((rows, k), torch.inf, dtype=torch.float64, device=device)
    return Neighbors(distances, torch.full((rows, k), -1, dtype=torch.int64, device=device))


def in_steps(total: int, size: int, work: Callable[[int, int], None], what: str) -> None:
    """Calls work(start, stop) over range(total); halves the steps where memory runs out."""
    from tqdm import tqdm

    start = 0
    # shown only where someone watches, and only if it takes longer
    with tqdm(total=total, desc=what, delay=DELAY, leave=False, disable=None) as bar:
        while start < total:
            stop = min(start + size, total)
            try:
                work(start, stop)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if stop - start == 1:
                    raise MemoryError(
                        f"kneighbors is out of memory while {what} a single row; {error}"
                    ) from error
                size = (stop - start) // 2
                continue
            bar.update(stop - start)
            start = stop


def is_out_of_memory(error: Exception) -> bool:
    """True if PyTorch or Python raised the error for lack of memory."""
    by_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return by_type or any(words in str(error) for words in _NO_MEMORY)


def without_copies(job: Job) -> Tensor:
    """Indices, ascending, of the references that can be among the k nearest of any query.

    In a group of identical samples only the first k + 1 can: the others are as near, and later.
    """
    x, d = job.x, job.x.shape[1]
    ids = torch.arange(len(x), device=x.device)
    generator = torch.Generator().manual_seed(0)
    away = torch.rand(d, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
    point = (job.center + away / job.scale)[None]
    few = torch.arange(0, d, -(-d // 16), device=x.device)  # a quick look first
    look = _fingerprints(x[:, few], ids, point[:, few], job.unit)
    _, group, sizes = torch.unique(look, return_inverse=True, return_counts=True)
    suspects = ids[sizes[group] > job.k + 1]
    if len(suspects) <= len(x) // 20:
        return ids
    keys, order = _fingerprints(x, suspects, point, job.unit).sort(stable=True)
    suspects = suspects[order]
    counts = torch.unique_consecutive(keys, return_counts=True)[1]
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    # equal fingerprints are no proof: count the rows that equal the first of their group
    same = torch.empty_like(first, dtype=torch.bool)
    step = max(1, PIECE // d)
    parts = (same.split(step), suspects.split(step), suspects[first].split(step))
    for out, rows, leaders in zip(*parts, strict=True):
        out.copy_((x[rows] == x[leaders]).all(dim=1))
    before = same.cumsum(0) - same.long()
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[suspects[same & (before - before[first] > job.k)]] = False
    return ids[keep]


def scattered(job: Job, refs: Tensor) -> Tensor:
    """References in random order, so that the k nearest lie in different blocks, far ones last.

    A block's bound follows its sample farthest from the center: outliers would spoil all blocks.
    """
    order = refs[spread_out(len(refs), len(refs), refs.device)]
    norms = torch.empty(len(refs), dtype=torch.float32, device=refs.device)
    wide = torch.promote_types(job.x.dtype, torch.float32)
    center, step = job.center.to(wide), max(1, 2**20 // job.x.shape[1])
    for out, ids in zip(norms.split(step), order.split(step), strict=True):
        v = job.x.index_select(0, ids).to(wide).sub_(center).mul_(job.scale)
        out.copy_(torch.linalg.vector_norm(v, dim=1))
    far = torch.frexp(norms / norms.median().clamp(min=2.0**-60)).exponent.clamp(min=1)
    return order[far.argsort(stable=True)]


def _fingerprints(x: Tensor, ids: Tensor, point: Tensor, unit: float) -> Tensor:
    """Squared distance of each sample to a point: the same number for identical samples."""
    return squared_distances(x, point, ids, torch.zeros_like(ids), unit)


def by_value(row: Tensor, value: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Order of pairs by (row, value), stable, and where each of the rows begins in it."""
    order = value.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    starts = torch.bincount(row, minlength=rows).cumsum(0)
    return order, torch.cat([starts.new_zeros(1), starts[:-1]])


def settle_by_products(job: Job, ids: Tensor, refs: Tensor, out: Neighbors) -> Tensor:
    """Settles queries by float64 products where these are exact; returns the ids that are left.

    If all values are multiples of a power of two, and the differences from one sample are at most
    25 bits long, then |v|^2, |w|^2 and all partial sums of vw are integers below 2^53 of its
    square: |v|^2 + |w|^2 - 2 vw has no rounding, in whatever order it is summed, and neither have
    `squared_distances`. Counts, pixels, grids and one-hot rows are such data, and there thousands
    of distances are equal, so that no bound can rule anything out.
    """
    lattice = _lattice(job)
    if lattice is None:
        return ids
    scale, origin = lattice

    def points(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows).double().mul_(scale).sub_(origin)

    def work(start: int, stop: int) -> None:
        rows = ids[start:stop]
        left = points(job.q, rows)
        squared = torch.empty(len(rows), len(refs), dtype=torch.float64, device=refs.device)
        step = max(1, 2**21 // left.shape[1])
        for first in range(0, len(refs), step):
            right = points(job.x, refs[first : first + step])
            part = squared[:, first : first + step]
            part.copy_(right.square().sum(1)).sub_((left @ right.T).mul_(2))
        squared += left.square().sum(1)[:, None]
        if job.own:
            at = torch.searchsorted(refs, rows).clamp(max=len(refs) - 1)
            itself = (refs[at] == rows).nonzero()[:, 0]
            squared[itself, at[itself]] = torch.inf
        kth = squared.topk(job.k, dim=1, largest=False).values[:, -1:]
        equal = squared == kth
        hit = (squared < kth) | (equal & (equal.cumsum(1, dtype=torch.int32) <= job.k))
        row, col = hit.nonzero().T
        value = squared[row, col]
        order, begin = by_value(row, value, len(rows))
        pick = order[begin[:, None] + torch.arange(job.k, device=refs.device)]
        out.distances[rows] = value[pick] / scale**2
        out.indices[rows] = refs[col[pick]]

    in_steps(len(ids), job.chunk or max(1, 2**24 // len(refs)), work, "multiplying")
    return ids[:0]


def _lattice(job: Job) -> tuple[float, Tensor] | None:
    """A power of two that makes all values integers, short enough, and the first sample by it."""
    if job.unit != 1:
        return None
    sets = [job.x] if job.own else [job.x, job.q]
    parts = [part for x in sets for part in x.split(max(1, 2**20 // x.shape[1]))]
    first = job.x[:1].double()
    norm = max(float((part - first).square().sum(1).max()) for part in parts) ** 0.5
    scale = 2.0 ** (25 - math.frexp(norm)[1])
    for part in parts:
        v = part.double() * scale
        if not bool(((v == v.round()) & (v.abs() <= 2.0**52)).all()):
            return None
    return scale, first * scale
