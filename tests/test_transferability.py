"""Each score against its published definition, written as naively as it can be."""

import warnings

import numpy as np
import pytest
import torch
from labeled_data import DATA, RNG, random_data
from reference import center_values
from scipy import optimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import StratifiedKFold

from siutils import ranking
from siutils.ranking.score_table import SCORES


def wide(n, d, classes=3, seed=6):
    x, y = random_data(seed, n, d, classes)
    return x * RNG(seed).uniform(0.1, 3, d).astype(np.float32), y


PLAIN, KINDS = random_data()
INPUTS = (
    {name: data for name, data in DATA.items() if name != "one_class"}
    | {
        "wide": wide(30, 50),
        "square": wide(24, 24),
        "very_wide": wide(12, 5000),  # more columns than one block
        "rank_2": (PLAIN[:, :2] @ RNG(7).normal(size=(2, 6)), KINDS),
        "exact_fit": (np.eye(4)[KINDS], KINDS),
        "exact_fit_large": (np.eye(4)[KINDS] * 1e3, KINDS),
        "no_signal": (RNG(8).normal(size=(60, 4)), np.arange(60) % 3),
        "all_constant": (np.full((50, 3), [0.1, 0.3, 1000.7]), np.arange(50) % 3),  # but for means
        "zeros": (np.zeros((20, 3)), np.arange(20) % 2),
    }
)


def log_evidence(x, y):
    """log Normal(y; 0, I/β + F Fᵀ/α), the weights integrated out, as a function of α and β."""
    values, vectors = np.linalg.eigh(x @ x.T)
    values, squares = values.clip(min=0), (vectors.T @ y) ** 2

    def evidence(alpha, beta):
        variances = 1 / beta + values / alpha
        return -(np.log(2 * np.pi * variances) + squares / variances).sum() / 2

    return evidence


def test_the_oracle_of_logme_is_a_normal_density():
    x, y = random_data(0, 12, 3)
    covariance = np.eye(12) / 7 + x.astype(float) @ x.T / 0.3
    density = multivariate_normal.logpdf(y, np.zeros(12), covariance)
    assert log_evidence(x.astype(float), y)(0.3, 7) == pytest.approx(density)


def naive_logme(x, labels):
    bounds = [(-25, 25), (-10, np.log(1e6))]
    values = []
    for label in np.unique(labels):
        evidence = log_evidence(x, (labels == label).astype(float))

        def loss(p, evidence=evidence):
            return -evidence(*np.exp(p)) / len(x)

        starts = [0, 0], [5, 3], [-5, 10]
        values.append(max(-optimize.minimize(loss, start, bounds=bounds).fun for start in starts))
    return np.mean(values)


def between_covariance(x, labels):
    means = np.stack([x[labels == label].mean(axis=0) for label in labels])
    return np.cov(means, rowvar=False, bias=True).reshape(x.shape[1], -1)


def naive_h_score(x, labels):
    total = np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1)
    if np.ptp(x, axis=0).max() == 0:
        return 0.0
    return np.trace(np.linalg.pinv(total, rcond=1e-10) @ between_covariance(x, labels))


def naive_regularized_h_score(x, labels):
    fit = LedoitWolf().fit(x)
    if np.ptp(x, axis=0).max() == 0:
        return 0.0
    between = (1 - fit.shrinkage_) * between_covariance(x, labels)
    return np.trace(np.linalg.inv(fit.covariance_) @ between)


def naive_transrate(x, labels, epsilon=1e-4):
    def rate(z):
        return np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * epsilon))[1] / 2

    z = x - x.mean(axis=0)
    classes = [z[labels == c] for c in np.unique(labels)]
    return rate(z) - sum(len(part) / len(z) * rate(part) for part in classes)


def naive_silhouette(x, labels):
    values = []
    for i, row in enumerate(x):
        distances = np.sqrt(((x - row) ** 2).sum(axis=1))
        same = (labels == labels[i]) & (np.arange(len(x)) != i)
        a = distances[same].mean() if same.any() else np.nan  # alone: 0
        b = min(distances[labels == c].mean() for c in np.unique(labels) if c != labels[i])
        values.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return np.mean(values)


def naive_leep(theta, labels):
    values = []
    for row, label in zip(theta, labels, strict=True):
        total = 0.0
        for k, share in enumerate(row):
            joint, marginal = theta[labels == label, k].sum(), theta[:, k].sum()
            total += joint / marginal * share if marginal > 0 else 0.0
        values.append(np.log(total))
    return np.mean(values)


def naive_nce(source, labels):
    pairs = list(zip(source, labels, strict=True))  # mean of log P(label | source label)
    return np.mean([np.log(pairs.count((z, y)) / np.sum(source == z)) for z, y in pairs])


