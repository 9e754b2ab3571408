"""What `SeparationIndex` and `CrossSeparation` share: every index and level."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils.neighbors import kneighbors
from siutils.separation import indices, runs, uncertainty
from siutils.separation.uncertainty import Interval

ORDERED = ("high_order_si", "soft_order_si", "anti_si")


class Division(NamedTuple):
    """Sample numbers, int64 and ascending: the separated ones, and all others."""

    easy: Tensor
    difficult: Tensor


class IndexFamily(ABC):
    """Scored samples with a class each, and the samples that can be neighbors to them.

    Attributes:
        classes: int64 ``(C,)``, the label values of the scored samples in ascending order.
        n, n_features, n_classes: scored samples, features, C.
        normalize: whether features were z-scored.
    """

    classes: Tensor
    n: int
    n_features: int
    n_classes: int
    normalize: bool
    _memory: float  # bytes that a search may take
    _features: Tensor  # (N, D), of the samples to be neighbors
    _queries: Tensor  # (n, D), of the scored samples
    _codes: Tensor  # (n,), positions in classes
    _labels: Tensor  # (n,), of the scored samples
    _candidate_labels: Tensor  # of the samples to be neighbors
    _candidates: int  # how many of them a sample has to choose from
    _reference_counts: list[int] | None  # as in indices.chance
    _neighbors: Tensor | None = None  # (n, k), searched when first needed
    _centered: Tensor | None = None  # (n,), whether the nearest mean is that of the own class

    def si(self, per: str = "dataset") -> float | Tensor:
        """Separation Index: the fraction of samples whose nearest neighbor shares their label.

        Args:
            per: ``"dataset"`` for a float; ``"class"`` for a tensor ``(C,)`` of class means in
                ascending label order; ``"macro"`` for their plain mean, a float; ``"sample"`` for
                ``(N,)`` of zeros and ones. Float64, CPU.

        >>> from siutils import SeparationIndex
        >>> s = SeparationIndex(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> s.si(), s.si(per="macro")
        (0.6666666666666666, 0.5)
        """
        return self.high_order_si(1, per)

    def high_order_si(self, order: int, per: str = "dataset") -> float | Tensor:
        """The fraction of samples whose ``order`` nearest neighbors all share their label.

        Args:
            order: neighbors looked at, 1 ≤ order ≤ N − 1 (across sets: ≤ N).
            per: as in `si`.

        Raises:
            ValueError: if ``order`` is out of range or ``per`` unknown.
        """
        return self._value("high_order_si", order, per)

    def soft_order_si(self, order: int, per: str = "dataset") -> float | Tensor:
        """The mean fraction of same-label samples among the ``order`` nearest neighbors.

        Arguments and errors as in `high_order_si`.
        """
        return self._value("soft_order_si", order, per)

    def anti_si(self, order: int, per: str = "dataset") -> float | Tensor:
        """The fraction of samples none of whose ``order`` nearest neighbors shares their label.

        Arguments and errors as in `high_order_si`.
        """
        return self._value("anti_si", order, per)

    def center_si(self, per: str = "dataset") -> float | Tensor:
        """The fraction of samples that lie nearest to the mean of their own class.

        Across sets, the means are those of the reference classes. Equal distances go to the lower
        label. Argument ``per`` as in `si`.
        """
        return self._value("center_si", 0, per)

    def separation_score(self) -> Tensor:
        """Per sample: how many nearest neighbors in a row share its label, or minus how many not.

        Positive for separated samples (the greater, the deeper inside their class), negative for
        the others. Neighbors are searched deeper only for samples whose run has not ended, so data
        in pure clusters take longer.

        Returns:
            Int64 ``(N,)``, CPU, never 0.

        >>> from siutils import SeparationIndex
        >>> x, y = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 0, 1])
        >>> SeparationIndex(x, y).separation_score().tolist()
        [2, 2, 2, -3]
        """
        classes, _ = indices.same_label_candidates(self._class_counts, self._reference_counts)
        same = torch.tensor([candidates for _, candidates in classes])[self._codes]
        return runs.separation_score(
            self._hits(min(4, self._candidates)),
            same,
            self._candidates,
            lambda rows, k: self._compare_labels(self._search(k, rows), rows),
        )

    def divide(self, order: int = 1) -> Division:
        """Divide the samples into easy ones (their ``order`` nearest all share their label) and
        difficult ones (all others); at order 1, separation score above and below 0.

        Arguments and errors as in `high_order_si`.

        >>> from siutils import SeparationIndex
        >>> s = SeparationIndex(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> [part.tolist() for part in s.divide()]
        [[0, 1], [2]]
        """
        easy = self._sample_values("high_order_si", order) == 1
        return Division(easy.nonzero().flatten(), (~easy).nonzero().flatten())

    def interval(
        self, index: str = "si", order: int = 1, level: float = 0.95, seed: int = 0
    ) -> Interval:
        """Confidence interval for the value expected at this N, from samples drawn alike.

        See `siutils.separation.uncertainty` for the method, and for why it is neither the binomial
        interval nor a bootstrap.

        Args:
            index: a name of ``siutils.separation.INDICES``.
            order: the order of high-order, soft-order and anti SI.
            level: coverage, in (0, 1).
            seed: of the random partitions.

        Returns:
            ``Interval(value, low, high, level, n, design_effect)``.

        Raises:
            ValueError: for an unknown index, a wrong order or level.

        >>> from siutils import SeparationIndex
        >>> x, y = torch.arange(12.0)[:, None], torch.arange(12) // 6
        >>> found = SeparationIndex(x, y).interval()
        >>> round(found.value, 3), found.low < found.value < found.high <= 1
        (0.917, True)
        """
        values = self._sample_values(index, order)
        effect = self._design_effect(values, index, order, seed)
        return uncertainty.interval(values, effect, level)

    def report(
        self, max_order: int = 2, interval: bool = False, level: float = 0.95
    ) -> pd.DataFrame:
        """All indices as a tidy table, one row per index and order.

        Args:
            max_order: highest order of high-order, soft-order and anti SI, from 1.
            interval: adds the columns ``low, high, design_effect`` of `interval`: a deeper
                neighbor search, and some seconds.
            level: coverage of the interval.

        Returns:
            DataFrame with the columns

            * ``index, order, value``; ``order`` is 1 for SI and 0 for center SI;
            * ``macro``, the mean of the class means;
            * ``chance``, the exact expectation under permuted labels (not available for center
              SI), and ``lift``, value divided by chance (not available where chance is 0);
            * ``attainable``, the best value that the class sizes allow, and ``undefined``, the
              number of samples with too few others of their label (see `indices`);
            * ``n, n_features, n_classes, normalize``, and what a subclass adds.
        """
        self._prepare(max_order, interval)
        rows = [self._row(name, r, interval, level) for name, r in self._names(max_order)]
        return pd.DataFrame(rows).assign(**self._facts())

    def _row(self, name: str, order: int, interval: bool, level: float) -> dict[str, Any]:
        values = self._sample_values(name, order)
        counts = self._class_counts, order, self._reference_counts
        row: dict[str, Any] = {"index": name, "order": order}
        for column, per in (("value", "dataset"), ("macro", "macro")):
            row[column] = indices.aggregate(values, self._codes, self.n_classes, per)
        if interval:
            effect = self._design_effect(values, name, order, seed=0)
            found = uncertainty.interval(values, effect, level)
            row |= {"low": found.low, "high": found.high, "design_effect": found.design_effect}
        row["chance"] = chance = indices.chance(name, *counts)
        row["lift"] = row["value"] / chance if chance > 0 else math.nan
        row["attainable"] = indices.attainable(name, *counts)
        row["undefined"] = indices.undefined(name, *counts)
        return row

    def _prepare(self, max_order: int, interval: bool) -> None:
        """Search once, as deep as all rows of the report need."""
        self._hits(max_order)

    def _names(self, max_order: int) -> list[tuple[str, int]]:
        """Index and order of each row of the report."""
        ordered = ((name, r) for name in ORDERED for r in range(1, max_order + 1))
        return [("si", 1), *ordered, ("center_si", 0)]

    def _facts(self) -> dict[str, Any]:
        """What a report says in every row."""
        names = ("n", "n_features", "n_classes", "normalize")
        return {name: getattr(self, name) for name in names}

    def _value(self, name: str, order: int, per: str) -> float | Tensor:
        indices.check_level(per)
        values = self._sample_values(name, order)
        return indices.aggregate(values, self._codes, self.n_classes, per)

    def _sample_values(self, name: str, order: int) -> Tensor:
        """Float64 ``(n,)`` on the CPU."""
        indices.check_index(name)
        if name == "center_si":
            return self._near_center().double()
        if name == "si":
            name, order = "high_order_si", 1
        return getattr(indices, name)(self._hits(order), order)

    def _near_center(self) -> Tensor:
        if self._centered is None:
            classes, codes = self._candidate_labels.unique(return_inverse=True)
            codes = codes.to(self._features.device)
            means = indices.class_means(self._features, codes, len(classes))
            nearest = (
                kneighbors(means, 1, queries=self._queries, memory=self._memory).indices[:, 0].cpu()
            )
            self._centered = classes[nearest] == self._labels
        return self._centered

    @property
    def _class_counts(self) -> list[int]:
        return torch.bincount(self._codes, minlength=self.n_classes).tolist()

    def _hits(self, order: int) -> Tensor:
        """Hits of all samples, bool ``(n, k)`` on the CPU, k ≥ order, searched when first asked."""
        if isinstance(order, bool) or not isinstance(order, int | np.integer):
            raise TypeError(f"order must be an integer; got {type(order).__name__}")
        if not 1 <= order <= self._candidates:
            raise ValueError(
                f"order must lie in 1 … {self._candidates} (the samples to be neighbors); "
                f"got {order}"
            )
        if self._neighbors is None or self._neighbors.shape[1] < order:
            self._neighbors = self._search(int(order))
        return self._compare_labels(self._neighbors)

    def _compare_labels(self, neighbors: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        return indices.neighbor_hits(self._labels[rows], self._candidate_labels[neighbors])

    @abstractmethod
    def _search(self, k: int, rows: Tensor | None = None) -> Tensor:
        """The k nearest neighbors of all samples, or of some: int64 ``(…, k)`` on the CPU."""

    @abstractmethod
    def _design_effect(self, values: Tensor, index: str, order: int, seed: int) -> float:
        """See `siutils.separation.uncertainty`."""
