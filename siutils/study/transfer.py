"""Does a score predict how well a network transfers? Train, score, fine-tune, compare.

The first half of a data set's classes is the upstream task, the second half the downstream task.
Each network learns the upstream task, is scored on its features of downstream training images, and
then has all its weights fine-tuned downstream. A score is useful if it orders the networks as their
accuracy on the downstream test images does, and does so better than two baselines that cost
nothing: the number of parameters and the upstream accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from siutils.core import balanced_subset, train_val_split
from siutils.data import ImageSet, Transform
from siutils.features import extract_features
from siutils.networks import create_model, load_weights
from siutils.ranking import FOLDS, rank_correlation, require_equal_n, rounded, score_table
from siutils.separation import SeparationIndex, interval
from siutils.training import Recipe, evaluate, fit

FAMILY = ("si", "high_order_si", "soft_order_si", "negated_anti_si", "center_si")
MEASURES = ("weighted_kendall", "kendall", "spearman", "pearson", "top1_regret")
BASELINES = ("parameters", "upstream_accuracy")
MIN_NETWORKS = 5  # for an interval


class Task(NamedTuple):
    """The images of one half of the classes."""

    train: ImageSet
    val: ImageSet
    test: ImageSet


def transfer_experiment(
    networks: Sequence[str],
    train: ImageSet,
    test: ImageSet,
    *,
    transform: Transform,
    upstream: Recipe,
    fine_tuning: Recipe,
    train_per_class: int,
    max_scored: int = 2500,
    order: int = 2,
    seed: int = 0,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    build: Callable[..., nn.Module] = create_model,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Trains each network upstream, scores it downstream and fine-tunes it there.

    A stratified 20 % of the training images are for validation. All networks are scored on the same
    balanced part of the images that fine-tuning learns from; test images only measure accuracy.
    Fine-tuning starts from the upstream weights with a new last layer.

    Args:
        networks: names for ``build``.
        train: images of at least 4 classes.
        test: images of the same classes.
        transform: from uint8 images to input, in training and in scoring.
        upstream: recipe of the upstream training.
        fine_tuning: recipe of the fine-tuning.
        train_per_class: images of each class to train on, in both tasks; a quarter as many are for
            validation.
        max_scored: at most this many downstream training images are scored, equally many of each
            class, at least 5.
        order: of high-order, soft-order and anti SI.
        seed: of splits, initialization and training.
        device: "auto", "cpu", "cuda", …
        cache: a folder: finished trainings are loaded, an unfinished one is resumed.
        build: makes a network as `siutils.create_model` does, from its name, the number of
            classes and ``seed=``, with the attributes ``feature_layer`` and ``head_layer``.
        progress: called with one line of text after each epoch.

    Returns:
        One row per network: ``network, parameters, upstream_accuracy`` (on upstream test images),
        every score of `transfer_scores`, ``fine_tuned_accuracy`` (on downstream test
        images), ``learned`` (whether the upstream accuracy is `above_chance`), and the
        setting: ``n`` images scored; ``n_classes``, ``train_images`` and ``n_test`` downstream; the
        epochs of both trainings, ``order`` and ``seed``.

    Raises:
        ValueError: no or repeated networks, too few classes or images, another argument out of
            range; or what `siutils.training.fit` refuses.

    >>> from siutils.data import load_dataset, transform_for
    >>> from siutils.training import get_recipe
    >>> table = transfer_experiment(
    ...     ["mobilenet_v3_small"], load_dataset("digits"), load_dataset("digits", "test"),
    ...     transform=transform_for("digits"), upstream=get_recipe("fast", epochs=1, batch_size=16),
    ...     fine_tuning=get_recipe("fast", epochs=1, batch_size=16), train_per_class=8,
    ...     max_scored=30, device="cpu")
    >>> table.loc[0, ["n", "n_classes", "train_images", "n_test"]].tolist()
    [30, 5, 40, 179]
    """
    _check(networks, train, test)
    half = len(train.classes) // 2
    halves = range(half), range(half, len(train.classes))
    source, target = (_task(train, test, part, train_per_class, seed) for part in halves)
    chosen = _scored(target.train, train_per_class, max_scored, seed)
    how: dict[str, Any] = {"transform": transform, "seed": seed, "device": device, "cache": cache}
    rows = []
    for network in networks:
        tell = progress and partial(_tell, progress, network)
        model = build(network, len(source.train.classes), seed=seed)
        fit(model, source.train, source.val, upstream, progress=tell, **how)
        row: dict[str, Any] = {
            "network": network,
            "parameters": sum(p.numel() for p in model.parameters()),
            "upstream_accuracy": evaluate(model, source.test, device=device)["accuracy"],
        }
        row |= transfer_scores(model, chosen, order=order, device=device)
        tuned = build(network, len(target.train.classes), seed=seed)
        inherit(tuned, model)
        fit(tuned, target.train, target.val, fine_tuning, progress=tell, **how)
        row["fine_tuned_accuracy"] = evaluate(tuned, target.test, device=device)["accuracy"]
        row["learned"] = above_chance(row["upstream_accuracy"], source.test.labels)
        rows.append(row)
    return pd.DataFrame(rows).assign(
        n=len(chosen),
        n_classes=len(target.train.classes),
        train_images=len(target.train),
        upstream_epochs=upstream.epochs,
        fine_tuning_epochs=fine_tuning.epochs,
        n_test=len(target.test),
        order=order,
        seed=seed,
    )


