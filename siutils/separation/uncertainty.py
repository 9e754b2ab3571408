"""How sure an index is: intervals that know that the neighbors of samples depend on each other.

The hits of two samples depend on each other when one is the other's neighbor or both have the same
one: two mutual nearest neighbors hit or miss together. So N samples say less than N independent
ones, and a binomial interval is too short. The **design effect** is the factor,
``Var(index) = design effect · Var(one sample's value) / N``.

It is measured on *disjoint random subsamples*. Samples drawn independently from one population
remain so when they are dealt into G groups at random, and the indices of disjoint groups are
independent: their variance is an unbiased estimate of the variance of the index at N/G samples.
Averaged over many deals it is precise, and as a multiple of the variance of single samples it
hardly depends on N. No neighbor is searched anew: a sample's neighbors within its group are the
members of its one long neighbor list that are in the group. Where the list is too short for that,
the sample is left out of this deal; the deal alone decides so, not the data: nothing is biased.

What else is in use, and why not here: a bootstrap with replacement makes copies at distance zero,
each its original's nearest neighbor, and so raises SI; the jackknife is far too wide, since a
nearest neighbor does not change smoothly when a sample is left out.

The interval is Wilson's with N divided by the design effect. It is for the value that is expected
*at this N* (SI grows with N) when samples are drawn at random. Where the number of samples per
class was fixed in advance, it is a little too wide. On raw CIFAR-100 pixels the design effect of SI
rises from 1.3 at N = 2,500 to 1.6 at 20,000; above MAX_SAMPLES it is that of a random choice.

**Few events.** With fewer than 10 samples that decide (hits, or misses, whichever are fewer), or
groups of fewer than 10, the design effect is no less than `spoiled`: one intruder spoils
itself and all those whose neighbor it is. Center SI has no neighbors (class means hardly move with
one sample): its design effect is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from siutils.separation.indices import mean

GROUPS = 2  # the largest groups are nearest in size to the whole
DEALS = 400
MAX_SAMPLES = 10_000  # for the design effect; a random choice of more
FEW = 10
ENTRIES = 2**21  # of samples × deals in one step


class Interval(NamedTuple):
    """``value`` lies in ``low … high`` at confidence ``level``; n / design_effect is the size that
    as many independent samples would have."""

    value: float
    low: float
    high: float
    level: float
    n: int
    design_effect: float


def list_depth(order: int) -> int:
    """Neighbors to list per sample, so that at most 1 % lack members of their group.

    >>> list_depth(1)
    8
    """
    return 3 * order + 5


def interval(values: Tensor, effect: float, level: float = 0.95) -> Interval:
    """Wilson interval of a mean of values in 0 … 1, at N divided by the design effect.

    Args:
        values: float ``(N,)``, per-sample values.
        effect: design effect, above 0.
        level: coverage, in (0, 1).

    Raises:
        ValueError: level outside (0, 1).

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    >>> [round(v, 3) for v in interval(torch.tensor([1.0, 1.0, 1.0, 0.0]), effect=1.0)[:3]]
    [0.75, 0.301, 0.954]
    """
    z = quantile(level)
    values = values.double()
    n, p = len(values), mean(values)
    spread = mean((values - p).square())
    # values between 0 and 1 (soft order) vary less than hits of the same mean
    size = n / effect * (p * (1 - p) / spread if spread > 0 else 1.0)
    middle = (p + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    low, high = max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))
    return Interval(p, low, high, level, n, effect)


def quantile(level: float) -> float:
    """Two-sided normal quantile, 1.96 for 0.95.

    >>> round(quantile(0.95), 2)
    1.96
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95; got {level!r}")
    return float(stats.norm.ppf((1 + level) / 2))


class Lists(NamedTuple):
    """For M samples, nearest first: their neighbors among them, int64 ``(M, K)``, and whether these
    carry their label, bool ``(M, K)``."""

    neighbors: Tensor
    hits: Tensor


