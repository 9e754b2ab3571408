"""Sketches: cheap points whose distances bound the true ones. `screen` searches among them.

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
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 1e30  # |p|^2 / 2 of the padding: farther than any sample (these have norms near sqrt(D))
TINY = {torch.float32: 1e-30, torch.float64: 1e-280}  # covers underflow, in scaled units
WIDEN = 1 + 1e-5  # covers the rounding of the thresholds themselves
SAMPLE = 4096  # samples from which center and basis are estimated; any center, any basis is valid
SPARE = 2**25  # bytes that must be free beside what is kept
PIECE = 2**18  # numbers per step of elementwise work: as float64 they stay in the cache of a core
HALVE = 1024  # samples, at least, to look at bfloat16 products first
BLOCKS = 256  # blocks of references, at least; few samples make fewer, of up to 64 rows


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
        """The largest value to which rounding may turn a product that is 1."""
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
        bytes: size of the sketches that are kept. Those that exceed ``room`` are made anew each
            time.
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
        """Notes how far bfloat16 moves these points, and -|p|^2/2 of the moved ones in pieces."""
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
    """Left factor U (n, 3) of the lowest product that a sample within distance t (scaled) can have.

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
    """True if float32 products are computed in float32: no TF32 or bfloat16 is switched on."""
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return False
        return device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # newer torch refuses this question once its newer switches were used
        return False


def has_bfloat16(device: torch.device) -> bool:
    """True if bfloat16 products are fast and summed in float32, as oneDNN's on some CPUs are."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return bool(device.type == "cpu" and torch.backends.mkldnn.enabled and known())


def spread_out(n: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` different indices below n, in random order from a generator of its own."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")
    return order[:count].to(device)