def above_chance(accuracy: float, labels: Tensor) -> bool:
    """True if the 95 % interval of an accuracy lies above the share of the largest class.

    Args:
        accuracy: share of the images that a network classifies correctly.
        labels: labels of these images, int64 ``(N,)``.

    >>> labels = torch.arange(100) % 10
    >>> above_chance(0.15, labels), above_chance(0.2, labels)
    (False, True)
    """
    hits = torch.arange(len(labels)) < round(accuracy * len(labels))
    return interval(hits, effect=1.0).low > int(labels.bincount().max()) / len(labels)


def transfer_scores(
    model: nn.Module, data: ImageSet, *, order: int = 2, device: str | torch.device = "auto"
) -> dict[str, float]:
    """Computes every score of a network for a task that it has not seen; higher is better.

    Args:
        model: a trained network with ``feature_layer``, ``head_layer`` and ``transform``.
        data: images of the new task, at least 5 of each class.
        order: of high-order, soft-order and anti SI.
        device: "auto", "cpu", "cuda", …

    Returns:
        The Separation Index family of the z-scored features, anti SI as ``negated_anti_si``; and
        the scores of `siutils.ranking.score_table`, LEEP and NCE from the softmax of the
        model's own head.

    Raises:
        ValueError: a class has fewer than 5 images, or a score refuses the features.

    >>> from siutils.data import load_dataset, transform_for
    >>> digits = load_dataset("digits", "test")
    >>> model = create_model("mobilenet_v3_small", 3, seed=0)
    >>> model.transform = transform_for("digits")
    >>> sorted(transfer_scores(model, digits, device="cpu"))[:4]
    ['center_si', 'h_score', 'high_order_si', 'leep']
    """
    layers = [str(model.feature_layer), str(model.head_layer)]
    outputs = extract_features(model, data.images, layers, device=device)
    features, logits = (outputs[layer] for layer in layers)
    index = SeparationIndex(features, data.labels, normalize=True, device=device)
    family = {
        "si": index.si(),
        "high_order_si": index.high_order_si(order),
        "soft_order_si": index.soft_order_si(order),
        "negated_anti_si": -index.anti_si(order),
        "center_si": index.center_si(),
    }
    others = score_table(features, data.labels, logits.double().softmax(dim=1))
    return {name: float(value) for name, value in family.items()} | dict(
        zip(others["name"], others["value"], strict=True)
    )


def inherit(model: nn.Module, source: nn.Module) -> None:
    """Copies all weights of ``source`` to ``model`` except those of the last layer.

    Args:
        model: a network with the attribute ``head_layer``.
        source: the same network with any number of outputs.

    >>> source, model = (create_model("mobilenet_v2", n, seed=n) for n in (3, 2))
    >>> inherit(model, source)
    >>> model.features[0][0].weight.equal(source.features[0][0].weight)
    True
    """
    head = f"{model.head_layer}."
    own = {k: v for k, v in model.state_dict().items() if k.startswith(head)}
    load_weights(model, source.state_dict() | own)


