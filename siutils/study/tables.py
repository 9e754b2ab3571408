"""Tables 2 and 3 of the reference study: five indices of each network side by side.

Beside each row stands what the study printed for it, and in what the two differ: number of samples,
classes, transform, weights, training. What the study did is told in its text; the numbers of
samples of its trained EfficientNet-B0 follow from the values, multiples of 1/400 and of 1/1,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from siutils.separation import INDEX_NAMES

_KEYS = ["network", "arm", "split"]
_FACTS = ("n", "n_features", "n_classes", "weights", "transform", "seed")
_N = {"train": 36_000, "test": 10_000}
_N_FEW = {"train": 400, "test": 1_000}  # trained EfficientNet-B0
_CLASSES = 100
_TRANSFORM = {"train": "none", "test": "mean = std = 0.5"}
_TRAINING = {"training_images": 40_000, "epochs": 200}


def wide_indices(table: pd.DataFrame) -> pd.DataFrame:
    """One row per network, arm and split, in the order of the table, with the five indices.

    Args:
        table: rows of `siutils.SeparationIndex.report` with intervals, of one order, with the
            columns ``network, arm, split, weights, transform, seed`` beside them.

    Returns:
        DataFrame ``network, arm, split``, the indices, N and the other facts, and for each index
        ``<index>_low``, ``<index>_high`` and ``<index>_chance``.

    >>> row = {"network": "vgg16", "arm": "trained", "split": "test", "index": "si", "value": 0.4}
    >>> row |= {"low": 0.3, "high": 0.5, "chance": 0.1, "n": 40, "n_features": 3, "n_classes": 9}
    >>> wide = wide_indices(pd.DataFrame([row | {"weights": "", "transform": "", "seed": 0}]))
    >>> wide[["network", "si", "si_low", "si_chance", "n"]].values.tolist()
    [['vgg16', 0.4, 0.3, 0.1, 40]]
    """
    rows = []
    for key, group in table.groupby(_KEYS, sort=False):
        by_index = group.set_index("index")
        names = [name for name in INDEX_NAMES if name in by_index.index]
        row: dict[str, Any] = dict(zip(_KEYS, key, strict=True))
        row |= {name: by_index.at[name, "value"] for name in names}
        row |= {fact: group[fact].iloc[0] for fact in _FACTS}
        row |= {
            f"{name}_{column}": by_index.at[name, column]
            for name in names
            for column in ("low", "high", "chance")
        }
        rows.append(row)
    return pd.DataFrame(rows)


def training_labels(trainings: pd.DataFrame) -> dict[tuple[str, str], str]:
    """What each trained network learned from, epochs × images, as it stands beside its numbers.

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
    """The same for the caption of what shows several networks.

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
) -> pd.DataFrame:
    """Each row followed by what the study has for it, and a row of chance before the first.

    Args:
        wide: rows of `wide_indices`.
        study: rows of `siutils.data.datasets.load_study`; none for data that the study has not.
        trainings: per network of the trained arm ``network, recipe, epochs, training_images`` and
            ``zero_init``, whether its residual blocks started as the identity.
        pretrained: where pretrained weights come from, ``"imagenet"`` (as in the study) or else.

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
    rows = _chance_rows(wide, names)
    for record in wide.to_dict("records"):
        ours = {str(column): value for column, value in record.items()}
        rows.append({"source": ours["arm"], **ours})
        same = study
        for key in _KEYS:
            same = same[same[key] == ours[key]]
        theirs = same.set_index("index")["value"]
        if len(theirs):
            reasons = _reasons(ours, trainings, pretrained)
            rows.append(
                {"source": "study"}
                | {key: ours[key] for key in _KEYS}
                | {name: theirs[name] for name in names}
                | {"n": study_n(ours["network"], ours["arm"], ours["split"])}
                | ({"training": _label(**_TRAINING)} if ours["arm"] == "trained" else {})
                | {"differs_in": ", ".join(reasons), "reason": "; ".join(reasons.values())}
            )
    columns = ["network", "arm", "split", "source", *names]
    table = pd.DataFrame(rows, columns=[*columns, *wide.columns.difference(columns, sort=False)])
    for column in ("differs_in", "reason"):
        table[column] = [row.get(column) for row in rows]
    return table.astype(
        {c: "Int64" for c in ("n", "n_features", "n_classes", "seed") if c in table}
    )


def study_n(network: str, arm: str, split: str) -> int:
    """The number of samples behind a row of the study's tables 2 and 3.

    >>> study_n("vgg16", "trained", "train"), study_n("efficientnet_b0", "trained", "train")
    (36000, 400)
    """
    few = network == "efficientnet_b0" and arm == "trained"
    return (_N_FEW if few else _N)[split]


def _chance_rows(wide: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """What permuted labels give: one row where all splits agree, as they do at equal N."""
    columns = [f"{name}_chance" for name in names if f"{name}_chance" in wide]
    found = wide.drop_duplicates(["split", "n"])
    found = found if found["n"].nunique() > 1 else found.head(1).assign(split="both")
    return [
        {"network": "random labels", "arm": "", "split": row["split"], "source": "chance"}
        | {column.removesuffix("_chance"): row[column] for column in columns}
        | {"n": row["n"], "n_classes": row["n_classes"]}
        for row in found.to_dict("records")
    ]


def _reasons(ours: dict[str, Any], trainings: pd.DataFrame, pretrained: str) -> dict[str, str]:
    """In what the row differs from the study's: word → explanation."""
    found = {}
    split = ours["split"]
    n = study_n(*(ours[key] for key in _KEYS))
    if ours["n"] != n:
        found["N"] = f"N = {ours['n']:,} here, {n:,} in the study"
    if ours["n_classes"] != _CLASSES:
        found["classes"] = f"{ours['n_classes']} classes here, {_CLASSES} in the study"
    if ours["transform"] != _TRANSFORM[split]:  # never the same: the study's was another one
        found["transform"] = f"{split} images: {ours['transform']} here, {_TRANSFORM[split]} there"
    if split == "train":  # never the same: no row of ours is chosen like that
        found["subset"] = (
            "the study took the places of its train images in all 50,000 for places in its split "
            "of 40,000: neither exactly balanced nor exactly inside the split"
        )
    if ours["arm"] == "pretrained" and pretrained != "imagenet":
        found["weights"] = f"pretrained on the {pretrained} task here, on ImageNet in the study"
    if ours["arm"] == "trained":
        row = trainings[trainings["network"] == ours["network"]].iloc[0]
        same = all(row[key] == value for key, value in _TRAINING.items())
        if not (same and row["recipe"].startswith("study")):
            found["training"] = (
                f"{row['recipe']}, {row['epochs']} × {row['training_images']:,} images here, "
                "the study's recipe, 200 × 40,000, there"
            )
        if row["zero_init"]:
            found["start"] = "residual blocks start as the identity here, not in the study"
    return found
