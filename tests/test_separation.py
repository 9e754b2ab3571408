"""SeparationIndex against a float64 oracle, the upstream defects, and wrong inputs."""

import numpy as np
import pytest
import torch
from reference import brute_neighbors, center_values, class_values, index_values, zscore

from siutils import SeparationIndex, SeparationIndexMetric

RNG = np.random.default_rng


def random_data(seed=0, n=150, d=5, classes=4):
    rng = RNG(seed)
    labels = rng.integers(0, classes, n)
    return (rng.normal(size=(n, d)) + labels[:, None] * 0.6).astype(np.float32), labels


def duplicates():
    x, _ = random_data(1, 60)
    pick = RNG(2).integers(0, 60, 200)
    return x[pick], RNG(3).integers(0, 3, 200)


def constant_feature():
    x, y = random_data(4)
    x[:, 2] = 0.1
    return x, y


def grid():
    x = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2)
    return x, RNG(5).integers(0, 3, len(x))


DATA = {
    "random": random_data(),
    "duplicates": duplicates(),
    "shifted": (random_data()[0] + np.float32(1000), random_data()[1]),
    "constant_feature": constant_feature(),
    "label_gap": (random_data()[0], random_data()[1] * 7),
    "negative_labels": (random_data()[0], random_data()[1] - 2),
    "single_sample_class": (random_data()[0], np.r_[99, random_data()[1][1:]]),
}


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
    np.testing.assert_array_equal(index("sample"), oracle)


def test_ties_on_a_grid_go_to_the_lower_index():
    x, y = grid()
    oracle = index_values(x, y, 3)
    s = SeparationIndex(x, y)
    np.testing.assert_array_equal(s.soft_order_si(3, per="sample"), oracle["soft_order_si"])


@pytest.mark.parametrize("normalize", [False, True])
def test_cross_si_equals_the_oracle_and_scales_by_the_training_set(normalize):
    x, y = random_data()
    test_x, test_y = random_data(9, 80, classes=6)  # two classes that training lacks
    a, b = x, test_x
    if normalize:
        mean, std = x.astype(float).mean(0), x.astype(float).std(0, ddof=1) + 1e-10
        a, b = (x - mean) / std, (test_x - mean) / std
    oracle = index_values(a, y, 1, queries=b, query_labels=test_y)["si"]
    s = SeparationIndex(x, y, normalize=normalize)
    check(lambda per: s.cross_si(test_x, test_y, per=per), oracle, test_y)


def test_identities_and_invariances():
    x, y = random_data(6, 120)
    s = SeparationIndex(x, y)
    assert s.si() == s.high_order_si(1) == s.soft_order_si(1) == 1 - s.anti_si(1)
    for r in (2, 3, 4):
        assert s.high_order_si(r) <= s.soft_order_si(r) <= 1 - s.anti_si(r)
    order = RNG(0).permutation(len(x))
    rotation = np.linalg.qr(RNG(1).normal(size=(5, 5)))[0]
    for other in (
        SeparationIndex(x[order], y[order]),
        SeparationIndex(x @ rotation, y),
        SeparationIndex(x * 8, y),
        SeparationIndex(x, -5 * y + 3),
    ):
        assert other.soft_order_si(3) == pytest.approx(s.soft_order_si(3), abs=1e-12)


def test_neighbors_are_searched_once_and_as_deep_as_needed(monkeypatch):
    import siutils.separation as module

    depths = []
    search = module.kneighbors
    monkeypatch.setattr(
        module, "kneighbors", lambda x, k, **o: depths.append(k) or search(x, k, **o)
    )
    s = SeparationIndex(*random_data())
    s.si(), s.anti_si(4), s.high_order_si(3), s.soft_order_si(2, per="class")
    assert depths == [1, 4]


def test_report_is_tidy_and_says_what_each_number_is():
    x, y = random_data()
    table = SeparationIndex(x, y, normalize=True).report(max_order=3)
    assert list(table["index"].unique()) == [
        "si", "high_order_si", "soft_order_si", "anti_si", "center_si",
    ]  # fmt: skip
    assert list(table.columns) == [
        "index", "order", "value", "macro", "chance", "lift", "attainable", "undefined",
        "n", "n_features", "n_classes", "normalize",
    ]  # fmt: skip
    assert (table["n"] == 150).all()
    assert table["normalize"].all()
    soft = table[(table["index"] == "soft_order_si") & (table["order"] == 3)]
    assert soft["value"].item() == pytest.approx(
        index_values(zscore(x), y, 3)["soft_order_si"].mean()
    )


def test_random_labels_score_at_chance():
    rng = RNG(11)
    values, levels = [], None
    for _ in range(20):
        x, y = rng.normal(size=(400, 3)), rng.integers(0, 4, 400)
        table = SeparationIndex(x, y).report(2)
        values.append(table["value"])
        levels = table["chance"]
    mean = np.mean(values, axis=0)
    known = ~np.isnan(levels)
    np.testing.assert_allclose(mean[known], levels[known], atol=0.03)


