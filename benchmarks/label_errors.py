"""Suspected label errors: siutils against cleanlab, on the same features and the same flips.

Of each data set 2 % of the labels are replaced by another class at random; each method ranks all
samples by suspicion; precision is the share of flipped samples among the first n, where n is the
number of flips. Data:

- digits: scikit-learn's, 1,797 × 64 pixels, 36 flips;
- cifar100: half of the training images of CIFAR-100's first 20 classes, 5,000 with 100 flips; 256
  features of a network of four convolutions that siutils trained from scratch for 8 epochs on the
  other half, 2 % of whose labels were flipped as well, at 16×16 pixels: what minutes of training on
  a CPU can tell apart.

cleanlab is used as its manual says, on out-of-sample class probabilities: 5-fold cross-validated,
of a logistic regression on z-scored features and of k nearest neighbors, with each of its label
quality scores. siutils' score was designed on other flips (seeds 1000 and up) of the same digits
and of features of a similar network.

    pip install -e '.[bench]'
    python benchmarks/label_errors.py        # writes benchmarks/label_errors.csv
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from siutils import Neighbors, SeparationIndex, extract_features, kneighbors, load_dataset
from siutils.core import cache_dir, train_val_split
from siutils.data import transform_for
from siutils.separation import label_errors
from siutils.training import fit, get_recipe

FRACTION = 0.02
EPOCHS = 8
N_CLASSES = 20


def flipped(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with 2 % replaced by another class, and where."""
    rng = np.random.default_rng(seed)
    where = rng.choice(len(labels), round(FRACTION * len(labels)), replace=False)
    n_classes = len(np.unique(labels))
    noisy = labels.copy()
    noisy[where] = (labels[where] + rng.integers(1, n_classes, len(where))) % n_classes
    return noisy, where


def network() -> nn.Module:
    """Four 3×3 convolutions; small enough to train in minutes on two cores."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(features, nn.Linear(256, N_CLASSES))


def cifar_features() -> tuple[np.ndarray, np.ndarray]:
    """Features and true labels of the second half of the images."""
    data = load_dataset("cifar100").of_classes(range(N_CLASSES))
    small = torch.nn.functional.avg_pool2d(data.images.float(), 2).round().to(torch.uint8)
    halves = train_val_split(data.labels, 0.5, seed=0)
    first, second = (replace(data, images=small).subset(half) for half in halves)
    noisy, _ = flipped(first.labels.numpy(), seed=100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
    history = fit(
        model,
        replace(first, labels=torch.from_numpy(noisy)),
        second.subset(torch.arange(0, len(second), 10)),
        get_recipe("fast", batch_size=64, lr=0.05, crop_padding=2, warmup_epochs=2.0),
        transform=transform_for("cifar100"),
        epochs=EPOCHS,
        cache=cache_dir(),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(f"network: validation accuracy {history['val_accuracy'].iloc[-1]:.3f}", file=sys.stderr)
    features = extract_features(model, second.images, ["0"], cache=cache_dir())["0"]
    return features.numpy(), second.labels.numpy()


def cleanlab_rankings(x: np.ndarray, y: np.ndarray):
    """(probabilities, score, ranking of all samples, seconds) of every way to use it."""
    models = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=100)),
        "10 neighbors": KNeighborsClassifier(10),
        "50 neighbors": KNeighborsClassifier(50),
    }
    for name, model in models.items():
        start = time.perf_counter()
        probabilities = cross_val_predict(model, x, y, cv=5, method="predict_proba")
        seconds = time.perf_counter() - start
        for score in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            quality = get_label_quality_scores(y, probabilities, method=score)
            yield name, score, np.argsort(quality, kind="stable"), seconds
        found = find_label_issues(
            y, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        yield name, "find_label_issues", found, seconds


def siutils_rankings(neighbors: Neighbors, seconds: float, y: np.ndarray):
    """The same of siutils, for several numbers of neighbors; 200 is what its manual names."""
    for k in (50, 100, 200):
        start = time.perf_counter()
        table = label_errors(y, Neighbors(*(part[:, :k] for part in neighbors)))
        took = seconds + time.perf_counter() - start
        yield f"{k} neighbors", "label_errors", table["sample"].to_numpy(), took


def measure(name: str, x: np.ndarray, true: np.ndarray, seeds: int) -> list[tuple]:
    rows = []
    start = time.perf_counter()
    neighbors = kneighbors(x, 200)
    took = time.perf_counter() - start
    for seed in range(seeds):
        noisy, where = flipped(true, seed)
        ours = ("siutils", siutils_rankings(neighbors, took, noisy))
        for package, rankings in (ours, ("cleanlab", cleanlab_rankings(x, noisy))):
            for source, score, order, seconds in rankings:
                precision = np.isin(order[: len(where)], where).sum() / len(where)
                row = (name, *x.shape, len(where), seed, package, source, score, precision, seconds)
                rows.append(row)
                print(*row, sep=",", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="sets of flips (default: 3)")
    parser.add_argument("--data", choices=("digits", "cifar100"), help="one of the two")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # not converged, in 100 iterations
    rows = []
    for name, load in (
        ("digits", lambda: load_digits(return_X_y=True)),
        ("cifar100", cifar_features),
    ):
        if options.data in (None, name):
            x, y = load()
            print(f"{name}: SI {SeparationIndex(x, y).si():.3f}", file=sys.stderr)
            rows += measure(name, x, y, options.seeds)
    columns = ["data", "n", "n_features", "n_flips", "seed", "package", "from", "score"]
    table = pd.DataFrame(rows, columns=[*columns, "precision", "time_s"])
    table["version"] = table["package"].map({p: version(p) for p in ("siutils", "cleanlab")})
    table = table.round({"precision": 4, "time_s": 2})
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    groups = table.groupby(["data", "package", "from", "score"])["precision"]
    print(groups.agg(["mean", "std"]).round(3).sort_values(["data", "mean"]).to_string())


if __name__ == "__main__":
    main()
