"""Does a score foretell how well a network fine-tunes? Score, fine-tune, compare.

A candidate is a network with ImageNet weights at one size of its input. It is scored on the images
that it is fine-tuned on afterwards; its accuracy is that on test images, which no score has seen. A
score is useful if it orders the candidates as their accuracies do, and better than what costs
nothing: parameters, size of the input, accuracy on ImageNet, multiply-adds. The size orders most of
them by itself, so the order within each size and within each network is told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from siutils.data import ImageSet
from siutils.features import extract_features
from siutils.networks import create_model
from siutils.ranking import null_band, rank_correlation, require_equal_n, rounded, score_table
from siutils.separation import SeparationIndex
from siutils.study.trainings import Training
from siutils.training import evaluate

FAMILY = ("si", "high_order_si", "soft_order_si", "negated_anti_si", "center_si")
BASELINES = ("parameters", "input_size", "imagenet_top1", "multiply_adds")
MEASURES = ("weighted_kendall", "kendall", "spearman", "pearson", "regret_points")
WITHIN = ("input_size", "network")
MIN_CANDIDATES = 5  # for an interval
# Published, in percent, at 224, 240 and 260 pixels (M. Tan, Google 2020).
IMAGENET_TOP1 = {"efficientnet_lite0": 75.1, "efficientnet_lite1": 76.7, "efficientnet_lite2": 77.6}


def transfer_experiment(
    candidates: Mapping[tuple[str, int], Training],
    test: ImageSet,
    *,
    order: int = 2,
    device: str | torch.device = "auto",
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Scores each candidate, fine-tunes it and measures its accuracy on test images.

    Args:
        candidates: of `siutils.study.candidate_trainings`; at least 5 training images per class.
        test: test images of the same classes.
        order: of high-order, soft-order and anti SI.
        device: "auto", "cpu", "cuda", …
        progress: called with one line of text after each epoch.

    Returns:
        One row per candidate: ``network``, the baselines ``input_size, parameters, imagenet_top1``
        (published, percent) and ``multiply_adds``, every score of `transfer_scores`,
        ``fine_tuned_accuracy``, and the setting: ``n`` images scored and learned from,
        ``n_classes, epochs, n_test, order, seed, weights``.

    Raises:
        ValueError: no candidate, or a network whose accuracy on ImageNet is not known here.
        ValueError, RuntimeError, OSError: as `transfer_scores` and `Training.run`.

    >>> transfer_experiment({}, None)
    Traceback (most recent call last):
        ...
    ValueError: candidates must be of efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
    """
    if not candidates or {network for network, _ in candidates} - set(IMAGENET_TOP1):
        raise ValueError(f"candidates must be of {', '.join(IMAGENET_TOP1)}")
    rows = []
    for (network, size), training in candidates.items():
        model: Any = create_model(network, None, training.weights).eval()
        model.transform = training.transform
        row: dict[str, Any] = {
            "network": network,
            "input_size": size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "imagenet_top1": IMAGENET_TOP1[network],
            "multiply_adds": multiply_adds(model, size),
        }
        row |= transfer_scores(model, training.train, order=order, device=device)
        tuned = training.run(device, progress)
        row["fine_tuned_accuracy"] = evaluate(tuned.model, test, device=device)["accuracy"]
        row |= {"n": len(training.train), "n_classes": len(test.classes)}
        row |= {"epochs": training.recipe.epochs, "n_test": len(test), "order": order}
        rows.append(row | {"seed": training.seed, "weights": model.weights_source})
    return pd.DataFrame(rows)


