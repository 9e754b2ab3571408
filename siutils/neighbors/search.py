"""Exact nearest neighbors: `kneighbors`, its checks, and the levels of its search.

`pairs` measures distances in float64 and merges results, `sketch` has the bounds and their proof,
`projection` chooses the dimensions to search by, `screen` searches under the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siutils.core import as_matrix, check_finite, resolve_device
from siutils.neighbors import sketch as _sketch
from siutils.neighbors.pairs import (
    Job,
    Neighbors,
    block_neighbors,
    in_steps,
    is_out_of_memory,
    merge,
    no_neighbors,
    scattered,
    settle_by_products,
    without_copies,
)
from siutils.neighbors.projection import choose
from siutils.neighbors.screen import Screen
from siutils.neighbors.sketch import Frame

REFERENCES = 4096  # compared at once when nothing is ruled out
METHODS = ("auto", "projection", "brute", "exact")


def kneighbors(
    features: Any,
    k: int,
    queries: Any = None,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
    device: str | torch.device | None = None,
    memory: float = math.inf,
) -> Neighbors:
    """Find the k nearest neighbors of every sample, exactly.

    The result is that of a float64 brute force over the given values, whatever the method, the
    chunk size, the number of threads or the device. Squared distances are float64 differences,
    squared and summed by a fixed tree (see `squared_distances`), ordered by (value, index).
    A difference whose square underflows counts as 0: one below 1e-161, or, on scales beyond 1e90
    or 1e-90, below 1e-297 of the features' spread.

    Most samples are proven too far away before that. Let Q have orthonormal columns, and let a
    sample v keep Q'v and rho, the length of v - QQ'v. By Pythagoras and the triangle inequality
    |v - w|^2 >= |Q'v - Q'w|^2 + (rho_v - rho_w)^2, and a matrix product over K terms is off by at
    most K u / (1 - K u) times the sum of absolute products (u the unit roundoff; Higham 2002,
    section 3.1). If such a product, with that error against it, is beyond the distance that k
    measured samples certainly reach, these are nearer. Whatever cannot be ruled out so is measured
    in float64: lower precision and projections never decide between neighbors.

    Args:
        features: (N, D) reference samples; torch or NumPy, any real dtype, taken as the values
            they are. Memory maps are read by parts, but for rows that are not contiguous and dtypes
            that torch does not have (foreign byte order, uint16 to uint64), which are copied.
        k: Number of neighbors, at least 1.
        queries: (M, D) samples to search for; without it each sample of ``features`` is searched
            among all others (itself excluded by index, so duplicates do count).
        method: "brute" rules out by float32 products over all dimensions, "projection" by fewer
            dimensions, "auto" chooses by measuring on a few samples, "exact" rules nothing out
            (slow: the reference of the others).
        chunk_size: Rows per step; by default what suits the device. Never changes a result.
        device: Where to compute; default is where ``features`` are. On CUDA they are copied there
            as a whole.
        memory: Bytes that the search should keep to beside the features, some hundred MB at the
            least; by default a gigabyte and a quarter of the features' size.

    Returns:
        Neighbors: distances and indices, both (M, k), on the device of ``features``.

    Raises:
        ValueError: NaN or infinity, wrong shapes, too few samples, unknown method or device.
        RuntimeError: the device asked for is not there.
        TypeError: complex or non-numeric input, ``k`` not an integer.
        MemoryError: not even a chunk of one row fits.

    >>> kneighbors([[0.0], [1.0], [3.0]], k=1)
    Neighbors(distances=tensor([[1.],
            [1.],
            [2.]], dtype=torch.float64), indices=tensor([[1],
            [0],
            [1]]))
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    x = as_matrix(features, "features")
    q = x if queries is None else as_matrix(queries, "queries")
    if q.shape[1] != x.shape[1]:
        raise ValueError(
            f"queries have {q.shape[1]} dimensions but features have {x.shape[1]}; they must agree"
        )
    home = x.device
    k = _positive(k, "k")
    available = len(x) - (queries is None)
    if k > available:
        raise ValueError(f"k={k} neighbors were asked for, but each sample has only {available}")
    if chunk_size is not None:
        chunk_size = _positive(chunk_size, "chunk_size")
    target = home if device is None else resolve_device(device)
    x = x.to(target)
    q = x if queries is None else q.to(target)
    # the caller's autocast would turn the products to half precision, outside their bound
    with torch.autocast(target.type, enabled=False):
        job = _prepare(x, q, k, queries is None, chunk_size, memory)
        nearest = _exhaust(job) if method == "exact" else _search(job, method)
    return Neighbors((_sqrt(nearest.distances) / job.unit).to(home), nearest.indices.to(home))


