"""Splits and subsets: their sizes, their balance, the same draw everywhere."""

import numpy as np
import pytest
import torch

from siutils.core.splits import balanced_subset, train_val_split


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9, 1 - 1e-12])
def test_split_is_a_stratified_partition(fraction):
    labels = np.repeat([3, -1, 7, 4], [50, 33, 2, 1])
    np.random.default_rng(0).shuffle(labels)
    train, val = train_val_split(labels, fraction, seed=1)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(86))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)
    for label, count in ((3, 50), (-1, 33), (7, 2)):
        share = int((labels[val] == label).sum())
        assert abs(share - count * fraction) < 1
        assert share < count
    assert not (labels[val] == 4).any()  # the single sample is for training


def test_split_sizes_of_cifar100_are_exact():
    labels = torch.arange(50_000) % 100
    train, val = train_val_split(labels)
    assert (len(train), len(val)) == (40_000, 10_000)
    assert torch.bincount(labels[val]).tolist() == [100] * 100


def test_split_total_is_exact_where_class_shares_are_fractions():
    labels = np.repeat(np.arange(10), 7)  # 1.4 of each class, 14 in all
    _, val = train_val_split(labels, 0.2)
    assert len(val) == 14
    assert sorted(np.bincount(labels[val])) == [1] * 6 + [2] * 4


VAL = [4, 8, 15, 17, 27, 28]
CHOSEN = [1, 10, 15, 17, 26, 27]


def test_choices_are_the_same_on_every_platform_and_leave_global_seeds_alone():
    labels = torch.arange(30) % 3
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _, val = train_val_split(labels, seed=42)
    chosen = balanced_subset(labels, 2, seed=42)
    assert val.tolist() == VAL
    assert chosen.tolist() == CHOSEN
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert train_val_split(labels, seed=43)[1].tolist() != VAL


def test_balanced_subset_is_balanced_and_inside():
    labels = torch.tensor([9] * 20 + [-4] * 8 + [100] * 5)
    chosen = balanced_subset(labels, 5, seed=3)
    assert labels[chosen].unique(return_counts=True)[1].tolist() == [5, 5, 5]
    assert len(chosen.unique()) == 15
    assert torch.equal(chosen, chosen.sort().values)


def test_balanced_subset_draws_every_sample_equally_often():
    labels = torch.zeros(10, dtype=torch.int64)
    counts = sum(
        torch.bincount(balanced_subset(labels, 5, seed=s), minlength=10) for s in range(400)
    )
    assert counts.sum() == 2000
    assert (counts - 200).abs().max() < 50  # 200 ± 10 each; five standard deviations


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: balanced_subset([0, 0, 8], 2), ValueError, "class 8 has only 1 sample"),
        (lambda: balanced_subset([0], 0), ValueError, "per_class"),
        (lambda: balanced_subset([0.5], 1), TypeError, "labels must be integers"),
        (lambda: balanced_subset([[0, 2]], 1), ValueError, r"labels must have shape \(N,\)"),
        (lambda: balanced_subset([0], 1, seed=-1), ValueError, "seed"),
        (lambda: train_val_split([0, 0], 1.0), ValueError, "val_fraction"),
        (lambda: train_val_split([0, 0], 0), ValueError, "val_fraction"),
        (lambda: train_val_split([0, 1, 2]), ValueError, "leave none for validation"),
        (lambda: train_val_split([]), ValueError, "N ≥ 1"),
    ],
)
def test_splits_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()
