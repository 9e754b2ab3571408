"""Scored samples among candidates for neighbors: every index, searched when first asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils.core import Labels, mapped_file
from siutils.neighbors import Neighbors, kneighbors, squared_distances
from siutils.separation import indices, runs, uncertainty
from siutils.separation.record import Record
from siutils.separation.uncertainty import Interval, Lists


class Division(NamedTuple):
    """Sample numbers, int64 and ascending: the separated ones, and all others."""

    easy: Tensor
    difficult: Tensor


class IndexFamily:
    """Scored samples and the samples that can be neighbors to them.

    Args:
        features: real ``(N, D)``, of the candidates.
        labels: of the candidates, N.
        normalize: for the report: whether features were z-scored.
        memory: bytes that a search should keep to, see `siutils.kneighbors`.
        queries: real ``(M, D)``, the scored samples; None for the candidates themselves.
        query_labels: of these, M, in the same coding.

    Attributes:
        classes: NumPy ``(C,)``, the classes of the scored samples in ascending order, as they were
            given: integers or names.
        n, n_features, n_classes: scored samples, features, C.
        normalize: whether features were z-scored; n_constant: of these, how many are constant.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Labels,
        normalize: bool,
        memory: float,
        queries: Tensor | None = None,
        query_labels: Labels | None = None,
    ) -> None:
        self.normalize, self._memory = normalize, memory
        self._features, self._queries, self._candidate_labels = features, queries, labels.codes
        self._file: Any = None  # memory-mapped, in which the features lie
        scored, counts = labels.codes, None
        if query_labels is not None:
            scored, counts = query_labels.codes, _reference_counts(labels, query_labels)
        n = len(scored)
        none = scored[:, None][:, :0]
        nothing = Neighbors(none.double(), none)
        self._record = Record(
            scored, nothing, none.bool(), reference_counts=counts, names=labels.names
        )
        self._choices: dict[int, Lists] = {}  # by seed
        self.n_constant = 0
        self.classes, _ = self._record.classes_and_codes
        self.n, self.n_features, self.n_classes = n, features.shape[1], len(self.classes)

    def record(
        self, order: int = 1, *, center: bool = False, lists: bool = False, seed: int = 0
    ) -> Record:
        """Labels, neighbors and hits of the samples: what every index is computed from.

        Args:
            order: neighbors of each sample, at least; 0 for none.
            center: with center hits.
            lists: with neighbor lists for intervals and tests at this order.
            seed: of the choice of samples for these, where there are many.

        Raises:
            TypeError, ValueError: an order that is no integer, or that exceeds the candidates.
        """
        depth = self._checked(order) if order else 0
        choice = None
        if lists and order and self._queries is None:
            deep = uncertainty.list_depth(order)
            if self.n <= uncertainty.MAX_SAMPLES:
                depth = max(depth, min(deep, self.n - 1))
            else:
                choice = self._choice(deep, seed)
        mapped_file(self._file)
        if depth > self._record.hits.shape[1]:
            neighbors = self._search(depth)
            hits = self._hits(neighbors.indices)
            self._record = replace(self._record, neighbors=neighbors, hits=hits)
        if center and self._record.center_hits is None:
            self._record = replace(self._record, center_hits=self._center_hits())
        return self._record if choice is None else replace(self._record, choice=choice)

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
        return self._value("si", 1, per)

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
        record, most = self._record, self._record.candidates
        sizes, _ = indices.same_label_candidates(record.class_counts, record.reference_counts)
        counts = torch.tensor([candidates for _, candidates in sizes], device="cpu")
        same = counts[record.classes_and_codes[1]]
        if bool(((same == 0) | (same == most)).all()):  # nothing to search for
            return torch.where(same == 0, -most, most)
        hits = self.record(min(4, most)).hits
        return runs.separation_score(hits, same, most, self._search_rows, self._count_runs)

    def divide(self, order: int = 1) -> Division:
        """Divide the samples into easy ones (their ``order`` nearest all share their label) and
        difficult ones (all others); at order 1, separation score above and below 0.

        Arguments and errors as in `high_order_si`.

        >>> from siutils import SeparationIndex
        >>> s = SeparationIndex(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> [part.tolist() for part in s.divide()]
        [[0, 1], [2]]
        """
        easy = torch.as_tensor(self._value("high_order_si", order, "sample")) == 1
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
        return self._record_for(index, order, lists=True, seed=seed).interval(
            index, order, level, seed
        )

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
            * ``n, n_features, n_classes, normalize``, with z-scored features also ``n_constant``
              (features that are constant and so tell nothing), and what a subclass adds.
        """
        record = self.record(self._checked(max_order), center=True, lists=interval)
        return record.report(max_order, interval, level).assign(**self._facts())

    def _facts(self) -> dict[str, Any]:
        """What a report says in every row."""
        names = ("n", "n_features", "n_classes", "normalize") + ("n_constant",) * self.normalize
        return {name: getattr(self, name) for name in names}

    def _value(self, index: str, order: int, per: str) -> float | Tensor:
        indices.check_level(per)
        return self._record_for(index, order).value(index, order, per)

    def _record_for(self, index: str, order: int, lists: bool = False, seed: int = 0) -> Record:
        """The record with what one index needs."""
        indices.check_index(index)
        if index == "center_si":
            return self.record(0, center=True)
        order = self._checked(1 if index == "si" else order)
        return self.record(order, lists=lists, seed=seed)

    def _checked(self, order: int) -> int:
        if isinstance(order, bool) or not isinstance(order, int | np.integer):
            raise TypeError(f"order must be an integer; got {type(order).__name__}")
        most = self._record.candidates
        if not 1 <= order <= most:
            raise ValueError(
                f"order must lie in 1 … {most} (the samples to be neighbors); got {order}"
            )
        return int(order)

    def _search(self, k: int) -> Neighbors:
        near = kneighbors(self._features, k, self._queries, memory=self._memory)
        return Neighbors(near.distances.cpu(), near.indices.cpu())

    def _search_rows(self, rows: Tensor, k: int) -> Tensor:
        """The hits of the k nearest neighbors of a few samples, bool ``(len(rows), k)``."""
        if self._queries is None:
            near = runs.nearest_others(self._features, rows, k, self._memory)
        else:
            queries = self._queries[rows.to(self._queries.device)]
            near = kneighbors(self._features, k, queries, memory=self._memory).indices.cpu()
        return self._hits(near, rows)

    def _count_runs(self, rows: Tensor) -> Tensor:
        """The separation scores of a few samples, from the distances of all candidates."""
        features = self._features
        queries = features if self._queries is None else self._queries
        others = torch.arange(len(features), device=features.device)
        at = rows.to(features.device).repeat_interleave(len(others))
        # squares in the range of float64, as in `kneighbors`
        low = torch.minimum(features.amin(0), queries.amin(0)).double()
        high = torch.maximum(features.amax(0), queries.amax(0)).double()
        exponent = math.frexp(float((high - low).max()))[1]
        unit = 2.0 ** max(-1000, min(1000, 480 - exponent)) if abs(exponent) > 300 else 1.0
        squared = squared_distances(queries, features, at, others.repeat(len(rows)), unit)
        squared = squared.view(len(rows), -1)
        if self._queries is None:
            squared.scatter_(1, rows[:, None].to(squared.device), torch.inf)
        hits = self._hits(others.cpu().expand(len(rows), -1), rows).to(squared.device)
        return runs.counted_runs(squared, hits).cpu()

    def _hits(self, neighbors: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        return indices.neighbor_hits(self._record.labels[rows], self._candidate_labels[neighbors])

    def _center_hits(self) -> Tensor:
        classes, codes = self._candidate_labels.unique(return_inverse=True)
        codes = codes.to(self._features.device)
        means = indices.class_means(self._features, codes, len(classes))
        queries = self._features if self._queries is None else self._queries
        nearest = kneighbors(means, 1, queries, memory=self._memory).indices[:, 0].cpu()
        return classes[nearest] == self._record.labels

    def _choice(self, depth: int, seed: int) -> Lists:
        """Neighbor lists among a random choice of the samples."""
        if seed not in self._choices or self._choices[seed].hits.shape[1] < depth:
            generator = torch.Generator("cpu").manual_seed(seed)
            rows = torch.randperm(self.n, generator=generator, device="cpu")
            rows = rows[: uncertainty.MAX_SAMPLES]
            rows = rows.sort().values
            neighbors = runs.neighbors_among(self._features, rows, depth, self._memory)
            labels = self._record.labels[rows]
            self._choices[seed] = Lists(neighbors, labels[neighbors] == labels[:, None])
        return self._choices[seed]


def _reference_counts(reference: Labels, labels: Labels) -> list[int]:
    """Reference samples of each scored class, ascending, then those of any other class."""
    classes, counts = reference.codes.unique(return_counts=True)
    sizes = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    own = [sizes.pop(c, 0) for c in labels.codes.unique().tolist()]
    return own + list(sizes.values())