def design_effect(
    values: Tensor, terms: Sequence[tuple[int, Lists]], index: str, order: int, seed: int = 0
) -> float:
    """Variance of an index over what it would be were its samples independent.

    Args:
        values: float ``(N,)``, the per-sample values whose mean is meant: an index, or a sum of
            the same index in several representations, such as first − second.
        terms: for each term of the sum its sign, 1 or −1, and the neighbor lists of all samples,
            or of a random choice of them, to a depth of `list_depth`.
        index: ``"si"``, ``"high_order_si"``, ``"soft_order_si"`` or ``"anti_si"``.
        order: the order of the index.
        seed: of the deals.

    Returns:
        The design effect, above 0; see the module's text for few events.

    >>> pairs = torch.arange(80)[:, None] ^ 1  # 40 pairs: each sample's only neighbor is its mate
    >>> hits = torch.arange(80)[:, None] // 2 % 2 == 0
    >>> 1.7 < design_effect(hits[:, 0].double(), [(1, Lists(pairs, hits))], "si", 1) < 2.3
    True
    """
    size, total, square, between = 0.0, 0.0, 0.0, 0.0
    samples = len(terms[0][1].neighbors)
    for groups in _deals(samples, seed):
        v = torch.zeros(groups.shape, dtype=torch.float64, device="cpu")
        known = torch.ones_like(v)
        for sign, lists in terms:
            dealt, enough = _dealt(groups, lists, index, order)
            # as integers, whose sums are exact in whatever order threads add them
            v, known = v + sign * (dealt * order).round(), known * enough
        members = torch.zeros(GROUPS, groups.shape[1], dtype=torch.float64, device="cpu")
        sums = torch.zeros_like(members).scatter_add_(0, groups, v * known)
        members.scatter_add_(0, groups, known)
        size += float(members.sum())
        total += float(sums.sum())
        square += float((v.square() * known).sum())
        between += float((sums / members).var(dim=0).sum())
    between /= DEALS
    size_of_group = size / DEALS / GROUPS
    effect = math.nan
    if size:
        spread = square / size - (total / size) ** 2
        effect = between * size_of_group / spread if spread > 0 else math.nan
    sizes = values.abs().clamp(max=1)
    events = float(torch.minimum(sizes.sum(), (1 - sizes).sum()))
    if events < FEW or samples < FEW * GROUPS or not effect > 0:
        worst = max(spoiled(lists.neighbors, order) for _, lists in terms)
        return max(effect, worst) if effect > 0 else worst
    return effect


def spoiled(neighbors: Tensor, order: int) -> float:
    """Design effect of rare misses: with k samples to which it is one of the ``order`` nearest, an
    intruder spoils 1 + k; clusters of that size give ``mean((1 + k)²) / mean(1 + k)``.

    Args:
        neighbors: int64 ``(M, K)``, K ≥ order.
        order: the order of the index.

    >>> spoiled(torch.tensor([[1], [0], [1]]), 1)  # k = 1, 2, 0
    2.3333333333333335
    """
    k = torch.bincount(neighbors[:, :order].flatten(), minlength=len(neighbors)).double()
    return float((1 + k).square().mean() / (1 + k).mean())


def _deals(samples: int, seed: int) -> Iterator[Tensor]:
    """Group numbers (M, P) of P random deals at a time, each into groups of equal size (± 1)."""
    generator = torch.Generator("cpu").manual_seed(seed)
    seats = torch.arange(samples, device="cpu")[:, None] % GROUPS
    how: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    step = max(1, ENTRIES // samples)
    for start in range(0, DEALS, step):
        deals = min(step, DEALS - start)
        order = torch.rand(deals, samples, **how).argsort(dim=1).T.contiguous()
        yield torch.empty_like(order).scatter_(0, order, seats.expand(-1, deals))


def _dealt(groups: Tensor, lists: Lists, index: str, order: int) -> tuple[Tensor, Tensor]:
    """Values (M, P) of samples among their own group, and whether enough of it was listed."""
    groups = groups.to(torch.int8)
    members = torch.zeros(groups.shape, dtype=torch.int16, device="cpu")
    shared = torch.zeros_like(members)
    for neighbor, hit in zip(lists.neighbors.T, lists.hits.T, strict=True):
        inside = groups[neighbor] == groups
        members += inside
        shared += inside & hit[:, None] & (members <= order)
    if index == "soft_order_si":
        values = shared.double() / order
    elif index == "anti_si":
        values = shared == 0
    else:
        values = shared == order
    return values.double(), members >= order
