"""How samples become separated from layer to layer: paired tests, flows, the shortest prefix.

A sample is separated at a layer if its nearest neighbor there shares its label. The same samples
are seen at every layer, so layers are compared sample by sample, with the test of
`separation.comparison`, which knows that hits of neighbors go together. What it needs of each
layer is what `siutils.layers.layer_scores` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils.separation import (
    Record,
    check_same_samples,
    compare,
    design_effect_of,
    holm,
    mean_difference,
)

_OF_A_CHANGE = {
    "other": "before",
    "value": "after",
    "effect": "change",
    "wins": "gained",
    "losses": "lost",
}
_COLUMNS = [
    *("case", "before", "after", "change", "low", "high", "gained", "lost", "p_value", "p_holm"),
    *("verdict", "design_effect", "n"),
]
STATES = ("not at the end", "not yet", "for now", "for good")


def compare_changes(
    first: tuple[Record, Record], second: tuple[Record, Record], level: float = 0.95
) -> tuple[float, float, float]:
    """By how much SI changes more between two layers than between two others, sample by sample.

    Args:
        first, second: the earlier and the later layer; the same samples in all four.
        level: coverage of the interval, in (0, 1).

    Returns:
        Change in the first less change in the second; the ends of its interval.

    Raises:
        ValueError: if labels differ, or only a few have neighbors among their own samples.

    >>> from siutils import SeparationIndex
    >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> mixed, good = (SeparationIndex(f, y).record(lists=True) for f in (x % 3, x))
    >>> round(compare_changes((mixed, good), (good, mixed))[0], 3)
    1.667
    """
    check_same_samples(*first, *second)
    terms = list(zip((1, -1, -1, 1), (first[1], first[0], second[1], second[0]), strict=True))
    gain, other_gain = (after.values() - before.values() for before, after in (first, second))
    effect = design_effect_of(gain - other_gain, terms, "si", 1)
    return mean_difference(gain - other_gain, effect, level)


def paired_tests(cases: Mapping[str, tuple[Record, Record]], alpha: float = 0.05) -> pd.DataFrame:
    """For each case, whether SI changes from the first layer to the second.

    Args:
        cases: name → the earlier and the later layer.
        alpha: chance of any false verdict among all cases (Holm).

    Returns:
        DataFrame, a row per case: ``case, before, after, change`` (SI, SI, their difference),
        ``low, high`` (95 % interval of the change), ``gained, lost`` (samples), ``p_value, p_holm,
        verdict`` (``rises``, ``falls`` or ``unclear``), ``design_effect, n``.

    Raises:
        ValueError: no case, or as `siutils.separation.compare`.

    >>> y, near = torch.zeros(8).long(), torch.zeros(8, 1)
    >>> def layer(k):
    ...     return Record(y, (near, near), torch.arange(8)[:, None] < k, reference_counts=[8])
    >>> paired_tests({"up": (layer(0), layer(8)), "flat": (layer(0), layer(0))})["verdict"].tolist()
    ['rises', 'unclear']
    """
    if not cases:
        raise ValueError("cases must hold at least one pair of layers")
    rows = [
        {"case": name} | compare(after, before)._asdict() for name, (before, after) in cases.items()
    ]
    table = pd.DataFrame(rows).rename(columns=_OF_A_CHANGE)
    p = holm(table["p_value"].tolist())
    sure = np.where(table["change"] < 0, "falls", "rises")
    return table.assign(p_holm=p, verdict=np.where(p < alpha, sure, "unclear"))[_COLUMNS]


def layer_steps(samples: Mapping[str, Record], alpha: float = 0.05) -> pd.DataFrame:
    """Whether SI changes from each layer to the next: `paired_tests` of neighboring layers.

    Args:
        samples: layer → its samples, from input to output, at least two.
        alpha: chance of any false verdict (Holm).

    Returns:
        DataFrame: ``depth`` and ``layer`` of the later layer before the columns there.

    >>> y, near = torch.zeros(8).long(), torch.zeros(8, 1)
    >>> def layer(k):
    ...     return Record(y, (near, near), torch.arange(8)[:, None] < k, reference_counts=[8])
    >>> steps = layer_steps({"a": layer(0), "b": layer(8), "c": layer(1)})
    >>> steps[["case", "change"]].values.tolist()
    [['a → b', 1.0], ['b → c', -0.875]]
    """
    pairs = list(zip(samples, list(samples)[1:], strict=False))
    tests = paired_tests({f"{a} → {b}": (samples[a], samples[b]) for a, b in pairs}, alpha)
    tests.insert(0, "depth", range(1, len(samples)))
    tests.insert(1, "layer", [b for _, b in pairs])
    return tests


def settled_at(separated: Tensor) -> Tensor:
    """The layer from which on each sample is separated at all layers.

    Args:
        separated: bool ``(L, N)``, layers from input to output.

    Returns:
        Int64 ``(N,)`` in 0 … L; L for a sample that is not separated at the last layer.

    Raises:
        ValueError: if it is no bool matrix with at least one layer.

    >>> settled_at(torch.tensor([[True, True, True], [False, True, True], [True, True, False]]))
    tensor([2, 0, 3])
    """
    if separated.dtype != torch.bool or separated.ndim != 2 or not len(separated):
        raise ValueError(
            f"separated must be bool (L, N), L ≥ 1; got {separated.dtype} {tuple(separated.shape)}"
        )
    run = separated.flip(0).long().cumprod(dim=0).sum(dim=0)  # separated layers at the end
    return len(separated) - run


def flows(separated: Tensor, layers: Sequence[str]) -> pd.DataFrame:
    """The share of samples in each state at each layer, and what moves between layers.

    States, of which each sample has one at each layer: ``for good`` (separated here and at every
    later layer), ``for now`` (separated here, but not at all later layers), ``not yet`` (not
    separated here, but at the last layer), ``not at the end`` (neither here nor at the last).
    ``for good`` + ``for now`` is SI.

    Args:
        separated: bool ``(L, N)``.
        layers: L names.

    Returns:
        DataFrame, a row per layer: ``depth, layer``, the four states, and ``gained, lost``: shares
        that became or ceased to be separated since the layer before (0 at the first).

    Raises:
        ValueError: as `settled_at`, or if the names are not L.

    >>> parts = torch.tensor([[True, False, False, False], [True, True, False, True]])
    >>> table = flows(parts[:, [0, 1, 2, 3]], ["a", "b"])
    >>> table[["not at the end", "not yet", "for now", "for good", "gained"]].values.tolist()
    [[0.25, 0.5, 0.0, 0.25, 0.0], [0.25, 0.0, 0.0, 0.75, 0.5]]
    """
    settled = settled_at(separated)
    if len(layers) != len(separated):
        raise ValueError(f"layers must be {len(separated)} names; got {len(layers)}")
    depth = torch.arange(len(separated))[:, None]
    good = depth >= settled
    masks = (
        ~separated & ~separated[-1],
        ~separated & separated[-1],
        separated & ~good,
        good,
    )
    table = pd.DataFrame({"depth": depth[:, 0].numpy(), "layer": list(layers)})
    for state, mask in zip(STATES, masks, strict=True):
        table[state] = mask.double().mean(dim=1).numpy()
    before = torch.cat([separated[:1], separated[:-1]])
    table["gained"] = (separated & ~before).double().mean(dim=1).numpy()
    table["lost"] = (before & ~separated).double().mean(dim=1).numpy()
    return table


def class_arrival(settled: Tensor, labels: Tensor, n_layers: int) -> pd.DataFrame:
    """When the samples of each class become separated for good, the latest class first.

    Args:
        settled: int64 ``(N,)`` of `settled_at`.
        labels: int64 ``(N,)``.
        n_layers: L.

    Returns:
        DataFrame: ``label, n, mean_depth`` (of all samples; one that is never separated for good
        counts as L), ``half`` (the first depth by which half of the class has arrived; L if never)
        and ``never`` (share). Classes of equal mean depth come in the order of their labels.

    Raises:
        ValueError: if shapes differ.

    >>> table = class_arrival(torch.tensor([0, 0, 2, 3]), torch.tensor([7, 7, 5, 5]), 3)
    >>> table.values.tolist()
    [[5.0, 2.0, 2.5, 2.0, 0.5], [7.0, 2.0, 0.0, 0.0, 0.0]]
    """
    if settled.shape != labels.shape:
        raise ValueError(f"labels must be {tuple(settled.shape)}; got {tuple(labels.shape)}")
    frame = pd.DataFrame({"label": labels.numpy(), "settled": settled.numpy()})
    rows = []
    for label, group in frame.groupby("label"):
        depths = np.sort(group["settled"].to_numpy())
        half = int(depths[-(-len(depths) // 2) - 1])
        rows.append((label, len(depths), depths.mean(), half, float((depths == n_layers).mean())))
    table = pd.DataFrame(rows, columns=["label", "n", "mean_depth", "half", "never"])
    return table.sort_values("mean_depth", ascending=False, kind="stable", ignore_index=True)


def shortest_prefix(
    samples: Mapping[str, Record], reference: str, alpha: float = 0.05
) -> tuple[str, pd.DataFrame]:
    """After which layer nothing significant is gained any more.

    Each layer is tested against a reference layer behind it. The prefix ends at the first layer
    from which on no layer up to the reference is significantly worse than that. A small gain may
    escape the test: ``high`` says how much, with 95 % confidence, the rest of the network adds at
    most. Choose the reference on other samples: the best of many layers is lucky on its own ones.

    Args:
        samples: layer → its samples, from input to output.
        reference: the layer that a prefix has to match.
        alpha: chance of any false verdict (Holm).

    Returns:
        The last layer of the prefix, and the tests: ``layer`` before the columns of
        `paired_tests`, where a change is what the rest up to the reference adds.

    Raises:
        ValueError: if the reference is none of the layers, or as `paired_tests`.

    >>> y, near = torch.zeros(8).long(), torch.zeros(8, 1)
    >>> def layer(k):
    ...     return Record(y, (near, near), torch.arange(8)[:, None] < k, reference_counts=[8])
    >>> shortest_prefix({"a": layer(0), "b": layer(7), "c": layer(8)}, "c")[0]
    'b'
    """
    names = list(samples)
    if reference not in names:
        raise ValueError(f"reference must be one of {', '.join(names)}; got {reference!r}")
    before = names[: names.index(reference)]
    if not before:
        return reference, pd.DataFrame()
    tests = paired_tests({name: (samples[name], samples[reference]) for name in before}, alpha)
    worse = (tests["verdict"] == "rises").to_numpy().nonzero()[0]
    end = int(worse[-1]) + 1 if len(worse) else 0
    return [*before, reference][end], tests.rename(columns={"case": "layer"})
