"""Transitions between layers equal what loops over samples and layers say."""

import numpy as np
import pytest
import torch
from labeled_data import record_across

from siutils import SeparationIndex
from siutils.layers.explanations import findings, sentence
from siutils.layers.transitions import (
    STATES,
    class_arrival,
    compare_changes,
    flows,
    paired_tests,
    settled_at,
    shortest_prefix,
)
from siutils.separation.comparison import compare, sign_test


def random_separation(n_layers, n, seed):
    generator = torch.Generator().manual_seed(seed)
    rate = torch.linspace(0.3, 0.9, n_layers)[:, None]
    return torch.rand(n_layers, n, generator=generator) < rate


# Naive oracles


def settled_by_loop(separated):
    depths = range(len(separated) + 1)
    return [min(d for d in depths if all(column[d:])) for column in separated.T]


def state_by_loop(column, depth):
    if column[depth]:
        return "for good" if all(column[depth:]) else "for now"
    return "not yet" if column[-1] else "not at the end"


@pytest.mark.parametrize(("n_layers", "n"), [(1, 5), (2, 40), (8, 60)])
@pytest.mark.parametrize("seed", range(3))
def test_settling_and_flows_equal_loops(n_layers, n, seed):
    separated = random_separation(n_layers, n, seed)
    before = separated.clone()
    assert settled_at(separated).tolist() == settled_by_loop(separated)
    table = flows(separated, [f"layer {d}" for d in range(n_layers)])
    for depth, row in table.iterrows():
        states = [state_by_loop(separated[:, i], depth) for i in range(n)]
        for state in STATES:
            assert row[state] == pytest.approx(states.count(state) / n)
        moves = separated[[max(depth - 1, 0), depth]].T.tolist()  # before, after
        assert row["gained"] == pytest.approx(moves.count([False, True]) / n)
        assert row["lost"] == pytest.approx(moves.count([True, False]) / n)
    si = separated.double().mean(1).numpy()
    np.testing.assert_allclose(table["for good"] + table["for now"], si)
    np.testing.assert_allclose(table[list(STATES)].sum(axis=1), 1)
    np.testing.assert_allclose(np.diff(si), (table["gained"] - table["lost"])[1:])
    assert torch.equal(separated, before)


@pytest.mark.parametrize("labels", [[3, -7] * 20, [0] * 39 + [100], list(range(40))])
def test_class_arrival_equals_a_loop(labels):
    labels, settled = torch.tensor(labels), settled_at(random_separation(5, 40, 1))
    table = class_arrival(settled, labels, 5).set_index("label")
    assert sorted(table.index) == sorted(set(labels.tolist()))
    assert (table["mean_depth"].diff().dropna() <= 0).all()
    for label, row in table.iterrows():
        own = [int(s) for s, y in zip(settled, labels, strict=True) if y == label]
        assert row["n"] == len(own)
        assert row["mean_depth"] == pytest.approx(sum(own) / len(own))
        assert row["never"] == pytest.approx(own.count(5) / len(own))
        arrived = [d for d in range(6) if 2 * sum(s <= d for s in own) >= len(own)]
        assert row["half"] == arrived[0]


# Paired tests


def two_layers(n=150, shift=0.0):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % 5 * 3 - 4  # gaps, negative
    first = torch.randn(n, 6, generator=generator) + labels[:, None] / 4 + shift
    second = first + 0.7 * torch.randn(n, 6, generator=generator)
    return [SeparationIndex(x, labels, normalize=True, device="cpu") for x in (first, second)]


def kept(index):
    return index.record(lists=True)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_layers_are_compared_as_separation_indices_are(shift):
    first, second = two_layers(shift=shift)
    expected = first.compare(second)
    found = compare(kept(first), kept(second))
    assert found[:-1] == expected[:-1]
    assert found.classes.equals(expected.classes)
    (row,) = paired_tests({"a": (kept(second), kept(first))}).to_dict("records")
    assert (row["after"], row["before"]) == (expected.value, expected.other)
    assert (row["gained"], row["lost"]) == (expected.wins, expected.losses)
    ends = ("p_value", "low", "high")
    assert [row[name] for name in ends] == [getattr(expected, name) for name in ends]


def test_across_two_sets_the_design_effect_is_one():
    first, second = (record_across(s) for s in random_separation(2, 80, 0))
    found = compare(first, second)
    wins = int((first.separated & ~second.separated).sum())
    losses = int((second.separated & ~first.separated).sum())
    assert (found.design_effect, found.wins, found.losses) == (1.0, wins, losses)
    assert found.p_value == sign_test(wins, losses, mid=True)


def test_verdicts_are_corrected_for_their_number():
    before, better = record_across(torch.zeros(8).bool()), record_across(torch.arange(8) < 6)
    assert paired_tests({"a": (before, better)})["verdict"].item() == "rises"  # p = 1/64
    many = paired_tests({str(i): (before, better) for i in range(9)})
    assert set(many["verdict"]) == {"unclear"}
    down = paired_tests({"a": (better, before)})
    assert (down["verdict"].item(), down["change"].item()) == ("falls", -0.75)