def transfer_correlations(
    table: pd.DataFrame, scores: Sequence[str] | None = None, repeats: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Measures how well each score and baseline orders the networks; the best comes first.

    Networks that did not learn upstream are left out, because they have nothing to transfer.

    Args:
        table: rows of `transfer_experiment`: ``n``, ``fine_tuned_accuracy``, a column per score;
            where it has the column ``learned``, only rows where it is true count.
        scores: columns to judge; the default is the baselines and every score.
        repeats: number of resamples of the networks for the intervals, which are missing for fewer
            than 5 networks: chance orders 3 alike once in 6 times, and then all resamples agree.
        seed: seed of the resamples.

    Returns:
        One row per score: ``score``, ``kind`` (Separation Index, literature, baseline) and what
        `siutils.ranking.rank_correlation` returns; missing where all networks have the same
        score or the same accuracy, or fewer than 2 learned.

    Raises:
        ValueError: rows of different N, or fewer than 2 networks.

    >>> table = pd.DataFrame({"si": [0.1, 0.3], "parameters": [20, 10], "n": [50, 50]})
    >>> table["fine_tuned_accuracy"] = [0.5, 0.6]
    >>> found = transfer_correlations(table, ["parameters", "si"])
    >>> found[["score", "kind", "kendall"]].values.tolist()
    [['si', 'Separation Index', 1.0], ['parameters', 'baseline', -1.0]]
    """
    require_equal_n(table)
    if len(table) < 2:
        raise ValueError(f"table must hold at least 2 networks to be ordered, got {len(table)}")
    if scores is None:
        before = table.loc[:, :"fine_tuned_accuracy"].columns[:-1]
        scores = [column for column in before if column != "network"]
    if "learned" in table:
        table = table[table["learned"]]
    kinds = dict.fromkeys(FAMILY, "Separation Index") | dict.fromkeys(BASELINES, "baseline")
    accuracies = table["fine_tuned_accuracy"].tolist()
    rows = []
    for score in scores:
        row: dict[str, Any] = {"score": score, "kind": kinds.get(score, "literature")}
        values = rounded(table[score])
        if len(set(values)) > 1 and len(set(accuracies)) > 1:
            enough = len(table) >= MIN_NETWORKS
            row |= rank_correlation(values.tolist(), accuracies, enough, repeats, seed)
        rows.append(row)
    columns = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    judged = pd.DataFrame(rows).reindex(columns=["score", "kind", *columns])
    judged = judged.assign(n_networks=len(table))
    return judged.sort_values("weighted_kendall", ascending=False, kind="stable", ignore_index=True)


def _tell(progress: Callable[[str], None], network: str, line: str) -> None:
    progress(f"{network}: {line}")


def _check(networks: Sequence[str], train: ImageSet, test: ImageSet) -> None:
    if isinstance(networks, str) or not networks or len(set(networks)) < len(networks):
        raise ValueError(f"networks must be a list of different names, got {networks!r}")
    if len(train.classes) < 4 or train.classes != test.classes:
        raise ValueError(
            "train and test must have the same classes, at least 4: two for each task; got "
            f"{len(train.classes)} and {len(test.classes)}"
        )


def _scored(data: ImageSet, train_per_class: int, max_scored: int, seed: int) -> ImageSet:
    per_class = min(train_per_class, max_scored // len(data.classes))
    if per_class < FOLDS:
        raise ValueError(
            f"train_per_class = {train_per_class} and max_scored = {max_scored} leave {per_class} "
            f"images of each of {len(data.classes)} classes to score; at least {FOLDS} are needed"
        )
    return data.subset(balanced_subset(data.labels, per_class, seed=seed))


def _task(train: ImageSet, test: ImageSet, classes: range, per_class: int, seed: int) -> Task:
    both = train.of_classes(classes)
    fitting, val = (both.subset(part) for part in train_val_split(both.labels, seed=seed))
    fitting = fitting.subset(balanced_subset(fitting.labels, per_class, seed=seed))
    val = val.subset(balanced_subset(val.labels, max(1, per_class // 4), seed=seed))
    return Task(fitting, val, test.of_classes(classes))
