"""Sketches: cheap points whose distances bound the true ones. `neighbors` searches among them.

A sample x stands for v = (x - center) * scale. Its sketch p is v itself (a *complete* sketch) or
(Q'v, rho) with orthonormal Q and rho = |v - QQ'v|, the length of what Q leaves over. Since
|v_i - v_j|^2 = |Q'v_i - Q'v_j|^2 + |r_i - r_j|^2 and |r_i - r_j| >= |rho_i - rho_j|, sketches are
never farther apart than their samples. Rounding is covered by two numbers:

* `eta`: a stored sketch is off by at most eta * |p|, so
  |p_i - p_j| <= |v_i - v_j| + eta (|p_i| + |p_j|); complete sketches also hold the reverse;
* `gamma`: a matrix product over K terms, summed in any order, with or without fused operations,
  is off by at most gamma_K = K u / (1 - K u) times the sum of absolute products (Higham 2002,
  "Accuracy and Stability of Numerical Algorithms", section 3.1). Stored as (p, -|p|^2/2, 1) and
  (p, 1, -|p|^2/2), sketches have the product s = -|p_i - p_j|^2 / 2 within
  gamma (|p_i| + |p_j|)^2 / 2.

Where the CPU multiplies bfloat16 fast, and it pays (`Frame.sieve`), a first look is at sketches
rounded to it. `eta` then grows by `half`, the most that this rounding was measured to move any
sketch, over its |p|; -|p|^2/2 of the moved sketch is stored in three pieces that lose 2^-23 of it;
sums are float32, and rounding them to bfloat16 changes them by 2^-8 (`lift`). It only chooses
blocks to look at in float32.

Hence a sample j with |v_i - v_j| <= t has s >= -((t + eta (a_i + a_j))^2 + gamma (a_i + a_j)^2) / 2
where a = |p|. What falls below is proven out; nothing else is.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FAR = 1e30  # |p|^2 / 2 of the padding: farther than any sample (these have norms near sqrt(D))
TINY = {torch.float32: 1e-30, torch.float64: 1e-280}  # covers underflow, in scaled units
WIDEN = 1 + 1e-5  # covers the rounding of the thresholds themselves
SAMPLE = 4096  # samples from which center and basis are estimated; any center, any basis is valid
SPARE = 2**25  # bytes that must be free beside what is kept
PIECE = 2**18  # numbers per step of elementwise work: as float64 they stay in the cache of a core
LADDER = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # numbers of axes to choose from
HALVE = 1024  # samples, at least, to look at bfloat16 products first
BLOCKS = 256  # blocks of references, at least; few samples make fewer, of up to 64 rows
SCAN, SIEVE = 60, 0.45  # cost of reading a product, in dimensions; of a bfloat16 product


@dataclass(frozen=True)
class Frame:
    """Coordinates of a sketch: v = (x - center) * scale, turned by ``basis`` where there is one.

    The first ``axes`` columns of the basis make the sketches that are searched; all columns make
    the fine ones, which a few pairs are compared by.
    """

    center: Tensor  # (D,) float64
    scale: float  # a power of two: exact
    dtype: torch.dtype
    basis: Tensor | None = None  # (D, m) float64, orthonormal columns
    axes: int = 0
    sieve: bool = True  # a first look at bfloat16 products pays, where these are fast
    half: float = 0.0  # above 0 for bfloat16 products: most that rounding moved a sketch, over |p|

    def coordinates(self, x: Tensor) -> Tensor:
        """Float64 coordinates of rows: (n, D), or (n, m + 1) with the left-over length last."""
        v = (x.double() if x.dtype != torch.float64 else x.clone()).sub_(self.center)
        v.mul_(self.scale)
        if self.basis is None:
            return v
        z = v @ self.basis
        left = torch.linalg.vector_norm(v, dim=1).square_() - z.square().sum(1)
        return torch.cat([z, left.clamp_(min=0).sqrt_()[:, None]], dim=1)

    def coarse(self, fine: Tensor) -> Tensor:
        """Coordinates to search by: the left-over length takes in the axes that are dropped."""
        if self.basis is None or self.axes == self.basis.shape[1]:
            return fine
        rest = torch.linalg.vector_norm(fine[:, self.axes :], dim=1)
        return torch.cat([fine[:, : self.axes], rest[:, None]], dim=1)

    @property
    def width(self) -> int:
        """Columns of a stored sketch."""
        return (len(self.center) if self.basis is None else self.axes + 1) + 2

    @property
    def roundoff(self) -> float:
        return torch.finfo(self.dtype).eps / 2

    @property
    def eta(self) -> float:
        cast = 2 * self.roundoff + 2.0**-50 + self.half
        if self.basis is None:
            return cast
        # rho^2 is a difference of float64 sums: D terms for |v|^2, D for each of m products, and
        # Q is orthonormal within 2^-40 only; and |sqrt(a) - sqrt(b)| <= sqrt(|a - b|)
        d, m = self.basis.shape
        return cast + math.sqrt(2.0**-51 * d * (math.sqrt(m) + 2) + 2.0**-40)

    @property
    def gamma(self) -> float:
        if self.half:  # three pieces of each norm lose 2^-23; the rounded |p| may be longer
            return 1.05 * (summation(2 * self.width + 16, self.roundoff) + 2.0**-22)
        return summation(self.width + 4, self.roundoff)

    @property
    def lift(self) -> float:
        """What rounding may make of a product that is 1."""
        return 1 + 2.0**-8 + 2.0**-12 if self.half else 1.0


def summation(terms: int, roundoff: float) -> float:
    """Relative error bound of a sum of so many rounded products, in any order (Higham 2002)."""
    return terms * roundoff / (1 - terms * roundoff)


class Sketch:
    """Sketches of the samples ``ids`` of x, in that order, padded to whole blocks.

    Attributes:
        norms: (padded,) float64, |p|; 0 for padding.
        fine: (n, m + 1) coordinates by all axes, or None where they are the same.
        block: rows per block.
        half: most that rounding to bfloat16 moves a sketch, over |p|; 0 if there are no halves.
        bytes: of what is kept. What does not fit into ``room`` is made anew each time.
    """

    def __init__(
        self,
        x: Tensor,
        ids: Tensor,
        frame: Frame,
        block: int,
        each: Callable[..., None],
        room: int,
        halve: bool = False,
    ) -> None:
        self.x, self.ids, self.frame, self.block = x, ids, frame, block
        self.padded = -(-len(ids) // block) * block
        self.norms = torch.zeros(self.padded, dtype=torch.float64, device=x.device)
        self.bytes = 0
        self._cache: Tensor | None = None
        cache = self._room(self.padded, frame.width, room)
        self.fine: Tensor | None = None
        if frame.basis is not None and frame.axes < frame.basis.shape[1]:
            self.fine = self._room(len(ids), frame.basis.shape[1] + 1, room)
        self.half = 0.0
        # made anew, projections can differ in their last bit, and the pieces are of these bits
        halve = halve and (cache is not None or frame.basis is None)
        self._pieces = x.new_empty(self.padded if halve else 0, 3, dtype=torch.bfloat16)

        def build(start: int, stop: int) -> None:
            points = self.rows(start, stop)
            self.norms[start:stop] = torch.linalg.vector_norm(
                points[:, :-2], dim=1, dtype=torch.float64
            )
            if halve:
                self._halve(points, start, stop)
            if cache is not None:
                cache[start:stop] = points

        each(self.padded, max(1, 2**20 // x.shape[1]), build, "sketching")
        self._cache = cache

    def _room(self, rows: int, columns: int, room: int) -> Tensor | None:
        size = rows * columns * self.frame.dtype.itemsize
        if self.bytes + size > room:
            return None
        with contextlib.suppress(MemoryError, RuntimeError):
            out = torch.empty(rows, columns, dtype=self.frame.dtype, device=self.x.device)
            torch.empty(SPARE, dtype=torch.uint8, device=self.x.device)  # else work finds no room
            self.bytes += size
            return out
        return None

    @property
    def kept(self) -> bool:
        return self._cache is not None

    @property
    def blocks(self) -> int:
        return self.padded // self.block

    def rows(self, start: int, stop: int) -> Tensor:
        """Stored sketches (p, -|p|^2/2, 1) of some rows."""
        if self._cache is not None:
            return self._cache[start:stop]
        frame = self.frame
        out = torch.zeros(stop - start, frame.width, dtype=frame.dtype, device=self.x.device)
        n = min(stop, len(self.ids)) - start
        # without a projection, small pieces stay in the cache of a core
        step = (2**26 if out.is_cuda else PIECE) // self.x.shape[1]
        step = max(1, step if frame.basis is None else n)
        for first in range(0, n, step):
            last = min(first + step, n)
            ids = self.ids[start + first : start + last]
            fine = frame.coordinates(self.x.index_select(0, ids))
            if self.fine is not None:
                self.fine[start + first : start + last] = fine
            part = out[first:last]
            part[:, :-2] = frame.coarse(fine)
            part[:, -2] = part[:, :-2].double().square().sum(1).mul_(-0.5)
        out[max(n, 0) :, -2] = -FAR
        out[:, -1] = 1
        return out

    def _halve(self, points: Tensor, start: int, stop: int) -> None:
        """Note how far bfloat16 moves these points, and -|p|^2/2 of the moved ones in pieces."""
        moved = points[:, :-2].bfloat16().double()
        far = torch.linalg.vector_norm(moved - points[:, :-2], dim=1)
        self.half = max(
            self.half, 2.0**-20, float((far / self.norms[start:stop]).nan_to_num().max())
        )
        rest = moved.square().sum(1).mul_(-0.5)
        rest[max(0, len(self.ids) - start) :] = -FAR
        for i in range(3):
            self._pieces[start:stop, i] = rest.bfloat16()
            rest -= self._pieces[start:stop, i]

    def halves(self, start: int, stop: int, left: bool = False) -> Tensor:
        """Sketches in bfloat16, -|p|^2/2 in three pieces; the left factor of products, or not."""
        p, pieces = self.rows(start, stop)[:, :-2].bfloat16(), self._pieces[start:stop]
        ones = torch.ones_like(pieces)
        return torch.cat([p, ones, pieces] if left else [p, pieces, ones], dim=1)

    def block_norms(self) -> Tensor:
        """(blocks,) largest norm of each block."""
        return self.norms.view(self.blocks, self.block).amax(1)


def swapped(points: Tensor) -> Tensor:
    """The left factor (p, 1, -|p|^2/2) of stored sketches (p, -|p|^2/2, 1)."""
    out = points.clone()
    out[:, -2] = points[:, -1]
    out[:, -1] = points[:, -2]
    return out


def floor_factors(t: Tensor, norms: Tensor, frame: Frame) -> Tensor:
    """Left factor U (n, 3) of the lowest product that a sample within t (scaled) can have.

    The floor for a partner of norm a is -(U @ partner_factors(a)'), see the module's text.
    """
    reach = t + frame.eta * norms
    c = frame.eta**2 + frame.gamma
    columns = [
        reach.square() + frame.gamma * norms.square() + TINY[frame.dtype],
        2 * (reach * frame.eta + frame.gamma * norms),
        torch.full_like(norms, c),
    ]
    return (torch.stack(columns, dim=1) * (frame.lift * WIDEN / 2)).to(frame.dtype)


def partner_factors(norms: Tensor, frame: Frame) -> Tensor:
    """Right factor (n, 3) of the floor: powers of the partner's norm."""
    return torch.stack([torch.ones_like(norms), norms, norms.square()], dim=1).to(frame.dtype)


def upper_distances(s: Tensor, norms: Tensor, partners: Tensor, frame: Frame) -> Tensor:
    """Upper bounds (scaled) of true distances from products of complete sketches."""
    total = norms + partners
    squared = s.double() * -2 + total.square() * frame.gamma + TINY[frame.dtype]
    return squared.clamp_(min=0).sqrt_().add_(total, alpha=frame.eta).mul_(WIDEN)


def full_precision(device: torch.device) -> bool:
    """Whether float32 products are float32 products: no TF32, no bfloat16 switched on by anyone."""
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return False
        return device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # newer torch refuses this question once its newer switches were used
        return False


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are fast and summed in float32: oneDNN's on some CPUs are."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return bool(device.type == "cpu" and torch.backends.mkldnn.enabled and known())


def spread_out(n: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` different indices below n, in random order from a generator of its own."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")
    return order[:count].to(device)


def principal_axes(v: Tensor, m: int) -> Tensor:
    """(D, m) orthonormal float64: leading principal axes of (n, D) samples, nearly.

    Randomized subspace iteration (Halko, Martinsson and Tropp 2011, SIAM Review 53(2)).
    """
    generator = torch.Generator().manual_seed(0)
    width = min(m + 16, v.shape[1])
    axes = torch.randn(v.shape[1], width, generator=generator, device="cpu").to(v)
    for _ in range(2):
        axes = torch.linalg.qr(v.T @ (v @ axes)).Q
    axes = torch.linalg.qr(axes.double()).Q
    image = (v @ axes.to(v)).double()
    turn = torch.linalg.eigh(image.T @ image).eigenvectors.flip(1)
    return (axes @ turn)[:, :m].contiguous()


@dataclass(frozen=True)
class Plan:
    """A projection that may be chosen: axes of the search, axes of the fine sketches, and a sieve.

    With ``fine`` above ``axes``, the pairs that the search leaves are compared by fine sketches
    before their distances are measured. With ``sieve``, bfloat16 products come first.
    """

    axes: int
    fine: int
    sieve: bool

    @property
    def columns(self) -> int:
        """Numbers stored per sample."""
        return self.axes + 3 + (self.fine + 1 if self.fine > self.axes else 0)

    def cost(
        self, counts: dict[int, tuple[float, float]], n: int, d: int, k: int, pair_cost: float
    ) -> float:
        """Cost for n samples of d features; ``counts`` is what `candidates` returns."""
        searched, sieved = counts[self.axes]
        found = sieved if self.sieve else searched
        blocks_hit = BLOCKS * -math.expm1(-found / BLOCKS)  # where so many candidates may lie
        products = self.axes * (SIEVE if self.sieve else 1) + SCAN
        visits = blocks_hit * n / BLOCKS * (2 * self.axes + 300)
        pairs = (counts[self.fine][0] + k + 2) * d
        if self.fine > self.axes:
            pairs += searched * self.fine
        return n * products + 4 * d * self.fine + pairs * pair_cost + visits


def choose(
    x: Tensor, k: int, base: Frame, forced: bool, pair_cost: float, room: int
) -> Frame | None:
    """The projection that should cost least, or None where all dimensions cost less.

    Its sketches take at most ``room`` bytes, unless it is forced. Costs are in operations of the
    matrix product per sample; ``pair_cost`` is that of one dimension of a pair's distance.
    Candidates are counted on a few samples, see `candidates`.
    """
    n, d = x.shape
    if not forced and d < 48:
        return None
    few = max(2**25, x.numel() // 32) // d  # many dimensions: fewer samples, fewer axes
    size = min(n, max(64, min(SAMPLE, n // 4, few)))
    some = spread_out(n, 2 * size, x.device)
    full = replace(base, dtype=torch.float64)
    v = torch.empty(size, d, dtype=base.dtype, device=x.device)
    step = max(1, 2**20 // d)
    for out, part in zip(v.split(step), some[:size].split(step), strict=True):
        out.copy_(full.coordinates(x[part]))
    basis = principal_axes(v, max(1, min(LADDER[-1], d // 2, few // 2)))
    del v
    gap = basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    if not float(gap.norm()) <= 2.0**-40:  # the bound wants it orthonormal
        return None
    counts = candidates(x, some[-size:], k, full, basis)

    def fits(plan: Plan) -> bool:
        return forced or n * plan.columns * base.dtype.itemsize <= room

    def cost(plan: Plan) -> float:
        return plan.cost(counts, n, d, k, pair_cost)

    sieves = (False, True) if base.dtype == torch.float32 and has_bfloat16(x.device) else (False,)
    plans = [Plan(*p) for p in itertools.product(counts, counts, sieves) if p[0] <= p[1]]
    best = min(filter(fits, plans), key=cost, default=None)
    if best is None or (not forced and cost(best) >= 0.9 * n * (d + SCAN)):
        return None
    columns = basis[:, : best.fine].contiguous()
    return replace(base, basis=columns, axes=best.axes, sieve=best.sieve)


def candidates(
    x: Tensor, some: Tensor, k: int, full: Frame, basis: Tensor
) -> dict[int, tuple[float, float]]:
    """Candidates per sample that so many axes would leave, estimated: by float32, by bfloat16.

    A few probes are measured against all samples to know their k-th distance (nearly: the
    estimate decides the speed, never the result), and their bounds counted on ``some``.
    """
    probes, n = some[:64], len(x)
    images, norms = [], []
    for ids in some.split(max(1, 2**20 // x.shape[1])):
        v = full.coordinates(x[ids])
        images.append(v @ basis)
        norms.append(v.square().sum(1))
    z, rest = torch.cat(images), torch.cat(norms)
    reach = rest.sqrt()
    # blocks are judged by their longest sample, and bfloat16 moves it by up to 2^-8 of its length
    loose = reach[: len(probes), None].add(reach.quantile(max(0.0, 1 - BLOCKS / n))) * 2.0**-8
    limit = _kth_distances(x, probes, k, full)
    loose = (limit.sqrt() + loose).square() * (1 + 2.0**-8)
    bound = z.new_zeros(len(probes), len(some))
    counts: dict[int, tuple[float, float]] = {}
    last = 0
    for m in sorted({m for m in LADDER if m < z.shape[1]} | {z.shape[1]}):
        step = z[:, last:m]
        length = step.square().sum(1)
        bound += length[: len(probes), None] + length - 2 * step[: len(probes)] @ step.T
        rest -= length
        rho = rest.clamp(min=0).sqrt()
        lower = bound + (rho[: len(probes), None] - rho).square()
        below = [float((lower <= most).sum()) / len(probes) - 1 for most in (limit, loose)]
        counts[m] = below[0] / len(some) * n, below[1] / len(some) * n
        last = m
    return counts


def _kth_distances(x: Tensor, ids: Tensor, k: int, full: Frame) -> Tensor:
    """(len(ids), 1) squared distance of each sample's k-th neighbor, scaled, in float32 or so."""
    few, center = full.coordinates(x[ids]).float(), full.center.float()
    own = torch.linalg.vector_norm(few, dim=1).square_()[:, None]
    best = torch.full((len(ids), k), torch.inf, device=x.device)
    step = max(1, 2**20 // x.shape[1])
    for start in range(0, len(x), step):
        p = (x[start : start + step].float() - center).mul_(full.scale)
        squared = torch.linalg.vector_norm(p, dim=1).square_() + own - 2 * few @ p.T
        at = ids - start
        inside = ((at >= 0) & (at < len(p))).nonzero()[:, 0]
        squared[inside, at[inside]] = torch.inf
        best = torch.cat([best, squared], dim=1).topk(k, dim=1, largest=False).values
    return best[:, -1:].clamp(min=0).double()
