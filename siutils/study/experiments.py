"""What the study left to opinion, measured: size and form of the input, variants of a network.

Each function scores layers of several networks on the same images, and returns tables. Intervals
and tests are about the images; what the seed of a training changes, only repeated trainings show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from siutils.data import ImageSet, Transform
from siutils.features import layer_names
from siutils.layers import findings, layer_scores, paired_tests
from siutils.networks import create_model
from siutils.separation import Record, compare, holm
from siutils.study.trainings import Trained

AS_THE_STUDY = "as the study fed it"
Records = Mapping[tuple[str, int, str], Mapping[str, Record]]  # variant, seed, state → layer


def demonstration(dataset: str) -> str:
    """Says of digits that their numbers show how an experiment works, not what it finds.

    >>> demonstration("digits"), demonstration("cifar100")
    (' A demonstration on digits: it shows how this works, and says nothing of the study.', '')
    """
    text = " A demonstration on digits: it shows how this works, and says nothing of the study."
    return text if dataset == "digits" else ""


def stage_layers(model: nn.Module) -> list[str]:
    """Names of the layers that end the stages of a network.

    Of an EfficientNet-Lite these are the stem (before its ReLU6, which is no layer of its own), the
    last block of each width, and the head; of others, what `siutils.features.layer_names` returns.

    >>> from siutils import create_model
    >>> stage_layers(create_model("efficientnet_lite0", 10, seed=0))[:4]
    ['_bn0', '_blocks.0', '_blocks.2', '_blocks.4']
    """
    blocks: Any = getattr(model, "_blocks", None)
    if blocks is None:
        return layer_names(model)
    widths = [block._block_args.output_filters for block in blocks] + [0]
    ends = [i for i in range(len(blocks)) if widths[i] != widths[i + 1]]
    return ["_bn0", *(f"_blocks.{i}" for i in ends), "_swish"]


def _scored(
    cases: Iterable[tuple[dict[str, Any], nn.Module, Transform, str | Sequence[str]]],
    data: ImageSet,
    how: Mapping[str, Any],
) -> tuple[pd.DataFrame, dict[Any, dict[str, Record]]]:
    """Table and records of cases: each has facts, a model, a transform and layers."""
    parts, records = [], {}
    for facts, model, transform, layers in cases:
        names = stage_layers(model) if layers == "stages" else layers
        options = {"transform": transform, "interval": True, **how}
        scores = layer_scores(model, data.images, data.labels, names, **options)
        parts.append(pd.concat([pd.DataFrame(facts, scores.table.index), scores.table], axis=1))
        own = {key[0]: record for key, record in scores.records.items() if key[2] == "train"}
        records[tuple(facts.values())] = own
    return pd.concat(parts, ignore_index=True), records


def input_sizes(
    models: Mapping[str, Any], data: ImageSet, sizes: Sequence[int], order: int = 2, **how: Any
) -> pd.DataFrame:
    """All indices of the features of networks whose input has several sizes.

    Args:
        models: name → a network with ``feature_layer``, ``transform`` and ``weights_source``.
        data: images to be resized and scored.
        sizes: sides of the input in pixels. Maps of features are averaged, so that their number
            does not depend on the size.
        order: of high-order, soft-order and anti SI.
        how: ``device`` and ``cache`` of `siutils.layer_curve`.

    Returns:
        DataFrame: ``network, size, weights`` before the columns of `siutils.layer_curve`.

    >>> from siutils import create_model, load_dataset
    >>> model = create_model("efficientnet_lite0", None, "imagenet")
    >>> table = input_sizes({"lite": model}, load_dataset("digits", "test"), [16, 32])
    >>> table.query("index == 'si'")[["size", "n_features", "n"]].values.tolist()
    [[16, 1280, 359], [32, 1280, 359]]
    """
    cases = []
    for (name, model), size in product(models.items(), sizes):
        facts = {"network": name, "size": size, "weights": model.weights_source}
        cases.append((facts, model, replace(model.transform, size=size), [model.feature_layer]))
    table, _ = _scored(cases, data, how | {"order": order, "pool": "mean"})
    of_order = (table["order"] == order) | table["index"].isin(["si", "center_si"])
    return table[of_order].reset_index(drop=True)


class StudyInput(NamedTuple):
    """The result of `study_input`: SI of each stage, the first step, what its tests say."""

    curves: pd.DataFrame
    steps: pd.DataFrame
    findings: pd.DataFrame


def study_input(models: Mapping[str, Any], data: ImageSet, **how: Any) -> StudyInput:
    """Scores networks layer by layer as the study fed its own: small images, not normalized.

    Beside their own input stand the two halves of that: another size only, and no normalization
    only. So it shows whether a step from stage 0 to stage 1 goes with the network or the input.

    Args:
        models: name → a trained network with ``transform``.
        data: images, of the size that the study fed (32 pixels).
        how: ``device`` and ``cache`` of `siutils.layer_curve`.

    Returns:
        ``curves``: SI with interval per ``network, input, layer``; ``steps``: rows of
        `siutils.layers.paired_tests` for the first two stages of each; ``findings``: rows of
        `siutils.layers.findings` with the study's input as what is held responsible.

    >>> from siutils import create_model, load_dataset
    >>> model = create_model("resnet18", 10, seed=0)
    >>> model.transform = Transform((0.5,) * 3, (0.5,) * 3, size=8)
    >>> study_input({"resnet": model}, load_dataset("digits", "test")).steps["case"].tolist()[:2]
    ['resnet, own input', 'resnet, as the study fed it']
    """
    cases = []
    for name, model in models.items():
        for label, transform in _inputs(model.transform, data.images.shape[-1]).items():
            facts = {"network": name, "input": label, "size": transform.size}
            cases.append((facts, model, transform, "stages"))
    table, records = _scored(cases, data, how | {"order": 1})
    pairs = {f"{name}, {label}": _first_two(r) for (name, label, _), r in records.items()}
    steps, explanations = paired_tests(pairs), {}
    for name in models:
        of_study = f"{name}, {AS_THE_STUDY}"
        others = [case for case in pairs if case.startswith(f"{name}, ") and case != of_study]
        explanations[f"the study's input to {name}"] = (of_study, others)
    return StudyInput(table.query("index == 'si'"), steps, findings(pairs, steps, explanations))


def _inputs(own: Transform, side: int) -> dict[str, Transform]:
    """Label → transform, each once."""
    own = replace(own, size=own.size or side)
    plain = Transform((0.0,) * 3, (1.0,) * 3, own.size)
    small, of_study = (replace(how, size=side) for how in (own, plain))
    labels = {small: f"{side} pixels", plain: "not normalized"}  # the later label counts
    labels |= {of_study: AS_THE_STUDY, own: "own input"}
    inputs = {label: transform for transform, label in labels.items()}
    return {"own input": own, AS_THE_STUDY: of_study} | inputs


def _first_two(layers: Mapping[str, Record]) -> tuple[Record, Record]:
    first, second, *_ = layers.values()
    return first, second


def run_curves(
    runs: Mapping[tuple[str, int], Trained],
    data: ImageSet,
    states: Sequence[str] = ("trained",),
    layers: str | Sequence[str] = "stages",
    **how: Any,
) -> tuple[pd.DataFrame, Records]:
    """Layer curves of trainings, before and after them.

    Args:
        runs: finished trainings by variant and seed, as of `siutils.study.variant_trainings`.
        data: images to be scored.
        states: ``"untrained"`` (random weights), ``"start"`` (what the training started from),
            ``"trained"``.
        layers: ``"stages"``, see `stage_layers`, ``"blocks"``, or names.
        how: ``device``, ``cache``, ``order``, ``test`` and one ``pool`` of `siutils.layer_curve`.

    Returns:
        DataFrame: ``variant, seed, state, weights`` and the columns of `siutils.layer_curve`; and
        the records of the layers by variant, seed and state.

    Raises:
        ValueError: no run, or an unknown state.

    >>> run_curves({}, None)
    Traceback (most recent call last):
        ...
    ValueError: runs must hold at least one training; states must be of untrained, start, trained
    """
    if not runs or set(states) - set(_STATES):
        known = ", ".join(_STATES)
        raise ValueError(f"runs must hold at least one training; states must be of {known}")
    cases = []
    for ((variant, seed), run), state in product(runs.items(), states):
        model: Any = _STATES[state](run)
        weights = run.source if state == "trained" else model.weights_source
        facts = {"variant": variant, "seed": seed, "state": state, "weights": weights}
        cases.append((facts, model, run.training.transform, layers))
    table, records = _scored(cases, data, how)
    return table, {key[:3]: layers for key, layers in records.items()}


_STATES: dict[str, Callable[[Trained], nn.Module]] = {
    "untrained": lambda run: create_model(
        run.training.network, len(run.training.train.classes), seed=run.training.seed
    ),
    "start": lambda run: run.training.start(),
    "trained": lambda run: run.model,
}


def compare_variants(records: Records, first: str, second: str) -> pd.DataFrame:
    """Tests stage by stage and seed by seed whether two trained variants differ, image by image.

    Args:
        records: of `run_curves`.
        first, second: the variants; their stages have the same names.

    Returns:
        DataFrame ``seed, layer``, SI of the ``first`` and the ``second``, ``effect`` (first less
        second) with its 95 % interval ``low, high``, ``wins, losses, p_value, p_holm`` (for the
        number of rows), ``verdict`` (``higher``, ``lower`` or ``unclear``) and ``n``.

    >>> from siutils import SeparationIndex
    >>> import torch
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> line, wrapped = ({"a": SeparationIndex(f, y).record(lists=True)} for f in (x, x % 3))
    >>> records = {("line", 1, "trained"): line, ("wrapped", 1, "trained"): wrapped}
    >>> compare_variants(records, "line", "wrapped")[["layer", "wins", "n"]].values.tolist()
    [['a', 5, 6]]
    """
    rows = []
    for (variant, seed, state), layers in records.items():
        for layer, record in layers.items() if (variant, state) == (first, "trained") else ():
            found = compare(record, records[second, seed, state][layer])
            rows.append({"seed": seed, "layer": layer, **found._asdict()})
    table = pd.DataFrame(rows).rename(columns={"value": "first", "other": "second"})
    table["p_holm"] = holm(table["p_value"].tolist())
    sure = (table["effect"] > 0).map({True: "higher", False: "lower"})
    table["verdict"] = sure.where(table["p_holm"] < 0.05, "unclear")
    columns = ["seed", "layer", "first", "second", "effect", "low", "high", "wins", "losses"]
    return table[[*columns, "p_value", "p_holm", "verdict", "n"]]


def variant_steps(records: Records) -> pd.DataFrame:
    """Tests whether SI changes from stage 0 to stage 1, for each variant, seed and state.

    Args:
        records: of `run_curves`.

    Returns:
        DataFrame ``variant, seed, state`` and the columns of `siutils.layers.paired_tests`.

    >>> from siutils import SeparationIndex
    >>> import torch
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> line, wrapped = (SeparationIndex(f, y).record(lists=True) for f in (x, x % 3))
    >>> table = variant_steps({("net", 1, "trained"): {"0": line, "1": wrapped}})
    >>> table[["case", "lost"]].values.tolist()
    [['net, 1, trained', 5]]
    """
    cases = {", ".join(map(str, key)): _first_two(layers) for key, layers in records.items()}
    keys = pd.DataFrame(list(records), columns=["variant", "seed", "state"])
    return pd.concat([keys, paired_tests(cases)], axis=1)


def over_seeds(tests: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean and range of an effect over the seeds, and in how many each verdict was found.

    Args:
        tests: rows of `compare_variants` or `variant_steps`.
        by: columns that tell the groups.
        column: ``"effect"`` or ``"change"``.

    Returns:
        DataFrame: ``by``, ``mean, lowest, highest, seeds``, and a column for each verdict.

    >>> rows = {"layer": ["a", "a"], "effect": [0.25, 0.75], "verdict": ["higher", "unclear"]}
    >>> over_seeds(pd.DataFrame(rows), ["layer"], "effect").values.tolist()
    [['a', 0.5, 0.25, 0.75, 2, 1, 1]]
    """
    groups = tests.groupby(list(by), sort=False)
    table = groups[column].agg(mean="mean", lowest="min", highest="max", seeds="size")
    verdicts = groups["verdict"].value_counts().unstack(fill_value=0)
    return table.join(verdicts).reset_index()