def naive_probe(x, labels, folds, seed):
    """Accuracy of softmax regression with ½‖w‖² + Σ losses, minimized from numerical gradients."""
    classes, codes = np.unique(labels, return_inverse=True)
    accuracy = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, labels):
        mean, std = x[train].mean(axis=0), x[train].std(axis=0)
        z = (x - mean) / np.where(std > 0, std, 1)

        def logits(p, rows, z=z):
            w = p.reshape(len(classes), -1)
            return z[rows] @ w[:, 1:].T + w[:, 0]

        def loss(p, train=train, logits=logits):
            out = logits(p, train)
            penalty = (p.reshape(len(classes), -1)[:, 1:] ** 2).sum() / 2
            chosen = out[np.arange(len(train)), codes[train]]
            return penalty + (logsumexp(out, axis=1) - chosen).sum()

        best = optimize.minimize(loss, np.zeros(len(classes) * (x.shape[1] + 1))).x
        accuracy.append((logits(best, test).argmax(axis=1) == codes[test]).mean())
    return np.mean(accuracy)


ORACLES = {
    "h_score": naive_h_score,
    "regularized_h_score": naive_regularized_h_score,
    "transrate": naive_transrate,
    "silhouette": naive_silhouette,
    "nearest_center": lambda x, y: center_values(x, y).mean(),
}