def test_inputs_are_never_modified_and_labels_may_be_any_integers():
    x, y = random_data()
    before = x.copy(), y.copy()
    s = SeparationIndex(x, y, normalize=True)
    s.report(2), s.cross_si(x[:9], y[:9])
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])
    small = SeparationIndex(torch.from_numpy(x), torch.from_numpy(y).to(torch.int8), normalize=True)
    assert small.si() == s.si()


# Defects of the upstream classes, each with the data on which it showed.


def test_defect_duplicates_drop_another_sample_than_self():
    x, y = duplicates()
    assert SeparationIndex(x, y).si() == index_values(x, y, 1)["si"].mean()
    shifted = np.argsort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1, kind="stable")[:, 1]
    assert (y[shifted] == y).mean() != SeparationIndex(x, y).si()  # column 0 is not always self


def test_defect_offset_of_1000_changes_neighbors():
    x = RNG(0).integers(0, 4096, (300, 6)).astype(np.float32) / 256  # exact after the shift
    y = RNG(1).integers(0, 3, 300)
    a = SeparationIndex(x, y).si(per="sample")
    assert torch.equal(a, SeparationIndex(x + np.float32(1000), y).si(per="sample"))
    shifted = x + np.float32(1000)
    squares = (shifted**2).sum(1)
    naive = squares[:, None] + squares[None] - 2 * shifted @ shifted.T
    np.fill_diagonal(naive, np.inf)
    assert (naive.argmin(1) != brute_neighbors(x, 1)[1][:, 0]).mean() > 0.01


def test_defect_center_si_must_take_the_nearest_mean():
    x = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
    assert SeparationIndex(x, torch.tensor([0, 0, 1, 1])).center_si() == 1.0


def test_defect_per_class_anti_si_is_not_high_order_si():
    x, y = random_data()
    s = SeparationIndex(x, y)
    assert not torch.equal(s.anti_si(2, per="class"), s.high_order_si(2, per="class"))


def test_defect_cross_si_shifts_labels_by_the_test_minimum():
    x, y = random_data()
    keep = y > 0
    s = SeparationIndex(x, y)
    labels = y[keep].copy()
    oracle = index_values(x, y, 1, queries=x[keep] + 0.01, query_labels=labels)["si"].mean()
    assert s.cross_si(x[keep] + np.float32(0.01), labels) == pytest.approx(oracle, abs=0.02)
    np.testing.assert_array_equal(labels, y[keep])
    assert s.cross_si(x[keep], labels) == 1.0  # each test sample is a training sample


def test_defect_label_gaps_make_no_empty_classes():
    x, y = random_data()
    values = SeparationIndex(x, y * 10 - 3).si(per="class")
    assert values.shape == (4,)
    assert values.isfinite().all()


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
        ([["a"]], Y, TypeError, "features must be an array of real numbers"),
        (X, Y.astype(float), TypeError, "labels must be integers; got torch.float64"),
        (X, Y > 1, TypeError, "labels must be integers; got torch.bool"),
        (X, np.array(["cat"] * 10), TypeError, "labels must be an array of integers"),
        (X, Y[:, None], ValueError, r"labels must have shape \(N,\)"),
        (np.where(X[7, 2] == X, np.nan, X), Y, ValueError, "features must be finite; row 7"),
        (np.where(X[3, 0] == X, np.inf, X), Y, ValueError, "features must be finite; row 3"),
    ],
)
def test_wrong_input_is_one_clear_error(features, labels, error, message):
    with pytest.raises(error, match=message):
        SeparationIndex(features, labels)


def test_wrong_arguments_of_the_indices():
    s = SeparationIndex(X, Y)
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


def test_metric_equals_the_class_over_batches():
    x, y = map(torch.from_numpy, random_data())
    metric = SeparationIndexMetric(order=2, normalize=True)
    for start in range(0, len(x), 64):
        metric.update(x[start : start + 64], y[start : start + 64])
    s = SeparationIndex(x, y, normalize=True)
    assert metric.compute() == {
        "si": s.si(),
        "high_order_si": s.high_order_si(2),
        "soft_order_si": s.soft_order_si(2),
        "anti_si": s.anti_si(2),
        "center_si": s.center_si(),
    }
    metric.reset()
    with (
        pytest.raises(ValueError, match="nothing was added"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        metric.compute()


# The study's table 1, measured on the real images.


@pytest.mark.cifar100
def test_the_published_numbers_on_a_balanced_subset_of_cifar100():
    from siutils.data import balanced_subset, load_dataset

    data = load_dataset("cifar100")
    for per_class, published in ((25, 0.069), (5, None)):
        subset = data.subset(balanced_subset(data.labels, per_class))
        pixels = (subset.images.flatten(1) / 255).numpy()
        s = SeparationIndex(pixels, subset.labels, normalize=True)
        if published:
            assert s.si() == pytest.approx(published, abs=0.01)
    oracle = index_values(zscore(pixels), subset.labels.numpy(), 2)
    assert s.si() == oracle["si"].mean()
    assert s.anti_si(2) == oracle["anti_si"].mean()
