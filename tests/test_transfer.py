"""The experiment on networks planted so that their quality is known, and its tables."""

import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from siutils.data.images import ImageSet, Transform
from siutils.networks.models import create_model
from siutils.ranking.transferability import leep, nearest_center
from siutils.study.transfer import (
    BASELINES,
    FAMILY,
    above_chance,
    inherit,
    transfer_correlations,
    transfer_experiment,
    transfer_scores,
)
from siutils.training.recipes import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = Transform((0.5,) * 3, (0.5,) * 3)
RECIPE = Recipe("planted", epochs=8, batch_size=16, lr=0.3, crop_padding=0, flip=False)
QUALITIES = ("pool1", "pool2", "pool4", "pool8")


def striped(n, seed):
    """16 classes; a class says for stripes of 4, 2 and 1 pixels whether they start bright.

    Averages over 8 pixels tell nothing of the class, over 4, 2 and 1 one stripe more each.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 16
    column = np.arange(8)
    pixels = 128 + rng.normal(0, 25, (n, 3, 8, 8))
    for bit, width in enumerate((4, 2, 1)):
        stripes = 30 * (-1.0) ** (column // width)
        pixels += ((-1.0) ** (labels >> bit & 1))[:, None, None, None] * stripes
    images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    classes = tuple(f"class {c}" for c in range(16))
    return ImageSet("striped", images, torch.from_numpy(labels), classes, "")


class Planted(nn.Module):
    """Averages over blocks of pixels, then a linear layer: what it cannot see it cannot learn."""

    feature_layer, head_layer = "look", "head"

    def __init__(self, side, classes):
        super().__init__()
        self.look = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())
        self.head = nn.Linear(3 * side * side, classes)
        self.ballast = nn.Parameter(torch.zeros(10_000 // side))  # the worst are the largest

    def forward(self, x):
        return self.head(self.look(x))


def plant(name, num_classes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Planted(int(name.removeprefix("pool")), num_classes)


def experiment(networks=QUALITIES, train=None, test=None, **options):
    how = {"transform": HALF, "upstream": RECIPE, "fine_tuning": RECIPE, "build": plant}
    how |= {"train_per_class": 24, "max_scored": 8 * 12, "device": "cpu"}
    train = striped(16 * 40, 0) if train is None else train
    return transfer_experiment(networks, train, test or striped(16 * 20, 1), **(how | options))


once = functools.cache(experiment)


@pytest.fixture
def planted(one_thread):  # sums depend on the number of threads
    return once()


def test_networks_of_known_quality_are_ordered_by_it(planted):
    assert planted["network"].tolist() == list(QUALITIES)
    # one stripe more doubles the classes that can be told apart: 1, 2, 4, 8 of 8
    assert planted["fine_tuned_accuracy"].tolist() == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1], 0.35)
    found = transfer_correlations(planted).set_index("score")
    for score in found.index.drop("parameters"):
        assert found.loc[score, "kendall"] == pytest.approx(1), score
        assert found.loc[score, "weighted_kendall"] == pytest.approx(1), score
        assert found.loc[score, "top1_regret"] == 0
    assert found.loc["parameters", "kendall"] == pytest.approx(-1)
    assert found.index[-1] == "parameters"
    kinds = {"literature": 9, "Separation Index": 5, "baseline": 2}
    assert found["kind"].value_counts().to_dict() == kinds


def test_the_table_says_what_it_rests_on(planted):
    row = planted.iloc[1]
    assert row["parameters"] == 12 * 8 + 8 + 5000
    for column, value in {
        "n": 8 * 12, "n_classes": 8, "train_images": 8 * 24, "upstream_epochs": 8,
        "fine_tuning_epochs": 8, "n_test": 160, "order": 2, "seed": 0,
    }.items():  # fmt: skip
        assert planted[column].eq(value).all(), column


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


def test_correlations_follow_from_the_table_of_networks():
    rng = np.random.default_rng(0)
    names = [*BASELINES, *FAMILY, "logme"]
    table = pd.DataFrame(rng.normal(size=(11, len(names))), columns=names).assign(network="x")
    table["fine_tuned_accuracy"] = table["si"] + rng.normal(size=11)
    table = table.assign(n=50, seed=0)
    found = transfer_correlations(table, repeats=200)
    assert sorted(found["score"]) == sorted(names)
    assert found["weighted_kendall"].is_monotonic_decreasing
    y = table["fine_tuned_accuracy"].to_numpy()
    for row in found.itertuples():
        x = table[row.score].to_numpy()
        assert row.kendall == pytest.approx(naive_kendall(x, y))
        assert row.weighted_kendall == pytest.approx(naive_weighted_kendall(x, y))
        assert row.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert row.top1_regret == y.max() - y[x.argmax()]
        assert row.weighted_kendall_low <= row.weighted_kendall <= row.weighted_kendall_high
        assert row.n_networks == 11


def test_where_nothing_is_ordered_nothing_is_claimed():
    table = pd.DataFrame({"network": ["a", "b"], "si": [0.5, 0.5], "leep": [1.0, 2.0], "n": 9})
    table["fine_tuned_accuracy"] = [0.1, 0.2]
    found = transfer_correlations(table, ["si", "leep"])
    assert found["score"].tolist() == ["leep", "si"]
    assert found["kendall"].isna().tolist() == [False, True]
    for equal in ({"si": [4.0, 4.0 - 1e-15]}, {"si": [1, 2], "fine_tuned_accuracy": 0.1}):
        assert transfer_correlations(table.assign(**equal), ["si"])["kendall"].isna().all()
    with pytest.raises(ValueError, match="rows differ in N"):
        transfer_correlations(table.assign(n=[9, 10]))
    with pytest.raises(ValueError, match="at least 2 networks"):
        transfer_correlations(table[:1], ["si"])


@pytest.mark.parametrize("networks", [4, 5])
def test_few_networks_have_no_interval(networks):
    numbers = list(range(networks))
    table = pd.DataFrame({"network": list("abcde")[:networks], "n": 9, "si": numbers})
    found = transfer_correlations(table.assign(fine_tuned_accuracy=numbers), ["si"]).iloc[0]
    assert found["weighted_kendall"] == pytest.approx(1)
    assert np.isnan(found["weighted_kendall_low"]) == (networks < 5)


def test_networks_at_chance_do_not_count(planted):
    assert planted["learned"].tolist() == [False, True, True, True]  # pool1 sees no stripe
    table = planted.assign(fine_tuned_accuracy=[0.125, 0.2, 0.3, 0.4], si=[9.0, 1, 2, 3])
    found = transfer_correlations(table, ["si"]).iloc[0]
    assert (found["kendall"], found["top1_regret"], found["n_networks"]) == (1, 0, 3)
    few = transfer_correlations(table.assign(learned=[False, False, False, True]), ["si"]).iloc[0]
    assert np.isnan(few["kendall"])
    assert few["n_networks"] == 1


def test_chance_is_to_name_the_most_frequent_class():
    labels = torch.tensor([0] * 60 + [1] * 40)
    assert not above_chance(0.69, labels)  # 0.594 … 0.772
    assert above_chance(0.7, labels)  # 0.604 … 0.781
    assert not above_chance(0.0, labels)


def test_scores_never_see_a_test_image(planted):
    noise = striped(16 * 20, 1)
    noise = replace(noise, images=torch.randint_like(noise.images, 0, 255))
    blind = experiment(test=noise)
    accuracies = ["upstream_accuracy", "fine_tuned_accuracy", "learned"]
    pd.testing.assert_frame_equal(blind.drop(columns=accuracies), planted.drop(columns=accuracies))
    assert blind["fine_tuned_accuracy"].max() < 0.3 < planted["fine_tuned_accuracy"].max()


def test_scores_are_those_of_the_features_and_of_the_models_own_head():
    model = plant("pool4", 8, 0).eval()
    model.transform = HALF
    data = striped(16 * 8, 3).of_classes(range(8))
    inputs = HALF(data.images)
    found = transfer_scores(model, data, order=3, device="cpu")
    with torch.inference_mode():
        features = F.adaptive_avg_pool2d(inputs, 4).flatten(1)
        said = model(inputs).double().softmax(1)
    assert found["nearest_center"] == nearest_center(features, data.labels)
    assert found["leep"] == pytest.approx(leep(said, data.labels), rel=1e-6)
    z = (features - features.mean(0)) / features.std(0)
    near = torch.cdist(z.double(), z.double()).fill_diagonal_(torch.inf).argsort(1)[:, :3]
    hits = (data.labels[near] == data.labels[:, None]).double()
    naive = (hits[:, 0].mean(), hits.prod(1).mean(), hits.mean(), -(1 - hits).prod(1).mean())
    assert [found[name] for name in FAMILY[:4]] == pytest.approx([float(v) for v in naive])


def test_fine_tuning_starts_from_the_upstream_weights_and_a_new_head():
    source, model = (create_model("shufflenet_v2_x0_5", 4, seed=s) for s in (1, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inherit(model, source)
    for key, value in model.state_dict().items():
        origin = before if key.startswith("fc.1.") else source.state_dict()
        assert value.equal(origin[key]), key


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_transfer import experiment
torch.set_num_threads(1)
lines = []
def progress(line):
    lines.append(line)
    if len(lines) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
experiment(["pool2", "pool4"], cache=Path({cache!r}), progress=progress)
"""


