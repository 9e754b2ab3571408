"""Intervals by simulation: they cover the value expected at N as often as they say."""

import math

import numpy as np
import pytest
import torch
from labeled_data import DATA, random_data
from reference import index_values

from siutils import SeparationIndex
from siutils.separation import uncertainty
from siutils.separation.indices import high_order_si
from siutils.separation.uncertainty import Lists, list_depth

POPULATIONS = {  # class means, shared standard deviation 1
    "two overlapping Gaussians": torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
    "six Gaussians": torch.tensor(
        [[0.0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [0, 0, 2.5], [2.5, 2.5, 0], [2.5, 2.5, 2.5]]
    ),
}


def draws(means, n, count, generator, depth):
    """Neighbors and hits, both (count, n, depth), of independent data sets."""
    labels = torch.randint(0, len(means), (count, n), generator=generator)
    x = torch.randn(count, n, means.shape[1], generator=generator) + means[labels]
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    neighbors = distances.topk(depth, largest=False).indices
    theirs = torch.gather(labels[:, None].expand(-1, n, -1), 2, neighbors)
    return neighbors, theirs == labels[:, :, None]


@pytest.mark.parametrize("population", POPULATIONS)
def test_95_percent_intervals_cover_in_93_to_97_percent_of_500_repetitions(population, one_thread):
    means, n, generator = POPULATIONS[population], 200, torch.Generator().manual_seed(0)
    pool = [draws(means, n, 100, generator, 2)[1].flatten(0, 1) for _ in range(25)]
    truth = {order: float(high_order_si(torch.cat(pool), order).mean()) for order in (1, 2)}
    covered, binomial = {1: 0, 2: 0}, 0
    for _ in range(5):
        batch = draws(means, n, 100, generator, list_depth(2))
        for neighbors, hits in zip(*batch, strict=True):
            for order in covered:
                values, depth = high_order_si(hits, order), list_depth(order)
                lists = Lists(neighbors[:, :depth], hits[:, :depth])
                effect = uncertainty.design_effect(values, [(1, lists)], "high_order_si", order)
                found = uncertainty.interval(values, effect)
                covered[order] += found.low <= truth[order] <= found.high
            naive = uncertainty.interval(high_order_si(hits, 1), 1.0)
            binomial += naive.low <= truth[1] <= naive.high
    assert all(0.93 <= count / 500 <= 0.97 for count in covered.values()), covered
    assert binomial / 500 < 0.9  # what the design effect is there for


def test_design_effect_is_the_ratio_of_variances(one_thread):
    means, n, generator = POPULATIONS["two overlapping Gaussians"], 100, torch.Generator()
    hits = torch.cat([draws(means, n, 500, generator, 1)[1] for _ in range(8)])[:, :, 0].double()
    true = float(hits.mean(1).var() * n / hits.var())
    effects = []
    for neighbors, h in zip(*draws(means, n, 20, generator, 8), strict=True):
        lists = [(1, Lists(neighbors, h))]
        effects.append(uncertainty.design_effect(h[:, 0].double(), lists, "si", 1))
    assert np.mean(effects) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("index", ["high_order_si", "soft_order_si", "anti_si"])
def test_dealt_values_are_the_index_within_each_group(index):
    x, y = random_data(1, 80)
    record = SeparationIndex(x, y).record(79)
    groups = torch.arange(80)[:, None] % 4
    expected = torch.empty(80, 1, dtype=torch.float64)
    for g in range(4):
        expected[g::4, 0] = torch.from_numpy(index_values(x[g::4], y[g::4], 3)[index])
    for depth in (79, 15):  # short lists leave samples out, but no wrong values in
        lists = Lists(record.neighbors.indices[:, :depth], record.hits[:, :depth])
        found, enough = uncertainty._dealt(groups, lists, index, 3)
        assert torch.equal(found[enough], expected[enough])
        assert enough.all() if depth == 79 else 0 < enough.sum() < 80


@pytest.mark.parametrize("name", DATA)
def test_every_interval_is_finite_and_holds_its_value(name):
    x, y = DATA[name]
    table = SeparationIndex(x, y).report(2, interval=True)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table[["low", "high"]].stack().between(0, 1).all()
    assert (table["high"] - table["low"] > 0.01).all()
    assert (table["design_effect"] > 0).all()


@pytest.mark.parametrize("n", [2, 3, 5, 12, 39])
@pytest.mark.parametrize("classes", [1, 2, 40])
def test_tiny_data_and_values_of_0_and_1_have_wide_intervals_not_nan(n, classes):
    x, y = torch.arange(float(n))[:, None], torch.arange(n) % classes
    for index, order in (("si", 1), ("soft_order_si", min(2, n - 1)), ("anti_si", 1)):
        found = SeparationIndex(x, y).interval(index, order)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.high - found.low > 1.5 / n
        assert found.design_effect >= 1


def test_few_misses_count_in_clusters():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(200, dtype=torch.int64)
    s = SeparationIndex(x, y)
    found = s.interval()
    assert found.design_effect == uncertainty.spoiled(s.record().neighbors.indices, 1) > 2
    z2 = 1.959964**2
    assert found.low == pytest.approx(1 / (1 + z2 * found.design_effect / 200))  # Wilson at p = 1


def test_many_samples_are_judged_by_a_random_choice(monkeypatch):
    monkeypatch.setattr("siutils.separation.uncertainty.MAX_SAMPLES", 300)
    x, y = random_data(5, 900)
    s = SeparationIndex(x, y)
    small = s.interval("si", seed=1)
    record = s.record(lists=True, seed=1)
    rows = torch.randperm(900, generator=torch.Generator().manual_seed(1))[:300].sort().values
    part = SeparationIndex(x[rows], y[rows]).record(list_depth(1))
    assert torch.equal(record.lists(1).neighbors, part.neighbors.indices)
    assert torch.equal(record.lists(1).hits, part.hits)
    monkeypatch.setattr("siutils.separation.uncertainty.MAX_SAMPLES", 10_000)
    whole = SeparationIndex(x, y).interval("si", seed=1)
    assert small.design_effect == pytest.approx(whole.design_effect, rel=0.35)
    assert small.n == whole.n == 900


def test_the_seed_decides_and_the_level_widens():
    s = SeparationIndex(*random_data())
    assert s.interval(seed=3) == s.interval(seed=3)
    assert s.interval("si", 3) == s.interval("si") == s.interval("high_order_si", 1)
    a, b = s.interval(level=0.5), s.interval(level=0.99)
    assert b.low < a.low < a.high < b.high
    state = torch.get_rng_state()
    s.interval()
    assert torch.equal(state, torch.get_rng_state())
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            s.interval(level=level)
    with pytest.raises(ValueError, match="index must be one of"):
        s.interval("SI")


def test_soft_order_interval_uses_the_spread_of_its_values():
    v = torch.tensor([0.0, 0.5, 1.0, 0.5] * 50)
    found = uncertainty.interval(v, 1.0)
    assert found.value == 0.5
    half = 1.959964 * math.sqrt(0.125 / 200)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.02)


@pytest.mark.cuda
def test_cuda_equals_cpu():
    x, y = random_data()
    tables = [SeparationIndex(x, y, device=d).report(2, interval=True) for d in ("cpu", "cuda")]
    assert tables[0].equals(tables[1])
