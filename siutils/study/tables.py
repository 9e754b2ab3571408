"""Tables 2 and 3 of the reference study: five indices of each network side by side.

Below each row stand the values that the study printed for it, and the reasons why the two differ:
number of samples, classes, transform, weights, training. The text of the study says what it did.
The numbers of samples of its trained EfficientNet-B0 follow from its values, which are multiples of
1/400 and 1/1,000.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd

from siutils.separation import INDEX_NAMES

_KEYS = ["network", "arm", "split"]
_FACTS = ("n", "n_features", "n_classes", "weights", "transform", "seed")
_BOUNDS = ("low", "high", "chance")
_INTEGERS = ("n", "n_features", "n_classes", "seed")  # missing in some rows
_N = {"train": 36_000, "test": 10_000}
_N_FEW = {"train": 400, "test": 1_000}  # trained EfficientNet-B0
_CLASSES = 100
_TRANSFORM = {"train": "none", "test": "mean = std = 0.5"}
_TRAINING = {"training_images": 40_000, "epochs": 200}


def wide_indices(table: pd.DataFrame) -> pd.DataFrame:
    """Turns the table into one row per network, arm and split, with a column for each index.

    Args:
        table: rows of `siutils.SeparationIndex.report` with intervals, all of the same order,
            with the columns ``network, arm, split, weights, transform, seed`` beside them.

    Returns:
        DataFrame ``network, arm, split``, the indices, N and the other facts, and for each index
        ``<index>_low``, ``<index>_high`` and ``<index>_chance``.

    >>> row = {"network": "vgg16", "arm": "trained", "split": "test", "index": "si", "value": 0.4}
    >>> row |= {"low": 0.3, "high": 0.5, "chance": 0.1, "n": 40, "n_features": 3, "n_classes": 9}
    >>> wide = wide_indices(pd.DataFrame([row | {"weights": "", "transform": "", "seed": 0}]))
    >>> wide[["network", "si", "si_low", "si_chance", "n"]].values.tolist()
    [['vgg16', 0.4, 0.3, 0.1, 40]]
    """
    names = [name for name in INDEX_NAMES if name in set(table["index"])]
    facts = table.drop_duplicates(_KEYS).set_index(_KEYS)[list(_FACTS)]
    values = table.pivot(index=_KEYS, columns="index", values=["value", *_BOUNDS])
    # ("low", "si") → "si_low", but ("value", "si") → "si"
    values.columns = ["_".join(pair[::-1]).removesuffix("_value") for pair in values.columns]
    bounds = [f"{name}_{column}" for name in names for column in _BOUNDS]
    return facts.join(values)[[*names, *_FACTS, *bounds]].reset_index()


def training_labels(trainings: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Says for each network what it was trained on: epochs × images.

    Args:
        trainings: ``network, arm, epochs, training_images``.

    Returns:
        Label per network and arm.

    >>> row = {"network": "vgg16", "arm": "trained", "epochs": 2, "training_images": 5000}
    >>> training_labels(pd.DataFrame([row]))
    {('vgg16', 'trained'): '2 × 5,000'}
    """
    return {
        (row["network"], row["arm"]): _label(row["training_images"], row["epochs"])
        for row in trainings.to_dict("records")
    }


def _label(training_images: int, epochs: int) -> str:
    return f"{epochs} × {training_images:,}"


def training_note(trainings: pd.DataFrame) -> str:
    """Says in one sentence, for a caption, what each of several networks was trained on.

    >>> row = {"network": "vgg16", "arm": "trained", "epochs": 2, "training_images": 5000}
    >>> training_note(pd.DataFrame([row, row | {"arm": "pretrained"}]))
    'Training, epochs × images: vgg16 2 × 5,000 (trained, pretrained).'
    """
    networks: dict[str, list[str]] = {}
    for (network, arm), label in training_labels(trainings).items():
        networks.setdefault(f"{network} {label}", []).append(arm)
    texts = (f"{text} ({', '.join(arms)})" for text, arms in networks.items())
    return f"Training, epochs × images: {', '.join(texts)}."


