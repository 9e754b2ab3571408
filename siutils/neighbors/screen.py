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

    More than ``limit`` candidates per row are too many, on average over the rows compared at once;
    only then are the rows that have more of them given up.
    """

    def __init__(
        self, job: Job, frame: Frame, ids: Tensor, refs: Tensor, limit: int, out: Neighbors
    ) -> None:
        self.job, self.frame, self.limit, self.out = job, frame, limit, out
        n, device = len(refs), job.x.device
        # where float64 products could not settle it, float32 differences cannot either
        self.quick = job.quick and frame.dtype == torch.float32
        # many blocks bound tightly; few samples rather make factors that are worth multiplying
        block = max(-(-n // max(_sketch.BLOCKS, 8 * job.k)), min(64, n // (32 * job.k)))
        halve = frame.sieve and frame.dtype == torch.float32 and n >= _sketch.HALVE
        halve = halve and _sketch.has_bfloat16(device)
        room = job.room * 3 // 4
        self.refs = Sketch(job.x, refs, frame, block, in_steps, room, halve)
        self.whole = job.own and n == len(ids) == len(job.x)
        self.place: Tensor | None = None  # where each row stands among the references
        if self.whole:
            self.left, self.place = self.refs, torch.arange(self.refs.padded, device=device)
        else:
            room -= self.refs.bytes
            if frame.basis is None:
                room //= 8  # what passes by once is cheaply made again
            self.left = Sketch(job.q, ids, frame, 1, in_steps, room, halve)
            if job.own:
                where = torch.full((len(job.x),), -1, dtype=torch.int64, device=device)
                where[self.refs.ids] = torch.arange(n, device=device)
                self.place = where[ids]
        self.partners = _sketch.partner_factors(self.refs.norms, frame)
        self.block_norms = self.refs.block_norms()
        # the first look is at bfloat16 products where these are fast, under a bound of their own
        both = self.left.half > 0 < self.refs.half
        half = max(self.left.half, self.refs.half)
        self.first = replace(frame, half=half if both and half < 2.0**-7 else 0.0)

    def run(self) -> Tensor:
        """Fill in what can be settled; return the ids of the other queries."""
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
        """Set products of samples with themselves to -infinity."""
        if self.place is None:
            return
        if self.whole and rows is None and (row >= column + s.shape[1] or column >= row + len(s)):
            return
        place = self.place[row : row + len(s)] if rows is None else self.place[rows]
        at = place - column
        inside = ((at >= 0) & (at < s.shape[1])).nonzero()[:, 0]
        s[inside, at[inside]] = -torch.inf

    def _resolve(self, low: int, high: int, best: Tensor) -> Tensor:
        """Settle rows low…high, given their maxima (rows, blocks); return the ids that failed."""
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
            found = (s >= -(factors[rows] @ partners.T)).nonzero()
            row = rows[found[:, 0]]
            count += torch.bincount(row, minlength=high - low)
            pairs.append(torch.stack([row, found[:, 1] + b * self.refs.block]))
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
        if self.frame.basis is None and not self.first.half:
            upper = _sketch.upper_distances(best, norms[:, None], self.block_norms, self.frame)
            return upper.topk(k, dim=1, largest=False).values[:, -1]
        # look closer at the best partner in each of the best blocks
        blocks = best.topk(min(k + 2, best.shape[1]), dim=1).indices
        hit = torch.zeros_like(best, dtype=torch.bool).scatter_(1, blocks, True)
        if self.frame.basis is None:
            best = torch.full_like(best, -torch.inf, dtype=self.frame.dtype)
            for b, rows, s in self._visit(low, high, hit):
                best[rows, b] = s.amax(1)
            upper = _sketch.upper_distances(best, norms[:, None], self.block_norms, self.frame)
            return upper.topk(k, dim=1, largest=False).values[:, -1]
        pairs = [
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
        out = torch.empty(len(row), dtype=torch.float32, device=row.device)
        step = max(1, _sketch.PIECE // job.x.shape[1])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            terms = job.q.index_select(0, q_ids[part]).float()
            terms.sub_(job.x.index_select(0, x_ids[part]))
            out[part] = terms.square_().sum(1)
        # differences and squares round once each, the sum of D terms D - 1 times in any order
        error = 2 * _sketch.summation(job.x.shape[1] + 4, 2.0**-24)
        tiny = job.x.shape[1] * 2.0**-120
        return out.double() * (1 - error) - tiny, out.double() * (1 + error) + tiny

    def _fine(self, low: int, row: Tensor, col: Tensor, reach: Tensor) -> Tensor:
        """Which pairs the fine sketches leave."""
        left, refs = self.left, self.refs
        assert left.fine is not None
        assert refs.fine is not None
        out = torch.empty(len(row), dtype=self.frame.dtype, device=row.device)
        step = max(1, _sketch.PIECE // refs.fine.shape[1])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            terms = left.fine.index_select(0, row[part] + low)
            terms.sub_(refs.fine.index_select(0, col[part]))
            out[part] = terms.square_().sum(1)
        norms = left.norms[row + low] + refs.norms[col]
        limit = (reach[row] + self.frame.eta * norms).square() + _sketch.TINY[self.frame.dtype]
        error = 2 * _sketch.summation(refs.fine.shape[1] + 4, self.frame.roundoff)
        return out.double() * (1 - error) <= limit * _sketch.WIDEN

    def _settle(self, low: int, passed: Tensor, row: Tensor, col: Tensor) -> None:
        """Choose the k nearest of the candidates of each row that passed."""
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
