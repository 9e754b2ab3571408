"""The projection to search by: its candidates are counted on a few samples, its cost estimated."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from siutils.neighbors.sketch import BLOCKS, SAMPLE, Frame, has_bfloat16, spread_out

LADDER = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # numbers of axes to choose from
SCAN, SIEVE = 60, 0.45  # cost of reading a product, in dimensions; of a bfloat16 product


def principal_axes(v: Tensor, m: int) -> Tensor:
    """Approximate leading principal axes of (n, D) samples: (D, m) orthonormal float64.

    Randomized subspace iteration (Halko, Martinsson and Tropp 2011, SIAM Review 53(2)).
    """
    generator = torch.Generator().manual_seed(0)
    width = min(m + 16, v.shape[1])
    shape = v.shape[1], width
    axes = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(v)
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
        left = sieved if self.sieve else searched
        blocks_hit = BLOCKS * -math.expm1(-left / BLOCKS)  # where so many candidates may lie
        products = self.axes * (SIEVE if self.sieve else 1) + SCAN
        visits = blocks_hit * n / BLOCKS * (2 * self.axes + 300)
        pairs = (counts[self.fine][0] + k + 2) * d
        if self.fine > self.axes:
            pairs += searched * self.fine
        return n * products + 4 * d * self.fine + pairs * pair_cost + visits


def choose(
    x: Tensor, k: int, base: Frame, forced: bool, pair_cost: float, room: int
) -> Frame | None:
    """The projection with the lowest estimated cost, or None where all dimensions cost less.

    Its sketches take at most ``room`` bytes, unless it is forced. Costs are in operations of the
    matrix product per sample; ``pair_cost`` is the cost of one dimension of a pair's distance.
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
    """Estimates the candidates per sample that each number of axes leaves: by float32, by bfloat16.

    The k-th distances of a few probes are measured against all samples, and the samples ``some``
    within their bounds are counted. The estimate decides the speed, never the result.
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
    best = few.new_full((len(ids), k), torch.inf)
    step = max(1, 2**20 // x.shape[1])
    for start in range(0, len(x), step):
        p = (x[start : start + step].float() - center).mul_(full.scale)
        squared = torch.linalg.vector_norm(p, dim=1).square_() + own - 2 * few @ p.T
        at = ids - start
        inside = ((at >= 0) & (at < len(p))).nonzero()[:, 0]
        squared[inside, at[inside]] = torch.inf
        best = torch.cat([best, squared], dim=1).topk(k, dim=1, largest=False).values
    return best[:, -1:].clamp(min=0).double()