def multiply_adds(model: nn.Module, size: int) -> int:
    """Counts the multiply-adds of convolutions and linear layers for one image.

    >>> multiply_adds(create_model("efficientnet_lite0", weights="imagenet").eval(), 224) // 10**6
    385
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() // 2  # of torch, a multiply-add is two operations


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
    >>> model = create_model("efficientnet_b0", 3, seed=0)
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


def transfer_correlations(
    table: pd.DataFrame, scores: Sequence[str] | None = None, repeats: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Measures how well each score and baseline orders the candidates; the best comes first.

    Args:
        table: rows of `transfer_experiment`: ``n, network, input_size, fine_tuned_accuracy`` and
            a column per score.
        scores: columns to judge; the default is the baselines and every score.
        repeats: number of resamples of the candidates for the intervals, which are missing for
            fewer than 5 candidates, and of random rankings for the null band.
        seed: of both.

    Returns:
        One row per score: ``score``, ``kind`` (Separation Index, literature, baseline), the
        measures of `siutils.ranking.rank_correlation` with intervals, its regret as
        ``regret_points`` (percentage points of accuracy); ``null_low, null_high``, within which
        weighted Kendall of random rankings lies (95 %); ``within_input_size, within_network``, the
        means of `transfer_within`. Missing where all candidates have the same score or the same
        accuracy.

    Raises:
        ValueError: rows of different N, or fewer than 2 candidates.

    >>> table = pd.DataFrame({"network": ["a", "a"], "input_size": [16, 32], "si": [0.1, 0.3]})
    >>> table = table.assign(parameters=[20, 10], n=50, fine_tuned_accuracy=[0.5, 0.6])
    >>> found = transfer_correlations(table, ["parameters", "si"])
    >>> found[["score", "kind", "kendall", "within_network"]].values.tolist()
    [['si', 'Separation Index', 1.0, 1.0], ['parameters', 'baseline', -1.0, -1.0]]
    """
    require_equal_n(table)
    if len(table) < 2:
        raise ValueError(f"table must hold at least 2 candidates to be ordered, got {len(table)}")
    kinds = dict.fromkeys(FAMILY, "Separation Index") | dict.fromkeys(BASELINES, "baseline")
    accuracies = table["fine_tuned_accuracy"].tolist()
    rows = []
    for score in scores or _scores(table):
        row: dict[str, Any] = {"score": score, "kind": kinds.get(score, "literature")}
        values = rounded(table[score]).tolist()
        if _ranks(values, accuracies):
            enough = len(table) >= MIN_CANDIDATES
            row |= rank_correlation(values, accuracies, enough, repeats, seed)
            row["null_low"], row["null_high"] = null_band(values, accuracies, repeats, seed)
        rows.append(row)
    judged = pd.DataFrame(rows)
    for end in ("", "_low", "_high"):
        judged[f"regret_points{end}"] = 100 * judged.get(f"top1_regret{end}", np.nan)
    groups = transfer_within(table, judged["score"].tolist()).groupby(["score", "within"])
    within = groups["kendall"].mean().unstack()
    for column in WITHIN:
        judged[f"within_{column}"] = judged["score"].map(within[column])
    measures = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    columns = ["score", "kind", *measures, "null_low", "null_high", *judged.filter(like="within_")]
    judged = judged.reindex(columns=columns).assign(n_candidates=len(table))
    return judged.sort_values("weighted_kendall", ascending=False, kind="stable", ignore_index=True)


def transfer_within(table: pd.DataFrame, scores: Sequence[str] | None = None) -> pd.DataFrame:
    """Kendall's τ of each score among the candidates of one size, and of one network.

    Args:
        table, scores: as in `transfer_correlations`.

    Returns:
        DataFrame ``within`` (``input_size`` or ``network``), ``group, score, kendall, n``; missing
        where all candidates of the group have the same score or the same accuracy.

    >>> table = pd.DataFrame({"network": ["a", "b"], "input_size": 16, "si": [0.1, 0.3]})
    >>> transfer_within(table.assign(fine_tuned_accuracy=[0.6, 0.5]), ["si"])["kendall"].tolist()
    [-1.0, nan, nan]
    """
    rows = []
    for column in WITHIN:
        for group, part in table.groupby(column, sort=False):
            accuracies = part["fine_tuned_accuracy"].tolist()
            for score in _scores(table) if scores is None else scores:
                values = rounded(part[score]).tolist()
                ranks = _ranks(values, accuracies)
                tau = rank_correlation(values, accuracies)["kendall"] if ranks else np.nan
                row = {"within": column, "group": group, "score": score, "kendall": tau}
                rows.append(row | {"n": len(part)})
    return pd.DataFrame(rows)