def beside_study(
    wide: pd.DataFrame,
    study: pd.DataFrame,
    trainings: pd.DataFrame,
    pretrained: str,
    absent: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Puts the row of the study below each row of ours, and rows of chance before the first.

    Args:
        wide: rows of `wide_indices`.
        study: rows of `load_study`; no rows for data that the study does not cover.
        trainings: for each trained network ``network, recipe, epochs, training_images`` and
            ``zero_init``, whether its residual blocks started as the identity.
        pretrained: the task of pretrained weights: ``"imagenet"`` or ``"auto"``, as in the study,
            or another.
        absent: pretrained networks of the study whose weights are not at hand → why; where `wide`
            has pretrained rows, the study's rows of these networks stand behind them.

    Returns:
        The rows with the columns ``source`` (the arm of our rows, ``study`` or ``chance``),
        ``differs_in``, the reasons in one word each, and ``reason``, in full.

    >>> row = {"network": "vgg16", "arm": "trained", "split": "test", "si": 0.4, "si_chance": 0.1}
    >>> row |= {"n": 500, "n_classes": 100, "weights": "here", "transform": "of the training"}
    >>> study = [{k: row[k] for k in ("network", "arm", "split")} | {"index": "si", "value": 0.6}]
    >>> ours = {"network": "vgg16", "recipe": "study", "epochs": 200, "training_images": 40_000}
    >>> ours |= {"zero_init": False}
    >>> table = beside_study(*map(pd.DataFrame, ([row], study, [ours])), "imagenet")
    >>> table[["source", "si", "differs_in"]].fillna("").values.tolist()
    [['chance', 0.1, ''], ['trained', 0.4, ''], ['study', 0.6, 'N, transform']]
    """
    names = [name for name in INDEX_NAMES if name in wide]
    printed = study.pivot_table("value", _KEYS, "index", aggfunc="first")
    rows = _chance_rows(wide, names)
    for record in wide.to_dict("records"):
        ours = {str(column): value for column, value in record.items()}
        rows.append({"source": ours["arm"], **ours})
        key = tuple(ours[column] for column in _KEYS)
        if key in printed.index:
            reasons = _reasons(ours, trainings, pretrained)
            rows.append(
                {"source": "study", **dict(zip(_KEYS, key, strict=True)), "n": study_n(*key)}
                | {name: printed.at[key, name] for name in names}
                | ({"training": _label(**_TRAINING)} if ours["arm"] == "trained" else {})
                | {"differs_in": ", ".join(reasons), "reason": "; ".join(reasons.values())}
            )
    splits = wide.loc[wide["arm"] == "pretrained", "split"].unique()
    for network, split in itertools.product(absent, splits):
        key = (network, "pretrained", split)
        if key in printed.index:
            rows.append(
                {"source": "study", **dict(zip(_KEYS, key, strict=True)), "n": study_n(*key)}
                | {name: printed.at[key, name] for name in names}
                | {"differs_in": "weights", "reason": f"not at hand here: {absent[network]}"}
            )
    columns = [*_KEYS, "source", *names]
    columns += [*wide.columns.difference(columns, sort=False), "differs_in", "reason"]
    integers = {column: "Int64" for column in _INTEGERS if column in columns}
    return pd.DataFrame(rows, columns=columns).astype(integers)


def study_n(network: str, arm: str, split: str) -> int:
    """Returns the number of samples behind a row of the study's tables 2 and 3.

    >>> study_n("vgg16", "trained", "train"), study_n("efficientnet_b0", "trained", "train")
    (36000, 400)
    """
    few = network == "efficientnet_b0" and arm == "trained"
    return (_N_FEW if few else _N)[split]


def _chance_rows(wide: pd.DataFrame, names: Sequence[str]) -> list[Any]:
    """Indices of permuted labels: one row if all splits have the same N, else one per split."""
    rows = wide.drop_duplicates(["split", "n"])
    if rows["n"].nunique() == 1:
        rows = rows.head(1).assign(split="both")
    chance = {f"{name}_chance": name for name in names if f"{name}_chance" in wide}
    rows = rows[["split", "n", "n_classes", *chance]].rename(columns=chance)
    return rows.assign(network="random labels", arm="", source="chance").to_dict("records")


def _reasons(ours: dict[str, Any], trainings: pd.DataFrame, pretrained: str) -> dict[str, str]:
    """Reasons why a row differs from the study's: word → explanation."""
    reasons = {}
    split = ours["split"]
    n = study_n(*(ours[key] for key in _KEYS))
    if ours["n"] != n:
        reasons["N"] = f"N = {ours['n']:,} here, {n:,} in the study"
    if ours["n_classes"] != _CLASSES:
        reasons["classes"] = f"{ours['n_classes']} classes here, {_CLASSES} in the study"
    if ours["transform"] != _TRANSFORM[split]:
        reasons["transform"] = (
            f"{split} images: {ours['transform']} here, {_TRANSFORM[split]} there"
        )
    if split == "train":  # always: no row of ours is chosen like that
        reasons["subset"] = (
            "the study took the places of its train images in all 50,000 for places in its split "
            "of 40,000: neither exactly balanced nor exactly inside the split"
        )
    if ours["arm"] == "pretrained" and pretrained == "upstream":
        reasons["weights"] = f"pretrained on the {pretrained} task here, on ImageNet in the study"
    if ours["arm"] == "trained":
        row = trainings[trainings["network"] == ours["network"]].iloc[0]
        same = all(row[key] == value for key, value in _TRAINING.items())
        if not (same and row["recipe"].startswith("study")):
            reasons["training"] = (
                f"{row['recipe']}, {row['epochs']} × {row['training_images']:,} images here, "
                "the study's recipe, 200 × 40,000, there"
            )
        if row["zero_init"]:
            reasons["start"] = "residual blocks start as the identity here, not in the study"
    return reasons
