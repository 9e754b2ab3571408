"""One level of the search: products of sketches rule out, what they leave is measured exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from siutils.neighbors import sketch as _sketch
from siutils.neighbors.pairs import (
    Job,
    Neighbors,
    by_value,
    in_steps,
    is_out_of_memory,
    squared_distances,
)
from siutils.neighbors.sketch import Frame, Sketch


class Screen:
    """One level: maxima of products over blocks, thresholds, candidates, exact distances.

    Where the rows compared at once have more than ``limit`` candidates on average, those with more
    are given up.

    Attributes:
        refs: sketches of the references.
        left: sketches of the queries; ``refs`` itself where all references are searched.
        whole: all references are searched among themselves.
        place: where each row stands among the references (-1: nowhere); None for foreign queries.
        first: frame of the first look, at bfloat16 products where these are fast.
    """

    def __init__(
        self, job: Job, frame: Frame, ids: Tensor, refs: Tensor, limit: int, out: Neighbors
    ) -> None:
        self.job, self.frame, self.limit, self.out = job, frame, limit, out
        n = len(refs)
        single = frame.dtype == torch.float32
        # where float64 products could not settle it, float32 differences cannot either
        self.quick = job.quick and single
        halve = single and frame.sieve and n >= _sketch.HALVE
        halve = halve and _sketch.has_bfloat16(job.x.device)
        room = job.room * 3 // 4
        self.refs = Sketch(job.x, refs, frame, _block_size(n, job.k), in_steps, room, halve)
        self.whole = job.own and n == len(ids) == len(job.x)
        self.left = self.refs if self.whole else self._sketch_queries(ids, room, halve)
        self.place = self._places(ids) if job.own else None
        self.partners = _sketch.partner_factors(self.refs.norms, frame)
        self.block_norms = self.refs.block_norms()
        self.first = replace(frame, half=self._most_moved())

    def _sketch_queries(self, ids: Tensor, room: int, halve: bool) -> Sketch:
        """Sketches of the queries in the room that the references leave."""
        room -= self.refs.bytes
        if self.frame.basis is None:
            room //= 8  # each is used once, and cheaply made again
        return Sketch(self.job.q, ids, self.frame, 1, in_steps, room, halve)

    def _places(self, ids: Tensor) -> Tensor:
        if self.whole:
            return torch.arange(self.refs.padded, device=ids.device)
        places = torch.full((len(self.job.x),), -1, dtype=torch.int64, device=ids.device)
        places[self.refs.ids] = torch.arange(len(self.refs.ids), device=ids.device)
        return places[ids]

    def _most_moved(self) -> float:
        """Most that bfloat16 moves a sketch, over its length; 0 where bfloat16 is not used."""
        halves = (self.left.half, self.refs.half)
        return max(halves) if min(halves) > 0 and max(halves) < 2.0**-7 else 0.0

    def run(self) -> Tensor:
        """Fills in what can be settled; returns the ids of the other queries."""
        total, low, failed = self.left.padded, 0, []
        kept = self.refs.bytes + (0 if self.whole else self.left.bytes)
        dtype = torch.bfloat16 if self.first.half else self.frame.dtype
        room = max(self.job.room - kept, 2**27) // (self.refs.blocks * dtype.itemsize)
        group = max(1, min(total, room))
        while low < total:
            high = min(low + group, total)
            try:
                best = self._maxima(low, high, dtype, symmetric=self.whole and high - low == total)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if high - low == 1:
                    need = f"{self.refs.blocks * dtype.itemsize:,} bytes"
                    raise MemoryError(f"kneighbors cannot get {need}; {error}") from error
                group = (high - low) // 2
                continue
            rows = min(high, len(self.left.ids)) - low

            def work(start: int, stop: int, low: int = low, best: Tensor = best) -> None:
                part = best[:, start:stop].T.contiguous()
                failed.append(self._resolve(low + start, low + stop, part))

            size = 2**26 if self.refs.kept else 2**28  # bytes; seldom make references anew
            fit = size // (self.frame.width * self.frame.dtype.itemsize)
            few = max(1, min(4096, fit, 2**23 // self.limit))
            in_steps(rows, self.job.chunk or few, work, "comparing")
            low = high
        return torch.cat(failed)

    def _maxima(self, low: int, high: int, dtype: torch.dtype, symmetric: bool) -> Tensor:
        """The largest product of rows low … high with each block of references: (blocks, rows).

        Each row's product with itself is left out. With ``symmetric`` (rows are the references)
        a tile serves its rows and its columns.
        """
        refs, block = self.refs, self.refs.block
        best = refs.norms.new_empty(refs.blocks, high - low, dtype=dtype)
        unit = block if symmetric else 1
        side = max(1, self._tile() // unit)

        def work(start: int, stop: int) -> None:
            start, stop = start * unit, stop * unit
            left = self._factor(self.left, low + start, low + stop, left=True)
            tile = min(stop - start, side * unit)
            across = max(1, tile // block) * block
            room = left.new_empty(tile * across)
            for j in range(start if symmetric else 0, refs.padded, across):
                right = self._factor(refs, j, min(j + across, refs.padded))
                jb = slice(j // block, j // block + len(right) // block)
                for i in range(start, min(stop, j + 1) if symmetric else stop, tile):
                    a = left[i - start : i - start + tile]
                    s = room[: len(a) * len(right)].view(len(a), len(right))
                    torch.mm(a, right.T, out=s)
                    self._hide_self(s, low + i, j)
                    across_rows = s.view(len(a), -1, block)
                    best[jb, i : i + len(a)] = across_rows.amax(2).T
                    if symmetric:
                        ib = slice(i // block, i // block + len(a) // block)
                        best[ib, j : j + len(right)] = s.view(-1, block, len(right)).amax(1)

        size = self.job.chunk // unit if self.job.chunk else 4 * side
        in_steps(best.shape[1] // unit, max(1, size), work, "screening")
        return best

    def _factor(self, sketch: Sketch, start: int, stop: int, left: bool = False) -> Tensor:
        if self.first.half:
            return sketch.halves(start, stop, left)
        points = sketch.rows(start, stop)
        return _sketch.swapped(points) if left else points

    def _tile(self) -> int:
        """Rows and columns of a tile: a product that stays in the cache, of bounded factors."""
        side, numbers = (8192, 2**28) if self.refs.x.is_cuda else (1024, 2**24)
        return max(16, min(side, numbers // self.frame.width))

    def _hide_self(self, s: Tensor, row: int, column: int, rows: Tensor | None = None) -> None:
        """Sets products of samples with themselves to -infinity."""
        if self.place is None:
            return
        if self.whole and rows is None and (row >= column + s.shape[1] or column >= row + len(s)):
            return
        place = self.place[row : row + len(s)] if rows is None else self.place[rows]
        at = place - column
        inside = ((at >= 0) & (at < s.shape[1])).nonzero()[:, 0]
        s[inside, at[inside]] = -torch.inf

    def _resolve(self, low: int, high: int, best: Tensor) -> Tensor:
        """Settles rows low…high by their maxima (rows, blocks); returns the ids that failed."""
        frame = self.frame
        norms = self.left.norms[low:high]
        reach = self._reach(low, high, best, norms)
        reach.clamp_(max=1e12)
        first = _sketch.floor_factors(reach, norms, self.first)
        hit = best >= -(first @ _sketch.partner_factors(self.block_norms, frame).T)
        factors = _sketch.floor_factors(reach, norms, frame)
        count = torch.zeros(high - low, dtype=torch.int64, device=hit.device)
        passed = torch.ones_like(count, dtype=torch.bool)
        pairs, held = [], 0
        for b, rows, s in self._visit(low, high, hit):
            partners = self.partners[b * self.refs.block : (b + 1) * self.refs.block]
            survivors = (s >= -(factors[rows] @ partners.T)).nonzero()
            row = rows[survivors[:, 0]]
            count += torch.bincount(row, minlength=high - low)
            pairs.append(torch.stack([row, survivors[:, 1] + b * self.refs.block]))
            held += len(row)
            if held > self.limit * (high - low):  # too many on average: give up the worst rows
                passed &= count <= self.limit
                pairs = [part[:, passed[part[0]]] for part in pairs]
                held = sum(part.shape[1] for part in pairs)
        row, col = torch.cat(pairs, dim=1)
        keep = passed[row] & self._real(row + low, col)
        row, col = row[keep], col[keep]
        if self.left.fine is not None and self.refs.fine is not None:
            keep = self._fine(low, row, col, reach)
            row, col = row[keep], col[keep]
        if bool((torch.bincount(row, minlength=len(passed))[passed] < self.job.k).any()):
            raise RuntimeError("a bound ruled out a neighbor: please report this data")
        self._settle(low, passed, row, col)
        return self.left.ids[low:high][~passed]

    def _reach(self, low: int, high: int, best: Tensor, norms: Tensor) -> Tensor:
        """Upper bounds (scaled) of the k-th distances of rows low…high."""
        job, k = self.job, self.job.k
        if self.frame.basis is not None or self.first.half:  # look closer at the best blocks
            blocks = best.topk(min(k + 2, best.shape[1]), dim=1).indices
            hit = torch.zeros_like(best, dtype=torch.bool).scatter_(1, blocks, True)
        if self.frame.basis is None:
            if self.first.half:
                best = torch.full_like(best, -torch.inf, dtype=self.frame.dtype)
                for b, rows, s in self._visit(low, high, hit):
                    best[rows, b] = s.amax(1)
            upper = _sketch.upper_distances(best, norms[:, None], self.block_norms, self.frame)
            return upper.topk(k, dim=1, largest=False).values[:, -1]
        pairs = [  # the best partner in each of these blocks
            torch.stack([rows, s.max(1).indices + b * self.refs.block])
            for b, rows, s in self._visit(low, high, hit)
        ]
        row, col = torch.cat(pairs, dim=1)
        order = row.argsort(stable=True)
        row, col = row[order], col[order]
        real = self._real(row + low, col)
        _, upper = self._measure(row + low, col.clamp(max=len(self.refs.ids) - 1))
        upper = upper.masked_fill_(~real, torch.inf).view(high - low, -1)
        kth = upper.topk(k, dim=1, largest=False).values[:, -1]
        return kth.sqrt_().mul_(job.scale / job.unit * _sketch.WIDEN)

    def _visit(self, low: int, high: int, hit: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each block: the rows that hit it and their products with it."""
        left = _sketch.swapped(self.left.rows(low, high))
        rows = hit.T.nonzero()[:, 1]
        for b, part in enumerate(rows.split(hit.sum(0).tolist())):
            if len(part):
                start = b * self.refs.block
                s = left.index_select(0, part) @ self.refs.rows(start, start + self.refs.block).T
                self._hide_self(s, low, start, part + low)
                yield b, part, s

    def _real(self, place: Tensor, col: Tensor) -> Tensor:
        real = col < len(self.refs.ids)
        return real if self.place is None else real & (self.place[place] != col)

    def _measure(self, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of squared distances: tight ones, by float32 differences."""
        job = self.job
        q_ids, x_ids = self.left.ids[row], self.refs.ids[col]
        if not self.quick:
            exact = squared_distances(job.q, job.x, q_ids, x_ids, job.unit)
            return exact, exact
        out = _rounded_squares(job.q, q_ids, job.x, x_ids, torch.float32)
        # differences and squares round once each, the sum of D terms D - 1 times in any order
        error = 2 * _sketch.summation(job.x.shape[1] + 4, 2.0**-24)
        tiny = job.x.shape[1] * 2.0**-120
        return out * (1 - error) - tiny, out * (1 + error) + tiny

    def _fine(self, low: int, row: Tensor, col: Tensor, reach: Tensor) -> Tensor:
        """True for each pair that the fine sketches cannot rule out."""
        left, refs = self.left, self.refs
        assert left.fine is not None
        assert refs.fine is not None
        out = _rounded_squares(left.fine, row + low, refs.fine, col, self.frame.dtype)
        norms = left.norms[row + low] + refs.norms[col]
        limit = (reach[row] + self.frame.eta * norms).square() + _sketch.TINY[self.frame.dtype]
        error = 2 * _sketch.summation(refs.fine.shape[1] + 4, self.frame.roundoff)
        return out * (1 - error) <= limit * _sketch.WIDEN

    def _settle(self, low: int, passed: Tensor, row: Tensor, col: Tensor) -> None:
        """Writes the k nearest of the candidates of each row that passed."""
        job, k = self.job, self.job.k
        if self.quick:
            lower, upper = self._measure(row + low, col)
            order, first = by_value(row, upper, len(passed))
            kth = torch.full((len(passed),), torch.inf, dtype=torch.float64, device=row.device)
            kth[passed] = upper[order][first[passed] + k - 1]
            keep = lower <= kth[row]
            row, col = row[keep], col[keep]
        samples = self.refs.ids[col]
        order = samples.argsort()
        row, samples = row[order], samples[order]
        ids = self.left.ids[low : low + len(passed)]
        squared = squared_distances(job.q, job.x, ids[row], samples, job.unit)
        order, first = by_value(row, squared, len(passed))
        pick = order[first[passed][:, None] + torch.arange(k, device=row.device)]
        self.out.distances[ids[passed]] = squared[pick]
        self.out.indices[ids[passed]] = samples[pick]


def _block_size(n: int, k: int) -> int:
    """References per block.

    Many blocks bound tightly, so there are `BLOCKS` or more. Few references make fewer and larger
    blocks, of up to 64, so that their products are worth multiplying.
    """
    for_tight_bounds = -(-n // max(_sketch.BLOCKS, 8 * k))
    for_fast_products = min(64, n // (32 * k))
    return max(for_tight_bounds, for_fast_products)


def _rounded_squares(
    a: Tensor, rows: Tensor, b: Tensor, columns: Tensor, dtype: torch.dtype
) -> Tensor:
    """Squared distances of pairs a[rows], b[columns] with the rounding of ``dtype``: (P,)."""
    out = torch.empty(len(rows), dtype=dtype, device=rows.device)
    step = max(1, _sketch.PIECE // a.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        terms = a.index_select(0, rows[part]).to(dtype)
        terms.sub_(b.index_select(0, columns[part]))
        out[part] = terms.square_().sum(1)
    return out.double()