def transfer_answer(judged: pd.DataFrame) -> str:
    """Says which score orders the candidates best, and whether a baseline that is free wins.

    Args:
        judged: rows of `transfer_correlations`.

    Returns:
        A list in Markdown.

    >>> row = {"n_candidates": 2, "regret_points": 0.0, "null_low": -1.0, "null_high": 1.0}
    >>> row |= dict.fromkeys(("weighted_kendall_low", "weighted_kendall_high"), np.nan)
    >>> row |= {f"within_{column}": np.nan for column in WITHIN}
    >>> rows = [row | {"score": "input_size", "kind": "baseline", "weighted_kendall": 1.0}]
    >>> rows += [row | {"score": "si", "kind": "Separation Index", "weighted_kendall": -1.0}]
    >>> print(transfer_answer(pd.DataFrame(rows)).splitlines()[-1])
    - **A free baseline wins**: input size orders the candidates better than any score.
    """
    judged = judged.dropna(subset="weighted_kendall")
    judged = judged.assign(score=judged["score"].str.replace("_", " "))
    if judged.empty:
        return "All candidates are equally good, or equally scored: there is nothing to foretell."
    best = judged.drop_duplicates("kind").set_index("kind")
    shown = judged.query("weighted_kendall > null_high + 1e-9")["score"]
    lines = [f"Best {kind}: {_told(row)}" for kind, row in best.iterrows()]
    lines += [
        f"Of {judged['n_candidates'].iloc[0]} candidates, random rankings reach a weighted τ of "
        f"{judged['null_high'].max():+.2f}. Beyond that: {', '.join(shown) or 'none'}."
    ]
    free, paid = (judged[(judged["kind"] == "baseline") == is_free] for is_free in (True, False))
    if len(free) and len(paid):
        lines.append(_winner(free.iloc[0], paid))
    return "\n".join(f"- {line}" for line in lines)


def _winner(free: pd.Series, paid: pd.DataFrame) -> str:
    ahead = paid[paid["weighted_kendall"] > free["weighted_kendall"]]
    name, best = free["score"], paid["weighted_kendall"].max()
    if ahead.empty:
        how = "as well as the best" if best == free["weighted_kendall"] else "better than any"
        return f"**A free baseline wins**: {name} orders the candidates {how} score."
    others = ", ".join(ahead["score"])
    si = "SI is" if "si" in set(ahead["score"]) else "SI is not"
    return f"Ahead of the best free baseline, {name}: {others}. {si} among them."


def _told(row: pd.Series) -> str:
    ends = row["weighted_kendall_low"], row["weighted_kendall_high"]
    span = "no interval for so few" if np.isnan(ends[0]) else "{:+.2f} to {:+.2f}".format(*ends)
    within = (("size", row["within_input_size"]), ("network", row["within_network"]))
    parts = [f"{tau:+.2f} within a {what}" for what, tau in within if not np.isnan(tau)]
    return (
        f"{row['score']}, weighted τ = {row['weighted_kendall']:+.2f} ({span}); the "
        f"candidate that it puts first ends {row['regret_points']:.1f} points below the best"
        + "; Kendall's τ is " * bool(parts)
        + " and ".join(parts)
        + "."
    )


def _scores(table: pd.DataFrame) -> list[str]:
    before = table.loc[:, :"fine_tuned_accuracy"].columns[:-1]
    return [column for column in before if column != "network"]


def _ranks(scores: Sequence[float], accuracies: Sequence[float]) -> bool:
    return len(set(scores)) > 1 and len(set(accuracies)) > 1
