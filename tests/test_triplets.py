"""Triplets against loops over all samples, and what happens where a triplet does not exist."""

import numpy as np
import pytest
import torch
from labeled_data import DATA, RNG
from reference import brute_neighbors

from siutils import SeparationIndex, kneighbors
from siutils.separation.triplets import global_triplet_index, local_triplet_index, local_triplets


def oracle(x, y):
    """Nearest of each kind by walking through the whole sorted list of every sample."""
    distances, order = brute_neighbors(x, len(x) - 1)
    rows = {"same": [], "other": []}
    for i, label in enumerate(y):
        for kind, wanted in (("same", True), ("other", False)):
            walk = zip(order[i], distances[i], strict=True)
            found = (pair for pair in walk if (y[pair[0]] == label) == wanted)
            rows[kind].append(next(found, (-1, np.inf)))
    return {kind: tuple(map(np.array, zip(*pairs, strict=True))) for kind, pairs in rows.items()}


def separated(n=120):
    """Classes so far apart that no neighbor list of 16 reaches another one."""
    y = RNG(7).integers(0, 3, n)
    return (RNG(8).normal(size=(n, 4)) + 100 * y[:, None]).astype(np.float32), y


CASES = {**DATA, "separated": separated()}


@pytest.mark.parametrize("name", CASES)
def test_local_triplets_equal_the_oracle(name):
    x, y = CASES[name]
    expected = oracle(x, y)
    for neighbors in (None, kneighbors(x, 1)):
        found = local_triplets(x, y, neighbors)
        for kind in ("same", "other"):
            indices, distances = expected[kind]
            np.testing.assert_array_equal(getattr(found, kind), indices)
            np.testing.assert_array_equal(getattr(found, f"{kind}_distances"), distances)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([0.0, 1.0, 5.0], [4, 4, 9], [1, 1, 0]),  # the last has no other sample of its class
        ([0.0, 1.0], [0, 0], [1, 1]),  # no other class
        ([0.0, 1.0, 2.0], [0, 0, 1], [1, 0, 0]),  # a tie counts 0; in SI the lower index wins
    ],
)
def test_local_triplet_index_of_missing_samples_and_ties(x, y, expected):
    triplets = local_triplets(torch.tensor(x)[:, None], y)
    assert local_triplet_index(triplets).tolist() == expected


@pytest.mark.parametrize("name", ["random", "shifted", "single_sample_class"])
def test_local_triplet_index_is_si_where_there_are_no_ties(name):
    x, y = DATA[name]
    values = local_triplet_index(local_triplets(x, y))
    assert torch.equal(values, SeparationIndex(x, y).si(per="sample"))


@pytest.mark.parametrize("name", ["random", "duplicates", "label_gap", "single_sample_class"])
def test_global_triplet_index_estimates_the_share_over_all_triplets(name):
    x, y = (part[:40] for part in DATA[name])
    squared = ((x[:, None].astype(float) - x) ** 2).sum(2)
    shares = []
    for a in range(len(x)):
        same = [p for p in range(len(x)) if y[p] == y[a] and p != a]
        if same:  # anchors weigh the same, whatever the size of their class
            shares.append(np.mean(squared[a, same][:, None] < squared[a, y != y[a]]))
    value = global_triplet_index(x, y, 200_000, torch.Generator().manual_seed(3))
    assert value == pytest.approx(np.mean(shares), abs=5 * 0.5 / 200_000**0.5)


def test_global_triplet_index_comes_from_its_generator_alone():
    x, y = DATA["random"]
    state = torch.random.get_rng_state()
    first, second = (
        global_triplet_index(x, y, 500, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: local_triplets([[0.0], [1.0]], [0]), "same length; got 2 and 1"),
        (lambda: local_triplets([[0.0], [np.nan]], [0, 1]), "NaN or infinity"),
        (lambda: global_triplet_index([[0.0], [1.0]], [0, 1]), "labels allow no triplet: 2 class"),
        (lambda: global_triplet_index([[0.0], [1.0]], [0, 0]), "labels allow no triplet: 1 class"),
        (lambda: global_triplet_index([[0.0], [1.0]], [0, 0], 0), "n_triplets must be an integer"),
        (lambda: global_triplet_index([0.0, 1.0], [0, 0]), r"features must have shape \(N, D\)"),
    ],
)
def test_wrong_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
