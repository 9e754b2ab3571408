"""The record of a scored set: its samples' neighbors and hits. Every value follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils.core import Labels
from siutils.neighbors import Neighbors
from siutils.separation import indices, uncertainty
from siutils.separation.uncertainty import Interval, Lists


@dataclass(frozen=True, eq=False)
class Record:
    """What one search says about a set of N scored samples.

    Attributes:
        labels: int64 ``(N,)``, the codes of `Labels`.
        neighbors: of each sample, ``(N, k)`` distances and indices, nearest first.
        hits: bool ``(N, k)``, whether each neighbor carries its sample's label.
        center_hits: bool ``(N,)``, whether the nearest class mean is that of the sample's own
            class; None if it was not asked for.
        reference_counts: where neighbors come from a second set, its samples per class, as in
            `indices.chance`; None within one set.
        choice: neighbor lists among a random choice of many samples, for the design effect; None
            if the neighbors above serve.
        names: what the labels stand for, ``(C,)``; None where they are the caller's integers.

    >>> near = Neighbors(torch.ones(3, 1), torch.tensor([[1], [0], [1]]))
    >>> record = Record(torch.tensor([0, 0, 1]), near, torch.tensor([[True], [True], [False]]))
    >>> record.value("si", 1, "class").tolist(), round(record.value(), 3)
    ([1.0, 0.0], 0.667)
    """

    labels: Tensor
    neighbors: Neighbors
    hits: Tensor
    center_hits: Tensor | None = None
    reference_counts: list[int] | None = None
    choice: Lists | None = None
    names: np.ndarray | None = None

    @cached_property
    def classes_and_codes(self) -> tuple[np.ndarray, Tensor]:
        """Classes that occur, ascending ``(C,)``, and each sample's place among them ``(N,)``."""
        classes, codes = self.labels.unique(return_inverse=True)
        return Labels(self.labels, self.names).values(classes), codes

    @property
    def class_counts(self) -> list[int]:
        """Samples per class."""
        return torch.bincount(self.classes_and_codes[1]).tolist()

    @property
    def candidates(self) -> int:
        """How many samples can be neighbors to each."""
        counts = self.reference_counts
        return len(self.labels) - 1 if counts is None else sum(counts)

    @property
    def separated(self) -> Tensor:
        """Bool ``(N,)``, whether the nearest neighbor carries the sample's label."""
        return self.hits[:, 0]

    def values(self, index: str = "si", order: int = 1) -> Tensor:
        """One index of each sample, float64 ``(N,)``.

        Args:
            index: a name of `indices.INDICES`.
            order: the order of high-order, soft-order and anti SI.

        Raises:
            ValueError: an unknown index, an order beyond the known neighbors, or center SI without
                center hits.
        """
        indices.check_index(index)
        if index != "center_si":
            return indices.sample_values(self.hits, index, order)
        if self.center_hits is None:
            raise ValueError("index center_si needs center hits, which this record lacks")
        return self.center_hits.double()

    def value(self, index: str = "si", order: int = 1, per: str = "dataset") -> float | Tensor:
        """An index of the set, its classes or its samples; ``per`` as in `indices.aggregate`."""
        indices.check_level(per)
        classes, codes = self.classes_and_codes
        return indices.aggregate(self.values(index, order), codes, len(classes), per)

    def interval(
        self, index: str = "si", order: int = 1, level: float = 0.95, seed: int = 0
    ) -> Interval:
        """Confidence interval of an index; see `SeparationIndex.interval`."""
        values = self.values(index, order)
        effect = design_effect_of(values, [(1, self)], index, order, seed)
        return uncertainty.interval(values, effect, level)

    def report(
        self, max_order: int = 2, interval: bool = False, level: float = 0.95
    ) -> pd.DataFrame:
        """A row per index and order: the columns of `SeparationIndex.report` up to ``undefined``.

        Center SI has a row if center hits are known.
        """
        names = indices.index_orders(max_order)
        if self.center_hits is None:
            names.remove(("center_si", 0))
        return pd.DataFrame([self._row(*name, interval, level) for name in names])

    def _row(self, name: str, order: int, interval: bool, level: float) -> dict[str, Any]:
        counts = self.class_counts, order, self.reference_counts
        row: dict[str, Any] = {"index": name, "order": order}
        row |= {"value": self.value(name, order), "macro": self.value(name, order, "macro")}
        if interval:
            bounds = self.interval(name, order, level)
            row |= {"low": bounds.low, "high": bounds.high, "design_effect": bounds.design_effect}
        row["chance"] = chance = indices.chance(name, *counts)
        row["lift"] = row["value"] / chance if chance > 0 else math.nan
        row["attainable"] = indices.attainable(name, *counts)
        row["undefined"] = indices.undefined(name, *counts)
        return row

    def lists(self, order: int) -> Lists | None:
        """Neighbor lists deep enough for the design effect of an order; None across two sets.

        Raises:
            ValueError: the search did not go that deep.
        """
        if self.reference_counts is not None:
            return None
        depth = uncertainty.list_depth(order)
        if self.choice is not None:
            return Lists(*(part[:, :depth] for part in self.choice))
        if self.hits.shape[1] < min(depth, self.candidates):
            raise ValueError(
                f"tests and intervals need {depth} neighbors of each sample, but this record has "
                f"{self.hits.shape[1]}: score with interval=True"
            )
        return Lists(self.neighbors.indices[:, :depth], self.hits[:, :depth])


def design_effect_of(
    values: Tensor, terms: Sequence[tuple[int, Record]], index: str, order: int, seed: int = 0
) -> float:
    """Design effect of an index, or of a sum of the same index of several records.

    Across two sets it is 1: given the reference, test samples are independent. So it is for center
    SI, whose class means hardly move with one sample.

    Args:
        values: float ``(N,)``, the per-sample values whose mean is meant.
        terms: sign and record of each term of the sum, all of the same samples.
        index, order: as in `Record.values`.
        seed: of the random partitions.

    Raises:
        ValueError: some records are of one set, others across two.

    >>> near = Neighbors(torch.ones(4, 1), torch.tensor([[1], [0], [3], [2]]))
    >>> across = Record(torch.zeros(4), near, torch.ones(4, 1).bool(), reference_counts=[4])
    >>> design_effect_of(torch.ones(4), [(1, across)], "si", 1)
    1.0
    """
    if index == "center_si":
        return 1.0
    order = 1 if index == "si" else order
    lists = [(sign, record.lists(order)) for sign, record in terms]
    within = [(sign, part) for sign, part in lists if part is not None]
    if not within:
        return 1.0
    if len(within) < len(lists):
        raise ValueError("first and second must both be scored within one set, or both across two")
    return uncertainty.design_effect(values, within, index, order, seed)
