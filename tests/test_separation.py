"""SeparationIndex against a float64 oracle, its identities and invariances, and wrong inputs."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labeled_data import DATA, RNG, random_data
from reference import center_values, class_values, index_values, zscore

from siutils import SeparationIndex, kneighbors
from siutils.core.splits import balanced_subset
from siutils.data.datasets import load_dataset
from siutils.separation import samples, selection, triplets
from siutils.separation.indices import chance


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_every_index_equals_the_float64_oracle(name, normalize):
    x, y = DATA[name]
    reference = zscore(x) if normalize else x
    s = SeparationIndex(x, y, normalize=normalize, device="cpu")
    assert s.classes.tolist() == np.unique(y).tolist()
    for order in (1, 2, 5):
        oracle = index_values(reference, y, order)
        for index in ("high_order_si", "soft_order_si", "anti_si"):
            check(lambda per, i=index, r=order: getattr(s, i)(r, per=per), oracle[index], y)
    check(lambda per: s.si(per=per), oracle["si"], y)
    check(lambda per: s.center_si(per=per), center_values(reference, y), y)


def check(index, oracle, labels):
    assert index("dataset") == pytest.approx(oracle.mean(), abs=1e-12)
    np.testing.assert_allclose(index("class"), class_values(oracle, labels), atol=1e-12)
    assert index("macro") == pytest.approx(class_values(oracle, labels).mean(), abs=1e-12)
    np.testing.assert_array_equal(index("sample"), oracle)


@given(st.integers(0, 2**31), st.integers(3, 40), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_identities_and_invariances(seed, n, d, classes):
    rng = RNG(seed)
    x, y = rng.normal(size=(n, d)), rng.integers(0, classes, n)  # no ties: they break by position
    s = SeparationIndex(x, y)
    assert s.si() == s.high_order_si(1) == s.soft_order_si(1)
    assert s.si() == pytest.approx(1 - s.anti_si(1), abs=1e-12)
    for r in range(2, min(5, n)):
        assert s.high_order_si(r) <= s.soft_order_si(r) + 1e-12
        assert s.soft_order_si(r) <= 1 - s.anti_si(r) + 1e-12
    order = rng.permutation(n)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    names = rng.permutation(100)[:classes] - 50
    values = s.report(2)["value"]
    for other in (
        SeparationIndex(x[order], y[order]),
        SeparationIndex(x @ rotation, y),
        SeparationIndex(x * 10 ** rng.uniform(-6, 6), y),
        SeparationIndex(x, names[y]),
    ):
        np.testing.assert_allclose(other.report(2)["value"], values, atol=1e-12)


def test_report_is_tidy_and_says_what_each_number_is():
    x, y = random_data()
    table = SeparationIndex(x, y, normalize=True).report(max_order=3)
    assert list(table["index"].unique()) == [
        "si", "high_order_si", "soft_order_si", "anti_si", "center_si",
    ]  # fmt: skip
    assert list(table.columns) == [
        "index", "order", "value", "macro", "chance", "lift", "attainable", "undefined",
        "n", "n_features", "n_classes", "normalize", "n_constant",
    ]  # fmt: skip
    assert (table["n"] == 150).all()
    assert table["normalize"].all()
    counts = np.bincount(y).tolist()
    for row in table[table["index"] != "center_si"].itertuples():
        oracle = index_values(zscore(x), y, row.order)[row.index]
        assert row.value == pytest.approx(oracle.mean())
        assert row.macro == pytest.approx(class_values(oracle, y).mean())
        assert row.chance == pytest.approx(chance(row.index, counts, row.order))


def test_inputs_are_never_modified_and_labels_may_be_any_integers():
    x, y = random_data()
    for given_x in (x, x.astype(float)):
        before = given_x.copy(), y.copy()
        s = SeparationIndex(given_x, y, normalize=True)
        s.report(2), s.cross_si(given_x[:9], y[:9])
        np.testing.assert_array_equal(given_x, before[0])
        np.testing.assert_array_equal(y, before[1])
    small = SeparationIndex(torch.from_numpy(x), torch.from_numpy(y).to(torch.int8), normalize=True)
    assert small.si() == s.si()


# Wrong inputs: one error that names the argument.

X, Y = random_data(n=10)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (X, Y[:-1], ValueError, "features and labels must have the same length; got 10 and 9"),
        (X[0], Y, ValueError, r"features must have shape \(N, D\)"),
        (X[:, :0], Y, ValueError, "features must have shape"),
        (X[:1], Y[:1], ValueError, "features has 1 sample"),
        (X.astype(complex), Y, TypeError, "features must be real"),
        ([["a"]], Y, TypeError, "features must be real numbers"),
        (X, Y + 0.5, TypeError, "labels must be integers or names; labels"),
        (X, Y[:, None].repeat(2, 1), ValueError, r"labels must have shape \(N,\)"),
        (np.where(X[7, 2] == X, np.nan, X), Y, ValueError, "features must be finite; row 7"),
        (np.where(X[3, 0] == X, np.inf, X), Y, ValueError, "features must be finite; row 3"),
    ],
)
def test_wrong_input_is_one_clear_error(features, labels, error, message):
    with pytest.raises(error, match=message):
        SeparationIndex(features, labels)


def test_wrong_arguments_of_the_indices():
    s = SeparationIndex(X, Y)
    for call in (s.high_order_si, s.anti_si, s.report, s.divide, s.confusion, s.cross(X, Y).report):
        with pytest.raises(ValueError, match=r"order must lie in 1 … .*; got 0"):
            call(0)
    with pytest.raises(ValueError, match=r"order must lie in 1 … 9"):
        s.high_order_si(10)
    with pytest.raises(TypeError, match="order must be an integer"):
        s.anti_si(1.5)
    for call in (s.si, s.center_si, lambda per: s.cross_si(X, Y, per=per)):
        with pytest.raises(ValueError, match="per must be one of dataset, class, sample"):
            call(per="classes")
    with pytest.raises(ValueError, match="test_features must have D = 5"):
        s.cross_si(X[:, :3], Y)
    with pytest.raises(ValueError, match="test_features and test_labels"):
        s.cross_si(X, Y[:3])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises((ValueError, RuntimeError), match="device"):
        SeparationIndex(X, Y, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("name", DATA)
def test_cuda_equals_cpu(name):
    x, y = DATA[name]
    tables = [SeparationIndex(x, y, normalize=True, device=d).report(5) for d in ("cpu", "cuda")]
    assert tables[0].equals(tables[1])


# Which samples, which features: methods on the z-scored features with the caller's labels.


def test_samples_and_features_are_those_of_the_scaled_data():
    x, y = random_data(5)
    y = y * 7 - 3
    scaled, s = zscore(x), SeparationIndex(x, y, normalize=True)
    near = kneighbors(scaled, 8)
    same = pd.testing.assert_frame_equal  # distances: but for rounding
    same(s.confusion(2), samples.neighbor_confusion(y, y[near.indices[:, :2]]))
    assert np.trace(s.confusion()) / len(y) == s.si()
    same(s.hardest(5, k=8), samples.hardest_samples(y, near, 5))
    everyone = kneighbors(scaled, len(y) - 1)  # the default asks for more than there are
    same(s.label_errors(9), samples.label_errors(y, everyone, 9))
    torch.testing.assert_close(s.local_triplets(), triplets.local_triplets(scaled, y))
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = triplets.global_triplet_index(scaled, y, 500, draws[0])
    assert s.global_triplet_index(500, draws[1]) == expected
    assert torch.equal(s.feature_si(), selection.single_feature_si(scaled, y))
    same(s.select_features(3), selection.forward_selection(scaled, y, 3))


@pytest.mark.cifar100
def test_the_published_numbers_on_a_balanced_subset_of_cifar100():
    data = load_dataset("cifar100")

    def pixels_and_labels(per_class):
        subset = data.subset(balanced_subset(data.labels, per_class))
        return (subset.images.flatten(1) / 255).numpy(), subset.labels.numpy()

    s = SeparationIndex(*pixels_and_labels(25), normalize=True)
    assert s.si() == pytest.approx(0.069, abs=0.01)
    x, y = pixels_and_labels(5)
    s, oracle = SeparationIndex(x, y, normalize=True), index_values(zscore(x), y, 2)
    assert s.si() == oracle["si"].mean()
    assert s.anti_si(2) == oracle["anti_si"].mean()