@pytest.mark.parametrize("after", [8, 20])  # of 32 epochs
def test_a_killed_run_finishes_with_the_same_tables(tmp_path, planted, after):
    code = KILLED.format(tests=str(Path(__file__).parent), cache=str(tmp_path), after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    lines = []
    again = experiment(["pool2", "pool4"], cache=tmp_path, progress=lines.append)
    assert len(lines) == 32 - after
    pd.testing.assert_frame_equal(again, planted[1:3].reset_index(drop=True), check_exact=True)
    third = experiment(["pool2", "pool4"], cache=tmp_path, progress=lines.append)
    assert len(lines) == 32 - after  # nothing was trained
    pd.testing.assert_frame_equal(third, again, check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": "pool1"}, "networks must be a list of different names, got 'pool1'"),
        ({"networks": ["pool1", "pool1"]}, "different names"),
        ({"networks": []}, "different names"),
        ({"max_scored": 39}, "= 24 and max_scored = 39 leave 4 images of each of 8"),
        ({"train_per_class": 4}, "leave 4 images"),
        ({"train_per_class": 0}, "per_class must be an integer ≥ 1"),
        ({"train_per_class": 33}, "per_class=33, but class 0 has only 32"),
        ({"train": striped(160, 0).of_classes(range(3))}, "same classes, at least 4"),
    ],
)
def test_wrong_input_is_one_clear_error_before_any_training(change, message):
    with pytest.raises(ValueError, match=message):
        experiment(**change)
