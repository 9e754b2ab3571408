"""Confusion, hardest samples and suspected errors against loops written from their definitions."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from labeled_data import DATA, RNG
from reference import brute_neighbors
from sklearn.datasets import load_digits

from siutils import Neighbors, SeparationIndex, kneighbors
from siutils.separation.samples import (
    hardest_samples,
    label_errors,
    neighbor_confusion,
    neighbor_table,
    score_transitions,
    separated_by_first,
)

K = 12


@pytest.mark.parametrize("name", DATA)
def test_confusion_counts_pairs(name):
    x, y = DATA[name]
    near = kneighbors(x, 3).indices.numpy()
    table = neighbor_confusion(torch.from_numpy(y), torch.from_numpy(y[near]))
    classes = np.unique(y).tolist()
    assert table.index.tolist() == table.columns.tolist() == classes
    pairs = Counter((y[i], y[j]) for i, row in enumerate(near) for j in row)
    assert table.to_numpy().tolist() == [[pairs[a, b] for b in classes] for a in classes]


def test_confusion_across_sets_shows_classes_that_either_lacks():
    table = neighbor_confusion([3, 1], [[-2], [1]])
    assert table.index.tolist() == table.columns.tolist() == [-2, 1, 3]
    assert table.to_numpy().tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def first_distance(distances, hits, wanted):
    return next((d for d, h in zip(distances, hits, strict=True) if h == wanted), distances[-1])


def ratio_of(distances, hits):
    same, other = (first_distance(distances, hits, wanted) for wanted in (True, False))
    if same == other:
        return 1.0
    return 10.0 if other == 0 else min(max(same / other, 0.1), 10.0)


COLUMNS = ["place", "sample", "label", "rank", "neighbor", "neighbor_label", "distance"]


def rows_of(samples, y, distances, indices, first_place=1):
    """The rows that a table of neighbors should have for these samples."""
    return [
        [place, i, y[i], rank, j, y[j], distance]
        for place, i in enumerate(samples, first_place)
        for rank, (j, distance) in enumerate(zip(indices[i], distances[i], strict=True), 1)
    ]


@pytest.mark.parametrize("name", DATA)
def test_hardest_samples_equal_the_oracle(name):
    x, y = DATA[name]
    distances, indices = brute_neighbors(x, K)
    keys = []
    for i in range(len(y)):
        hits = list(y[indices[i]] == y[i])
        run = hits.index(True) if True in hits else K
        keys.append((-run, -ratio_of(distances[i], hits), i))
    table = hardest_samples(y, kneighbors(x, K), n=15)
    assert len(table) == 15 * K
    for place, (run, _, i) in enumerate(sorted(keys)[:15]):
        rows = table[table["place"] == place + 1]
        expected = rows_of([i], y, distances, indices, first_place=place + 1)
        assert rows.drop(columns="run").values.tolist() == expected
        assert (rows["run"] == -run).all()


def error_oracle(x, y, k):
    """(suspicion, suggested label, own vote, other vote) of each sample, from the definition."""
    distances, indices = brute_neighbors(x, k)
    result = []
    for i, label in enumerate(y):
        votes = {}
        for c in np.unique(y):
            members = (y == c).sum() - (c == label)
            most = sum(1 / r for r in range(1, min(members, k) + 1))
            cast = sum(1 / (r + 1) for r, j in enumerate(indices[i]) if y[j] == c)
            votes[c] = cast / most if most else math.nan
        own = votes.pop(label)
        suggested = max(sorted(votes), key=lambda c, votes=votes: votes[c])
        other = votes[suggested]
        ratio = ratio_of(distances[i], list(y[indices[i]] == label))
        suspicion = math.log(other + 1 / k) - math.log(own + 1 / k) + math.log(ratio) / 2
        result.append((suspicion, suggested, own, other))
    return result


@pytest.mark.parametrize("name", [n for n in DATA if n != "one_class"])  # which is refused
@pytest.mark.parametrize("k", [1, K, 60])
def test_label_errors_equal_the_oracle(monkeypatch, name, k):
    monkeypatch.setattr("siutils.separation.samples._ROWS", 50)  # more than one part
    x, y = DATA[name]
    table = label_errors(y, kneighbors(x, k)).set_index("sample")
    assert sorted(table.index) == list(range(len(y)))
    for i, (suspicion, suggested, own, other) in enumerate(error_oracle(x, y, k)):
        row = table.loc[i]
        assert row["label"] == y[i]
        assert row["suspicion"] == pytest.approx(suspicion, abs=1e-12, nan_ok=True)
        if not math.isnan(suspicion):
            assert (row["vote"], row["suggested_vote"]) == pytest.approx((own, other), abs=1e-12)
            assert row["suggested"] == suggested
    values = table["suspicion"].to_numpy()
    np.testing.assert_array_equal(values, -np.sort(-values))  # NaN last


@pytest.mark.parametrize("seed", range(2))
def test_flipped_labels_of_digits_are_found(seed):
    x, y = load_digits(return_X_y=True)
    rng = RNG(seed)
    where = rng.choice(len(y), 36, replace=False)
    noisy = y.copy()
    noisy[where] = (y[where] + rng.integers(1, 10, 36)) % 10
    table = label_errors(noisy, kneighbors(x, 200), n=36)
    found = table[table["sample"].isin(where)]
    assert len(found) >= 33
    assert (found["suggested"] == y[found["sample"]]).mean() >= 0.95
    assert (hardest_samples(noisy, kneighbors(x, 20), 36)["sample"].isin(where)).mean() > 0.75


@pytest.mark.parametrize("name", DATA)
def test_neighbors_of_chosen_samples_are_theirs(name):
    x, y = DATA[name]
    distances, indices = brute_neighbors(x, 3)
    chosen = RNG(0).integers(0, len(y), 6)  # in any order, and twice the same
    table = SeparationIndex(x, y, device="cpu").neighbor_table(chosen, k=3)
    assert table.columns.tolist() == COLUMNS
    assert table.values.tolist() == rows_of(chosen, y, distances, indices)


BOUNDS = {
    (1,): {"≤ −1": (-99, -1), "≥ 1": (1, 99)},
    (1, 2, 4, 10): {
        "≤ −10": (-99, -10), "−9…−4": (-9, -4), "−3…−2": (-3, -2), "−1": (-1, -1),
        "1": (1, 1), "2…3": (2, 3), "4…9": (4, 9), "≥ 10": (10, 99),
    },
}  # fmt: skip


@pytest.mark.parametrize("bounds", BOUNDS)
def test_transitions_count_every_pair_of_scores(bounds):
    rng = RNG(1)
    before, after = (rng.choice(np.r_[-14:0, 1:15], 400) for _ in range(2))
    table = score_transitions(before, torch.from_numpy(after), bounds)
    expected = [
        [a, b, sum(la <= p <= ha and lb <= q <= hb for p, q in zip(before, after, strict=True))]
        for a, (la, ha) in BOUNDS[bounds].items()
        for b, (lb, hb) in BOUNDS[bounds].items()
    ]
    assert table.values.tolist() == expected
    assert table["samples"].sum() == 400


def test_separated_by_first_takes_the_clearest_of_each_class_in_turn():
    rng = RNG(2)
    for _ in range(20):
        first, second = (rng.choice([-3, -2, -1, 1, 2, 3], 80) for _ in range(2))
        labels = rng.integers(0, 5, 80) * 2 - 3
        classes = [int(c) for c in rng.permutation(np.unique(labels))[:3]]
        queues = [
            sorted((second[i] - first[i], i) for i in range(80)
                   if first[i] > 0 > second[i] and labels[i] == c)
            for c in classes
        ]  # fmt: skip
        expected = [queue[turn][1] for turn in range(80) for queue in queues if turn < len(queue)]
        assert separated_by_first(first, second, labels, classes, n=99) == expected
        assert separated_by_first(first, second, labels, classes, n=4) == expected[:4]
    assert separated_by_first([1, -1], [2, -4], [0, 0], [0]) == []


NEAR = Neighbors(torch.ones(3, 2), torch.tensor([[1, 2], [0, 2], [0, 1]]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: neighbor_confusion([0, 1], [[0]]), ValueError, "neighbor_labels must be"),
        (lambda: neighbor_confusion([0], [[0.5]]), TypeError, "neighbor_labels must be integers"),
        (lambda: hardest_samples([0, 1], NEAR), ValueError, "neighbors must be .* with N = 2"),
        (lambda: hardest_samples([0, 1, 1], NEAR, 0), ValueError, "n must be an integer ≥ 1"),
        (lambda: label_errors([0, 1, 1], NEAR, -1), ValueError, "n must be an integer ≥ 1"),
        (lambda: label_errors([2, 2, 2], NEAR), ValueError, "labels are all 2"),
        (lambda: label_errors([0.5, 1, 1], NEAR), TypeError, "labels must be integers"),
        (lambda: neighbor_table([0, 1, 1], NEAR, [3]), ValueError, "chosen must be 0 … 2, got 3"),
        (lambda: score_transitions([1], [1, 2]), ValueError, "of the same samples; got 1 and 2"),
        (lambda: score_transitions([0], [1]), ValueError, "which are never 0"),
        (lambda: score_transitions([1], [1], [2, 4]), ValueError, r"ascend from 1; got \[2, 4\]"),
        (lambda: separated_by_first([1], [-1], [0, 0], [0]), ValueError, "1, 1 and 2"),
    ],
)
def test_wrong_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