def test_layers_of_other_samples_are_refused():
    first = record_across(torch.ones(4).bool(), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="labels differ"):
        compare(first, record_across(torch.ones(4).bool()))
    index = two_layers()[0]
    across = record_across(torch.ones(index.n).bool(), kept(index).labels)
    with pytest.raises(ValueError, match="both be scored within one set"):
        compare(kept(index), across)
    with pytest.raises(ValueError, match="index center_si needs center hits"):
        across.values("center_si")
    with pytest.raises(ValueError, match="order must lie in 1 … 1"):
        across.values("anti_si", 2)
    with pytest.raises(ValueError, match=r"need 8 neighbors of each sample.*interval=True"):
        compare(*(SeparationIndex(x, torch.arange(9) % 2).record(1) for x in torch.rand(2, 9, 1)))
    with pytest.raises(ValueError, match="at least one pair"):
        paired_tests({})
    with pytest.raises(ValueError, match="reference must be one of layer 0, layer 1"):
        prefix_of([1, 2], 7)
    with pytest.raises(ValueError, match="bool"):
        settled_at(torch.ones(2, 3))
    with pytest.raises(ValueError, match="2 names"):
        flows(torch.ones(2, 3).bool(), ["a"])
    with pytest.raises(ValueError, match="labels must be"):
        class_arrival(torch.ones(3).long(), torch.ones(2).long(), 2)


# The shortest prefix


def prefix_of(counts, reference, n=200):
    parts = {f"layer {d}": record_across(torch.arange(n) < k) for d, k in enumerate(counts)}
    return shortest_prefix(parts, f"layer {reference}")


@pytest.mark.parametrize(
    ("counts", "reference", "expected"),
    [
        ([20, 100, 180, 182, 181], 3, 2),
        ([180, 20, 181, 182], 3, 2),  # not worse at first, but a later layer is
        ([182, 182, 182], 2, 0),
        ([20, 60, 100], 2, 2),
        ([100, 20], 0, 0),
    ],
)
def test_the_prefix_ends_where_nothing_behind_it_is_worse(counts, reference, expected):
    layer, tests = prefix_of(counts, reference)
    assert layer == f"layer {expected}"
    assert len(tests) == reference
    if reference:
        worse = tests["verdict"] == "rises"
        assert not worse[expected:].any()
        assert expected == 0 or worse[expected - 1]
        np.testing.assert_allclose(tests["after"], counts[reference] / 200)


# What it means


@pytest.mark.parametrize(
    ("baseline", "without", "expected"),
    [
        (50, 100, "difference +0.250 (+0.190 … +0.310): the fall is smaller, none is shown to be"),
        (50, 80, "(+0.100 … +0.200): the fall is smaller, a fall is left"),
        (50, 150, "the fall is smaller, SI rises"),
        (50, 30, "the fall is larger, a fall is left"),
        (50, 50, "not shown to matter, and the fall is there: this is not the only reason"),
        (93, 96, "(-0.004 … +0.034): not shown to matter."),  # one falls, the other is not shown to
        (100, 50, "shown; there is no fall to explain"),
        (150, 150, "not shown; there is no fall to explain"),
    ],
)
def test_findings_follow_from_the_difference_of_changes(baseline, without, expected):
    cases = {
        case: tuple(record_across(torch.arange(200) < k) for k in (100, after))
        for case, after in (("base", baseline), ("c", without))
    }
    tests = paired_tests(cases)
    table = findings(cases, tests, {"x": ("base", ["c"])})
    assert expected in table["finding"][0]
    assert table["difference"][0] == pytest.approx((without - baseline) / 200)
    assert sentence(tests.to_dict("records")[0]).startswith("**base**: SI 0.500 →")
    with pytest.raises(KeyError, match="nowhere"):
        findings(cases, tests, {"x": ("base", ["nowhere"])})


def test_other_samples_are_stated_but_not_paired():
    cases = {name: (record_across(torch.ones(n).bool()),) * 2 for name, n in (("a", 30), ("b", 40))}
    given = paired_tests(cases), {"x": ("a", ["b"])}
    (found,) = findings(cases, *given, other_samples=["b"])["finding"]
    assert found.endswith("of a; these are other images, so that the difference is not tested.")
    with pytest.raises(ValueError, match="must hold the same samples"):
        findings(cases, *given)


def test_a_difference_of_changes_knows_that_neighbors_depend_on_each_other():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(300, 4, 3, generator=generator), torch.arange(300) % 3
    x = x + y[:, None, None] * torch.tensor([0.0, 0.5, 1.0, 0.8])[:, None]
    parts = [SeparationIndex(x[:, i], y) for i in range(4)]
    a, b, c, d = (kept(part) for part in parts)
    plain = compare(b, a)
    # no change there: the change here is all
    assert compare_changes((a, b), (a, a)) == pytest.approx((plain.effect, plain.low, plain.high))
    gap, low, high = compare_changes((a, b), (b, a))
    assert gap == pytest.approx(2 * plain.effect)
    assert high - low == pytest.approx(2 * (plain.high - plain.low), rel=0.05)
    values = [part.separated.double() for part in (b, a, d, c)]
    gap, low, high = compare_changes((a, b), (c, d))
    assert gap == pytest.approx(float((values[0] - values[1] - values[2] + values[3]).mean()))
    with pytest.raises(ValueError, match="both be scored within one set"):
        compare_changes((a, b), (record_across(c.separated, y), record_across(d.separated, y)))