def _prepare(x: Tensor, q: Tensor, k: int, own: bool, chunk: int | None, memory: float) -> Job:
    low, high = _extent(x, "features")
    if not own:
        low_q, high_q = _extent(q, "queries")
        low, high = torch.minimum(low, low_q), torch.maximum(high, high_q)
    spread = float((high - low).max())
    if not math.isfinite(spread * math.sqrt(x.shape[1])):
        raise ValueError("features span more than float64 can hold; scale them down")
    exponent = math.frexp(spread)[1] if spread else 0
    scale = 2.0 ** max(-1000, min(1000, -exponent))
    # brings the largest square to 2^960, so that the least of a wide range stay above zero
    unit = 2.0 ** max(-1000, min(1000, 480 - exponent)) if abs(exponent) > 300 else 1.0
    # mean of a few groups, then their median: near the mean, yet no outlier moves it
    count = max(64, min(_sketch.SAMPLE, 2**25 // x.shape[1]))
    groups = _sketch.spread_out(len(x), count, x.device).tensor_split(min(9, len(x)))
    center = torch.stack([x[g].double().mul_(1 / len(g)).sum(0) for g in groups]).median(0).values
    return Job(x, q, k, own, unit, scale, center, chunk, memory)


def _extent(values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each dimension, float64; refuses NaN and infinity."""
    lows = highs = values[0].double()
    for part in values.split(max(1, 2**22 // values.shape[1])):
        bounds = torch.aminmax(part, dim=0)  # NaN stays: minimum and maximum hand it on
        lows, highs = torch.minimum(lows, bounds.min), torch.maximum(highs, bounds.max)
    if not bool((torch.isfinite(lows) & torch.isfinite(highs)).all()):
        check_finite(values, name)
    return lows, highs


def _exhaust(job: Job) -> Neighbors:
    """All distances in float64, block by block; squared."""
    out = no_neighbors(len(job.q), job.k, job.x.device)

    def work(start: int, stop: int) -> None:
        search_block = partial(
            block_neighbors, k=job.k, first_query=start if job.own else None, unit=job.unit
        )
        best = Neighbors(out.distances[start:stop], out.indices[start:stop])
        for first in range(0, len(job.x), REFERENCES):
            references = job.x[first : first + REFERENCES]
            block = search_block(job.q[start:stop], references, first=first)
            best = merge(best, block)
        out.distances[start:stop], out.indices[start:stop] = best

    in_steps(len(job.q), job.chunk or 256, work, "measuring")
    return out


def _search(job: Job, method: str) -> Neighbors:
    """Goes through the levels; each settles what it can and leaves the other rows to the next."""
    out = no_neighbors(len(job.q), job.k, job.x.device)
    ids = torch.arange(len(job.q), device=job.x.device)
    refs = without_copies(job)
    order: Tensor | None = None
    for frame, limit in _levels(job, len(refs), method):
        if limit == len(refs):  # the last level: many distances are equal
            ids = settle_by_products(job, ids, refs, out)
        if len(ids):
            order = scattered(job, refs) if order is None else order
            ids = Screen(job, frame, ids, order, limit, out).run()
        if not len(ids):
            break
    return out


def _levels(job: Job, n: int, method: str) -> Iterator[tuple[Frame, int]]:
    """Frames to search in, each with the candidates per row that are too many on average."""
    single = job.short and _sketch.full_precision(job.x.device)
    first = torch.float32 if single else torch.float64
    base = Frame(job.center, job.scale, first)
    forced = method == "projection"
    if forced or (method == "auto" and min(n, len(job.q)) >= 8192):
        frame = _projection(job, base, forced)
        if frame is not None:
            yield frame, max(64 + 4 * job.k, n // 64)
    yield base, max(64 + 4 * job.k, n // 32)
    yield replace(base, dtype=torch.float64), n


def _projection(job: Job, base: Frame, forced: bool) -> Frame | None:
    try:
        cost = 170 if job.quick else 500
        return choose(job.x, job.k, base, forced, cost, job.room * 3 // 4)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None  # the search over all dimensions gets by with smaller steps


def _sqrt(squared: Tensor) -> Tensor:
    # torch's CPU sqrt is off by one bit in places (MKL); NumPy's and CUDA's are correctly rounded
    return squared.sqrt() if squared.is_cuda else torch.from_numpy(np.sqrt(squared.numpy()))


def _positive(value: Any, argument: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    number = int(value.__index__())
    if number < 1:
        raise ValueError(f"{argument} must be at least 1, got {number}")
    return number