@pytest.mark.parametrize("data", INPUTS)
@pytest.mark.parametrize("name", ORACLES)
def test_score_equals_its_definition(name, data):
    x, y = INPUTS[data]
    if data == "very_wide" and name != "silhouette":
        x = x[:, ::20]  # oracles invert D × D
    oracle = ORACLES[name](np.asarray(x, dtype=np.float64), y)
    assert SCORES[name](x, y) == pytest.approx(oracle, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("data", INPUTS)
def test_logme_is_the_highest_evidence(data):
    x, y = INPUTS[data]
    x, y = np.asarray(x, dtype=np.float64)[:60], y[:60]
    assert ranking.logme(x, y) == pytest.approx(naive_logme(x, y), abs=2e-5)


def test_blocks_of_wide_features_add_up():
    x, y = INPUTS["very_wide"]
    turned = x.astype(float) @ np.linalg.svd(x.astype(float), full_matrices=False)[2].T  # 12 × 12
    for name in ("logme", "h_score", "transrate"):
        assert SCORES[name](x, y) == pytest.approx(SCORES[name](turned, y), abs=1e-7), name
    x, y = random_data(0, 5000, 3)
    assert ranking.transrate(x, y) == pytest.approx(naive_transrate(x.astype(float), y))
    assert ranking.h_score(x, y) == pytest.approx(naive_h_score(x.astype(float), y))


def test_linear_probe_is_softmax_regression():
    x, y = random_data(3, 90, 3, 3)
    found = ranking.linear_probe(x * [1, 100, 0.01], y * 5 - 3, folds=3, seed=4)
    assert found == pytest.approx(naive_probe(x.astype(float), y, 3, 4), abs=1.01 / 90)
    assert 0.45 < found < 0.9  # neither chance nor perfect: a wrong fit would show


@pytest.mark.parametrize("seed", range(4))
def test_leep_and_nce_equal_explicit_sums(seed):
    rng = RNG(seed)
    theta = rng.dirichlet(np.full(5, 0.2), 40)
    theta[:, 3], theta[:, 4] = theta[:, 3] + theta[:, 4], 0  # a source class never predicted
    labels = rng.integers(0, 3, 40) * 7 - 7
    assert ranking.leep(theta, labels) == pytest.approx(naive_leep(theta, labels), abs=1e-12)
    source = theta.argmax(axis=1) * 3 - 4
    assert ranking.nce(source, labels) == pytest.approx(naive_nce(source, labels), abs=1e-12)


def test_leep_of_hard_predictions_is_nce_and_of_blind_ones_the_entropy():
    labels = random_data(2)[1]
    source = np.where(RNG(0).random(150) < 0.5, labels, RNG(1).integers(0, 6, 150))
    hard = ranking.leep(np.eye(6)[source], labels)
    assert hard == pytest.approx(ranking.nce(source, labels), abs=1e-12)
    share = np.bincount(labels) / len(labels)
    entropy = -(share * np.log(share)).sum()
    assert ranking.leep(np.full((150, 6), 1 / 6), labels) == pytest.approx(-entropy)
    assert ranking.nce(np.zeros(150, int), labels) == pytest.approx(-entropy)
    assert -entropy < hard < 0
    assert ranking.nce(labels - 9, labels) == 0 == ranking.leep(np.eye(4)[labels], labels)


@pytest.mark.parametrize("name", SCORES)
def test_higher_is_better(name):
    x, y = random_data(5, 200, 6)
    good, bad = SCORES[name](x + y[:, None], y), SCORES[name](x, RNG(0).permuted(y))
    assert good > SCORES[name](x, y) > bad


TURN = np.linalg.qr(RNG(1).normal(size=(5, 5)))[0]
LINEAR = TURN * [1, 2, 3, 4, 5]
CHANGES = {  # what leaves which scores as they are
    "shift": (lambda x: x + 7, set(SCORES) - {"logme"}),
    "scale": (lambda x: x * 30, set(SCORES) - {"transrate"}),
    "rotation": (lambda x: x @ TURN, set(SCORES) - {"linear_probe"}),
    "linear map": (lambda x: x @ LINEAR, {"h_score"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_invariances(change):
    x, y = random_data(9)
    x = x.astype(float) + 1
    transform, same = CHANGES[change]
    for name in set(SCORES) - ({"linear_probe"} - same):  # counts may agree by chance
        before, after = SCORES[name](x, y), SCORES[name](transform(x), y)
        assert (abs(after - before) < 1e-6) == (name in same), name


@pytest.mark.parametrize("name", SCORES)
def test_order_names_and_types_do_not_matter(name):
    x, y = random_data(11, 120, 4)
    value, before = SCORES[name](x, y), x.copy()
    shuffled = RNG(0).permutation(120)
    if name != "linear_probe":  # its folds follow the order
        assert SCORES[name](x[shuffled], y[shuffled]) == pytest.approx(value, abs=1e-9)
    else:
        assert SCORES[name](x, y) == value
    assert SCORES[name](x, np.array([-3, 0, 8, 9])[y]) == pytest.approx(value, abs=1e-9)
    tensor = torch.from_numpy(x).requires_grad_()
    with warnings.catch_warnings(action="error"):  # torch warns of floats that carry gradients
        assert SCORES[name](tensor, torch.from_numpy(y).int()) == value
    half = torch.from_numpy(x).half()
    assert SCORES[name](half, y) == pytest.approx(SCORES[name](half.double(), y), abs=1e-9)
    assert isinstance(value, float)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("name", ["linear_probe", "silhouette"])
def test_large_data_is_subsampled_by_seed(name):
    x, y = random_data(1, 400)
    values = [SCORES[name](x, y, max_samples=100, seed=s) for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert values[0] == pytest.approx(SCORES[name](x, y), abs=0.15)
    assert SCORES[name](x, y, max_samples=400) == SCORES[name](x, y)


def test_score_table_holds_every_score():
    x, y = random_data(2)
    theta = np.eye(4)[y] * 0.6 + 0.1
    table = ranking.score_table(x, y, theta)
    assert table["name"].tolist() == [*SCORES, "leep", "nce"]
    assert set(table["name"]) <= set(ranking.__all__)
    values = dict(zip(table["name"], table["value"], strict=True))
    assert values["logme"] == ranking.logme(x, y)
    assert values["leep"] == ranking.leep(theta, y)
    assert values["nce"] == 0
    assert (table["seconds"] > 0).all()
    assert ranking.score_table(x, y)["name"].tolist() == list(SCORES)


X, Y = random_data(0, 20)
THETA = np.full((20, 2), 0.5)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (X[0], Y, ValueError, r"features must have shape \(N, D\)"),
        (X, Y[:9], ValueError, "features and labels must have the same length; got 20 and 9"),
        (X, Y + 0.5, TypeError, "labels must be integers"),
        (X, Y * 0 + 3, ValueError, r"labels must hold at least 2 classes; got \[3\]"),
        (np.where(X[4, 1] == X, np.nan, X), Y, ValueError, "features must be finite; row 4"),
    ],
)
def test_wrong_input_is_one_clear_error(name, features, labels, error, message):
    with pytest.raises(error, match=message):
        SCORES[name](features, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranking.transrate(X, Y, epsilon=0), "epsilon must be a number > 0; got 0"),
        (lambda: ranking.transrate(X, Y, epsilon=np.nan), "epsilon must be a number > 0"),
        (lambda: ranking.linear_probe(X, Y, folds=1), "folds must be at least 2"),
        (lambda: ranking.linear_probe(X, Y, folds=2.5), "folds must be an integer"),
        (lambda: ranking.linear_probe(X, np.arange(20) // 19), "has only 1 .* fewer than folds=5"),
        (lambda: ranking.linear_probe(X, Y, max_samples=0), "max_samples must be an integer"),
        (lambda: ranking.silhouette(X, Y, max_samples=0), "max_samples must be an integer"),
        (lambda: ranking.silhouette(X, Y, max_samples=7), "max_samples .* 4 classes; got 7"),
        (lambda: ranking.silhouette(X, np.arange(20)), "each of the 20 samples"),
        (lambda: ranking.leep(X, Y), "source_probabilities: row 0 is no probability"),
        (lambda: ranking.leep(THETA * 2, Y), r"row 0 .*\(sum 2, lowest 1\).* softmax"),
        (lambda: ranking.leep(THETA + np.array([1, -1]), Y), r"row 0 .*\(sum 1, lowest -0.5\)"),
        (lambda: ranking.leep(THETA[:3], Y), "source_probabilities and labels must have the same"),
        (lambda: ranking.leep(THETA, Y * 0), "labels must hold at least 2 classes"),
        (lambda: ranking.nce(Y[:5], Y), "source_labels and labels must have the same length"),
        (lambda: ranking.nce(Y, Y * 0), "labels must hold at least 2 classes"),
    ],
)
def test_wrong_options_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="source_labels must be integers"):
        ranking.nce(THETA[:, 0], Y)
