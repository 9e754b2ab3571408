"""Which features separate the classes: SI of each alone, and forward selection by SI.

A feature alone needs no distances: sorted, the nearest neighbor stands next to the sample. Forward
selection adds one feature at a time; squared distances grow with every feature, so samples that
were far stay far, and a short list of near ones mostly proves the nearest neighbor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from siutils.core import as_labels, as_matrix, check_finite, check_positive, check_same_length
from siutils.neighbors import kneighbors

_BATCH = 2**19  # numbers per step: a dozen arrays of 4 MB
_BLOCK = 2**18  # the same where all pairs are looked at: stays in the cache of a core
_LIST = 128  # neighbors kept per sample
_TOO_MANY = 0.05  # share of samples whose list proves nothing that calls for new lists


def single_feature_si(features: Any, labels: Any) -> Tensor:
    """SI of each feature alone, by sorting: O(N log N) per feature.

    Equals `SeparationIndex` on the single column: distances are float64 differences; a
    sample is not its own neighbor; equal distances, duplicates included, go to the lower index.

    Args:
        features: real ``(N, D)``, torch or NumPy, N ≥ 2, finite. D may be in the thousands.
        labels: ``(N,)``, see `siutils.core.as_labels`.

    Returns:
        Float64 CPU tensor ``(D,)``.

    Raises:
        TypeError, ValueError: if shapes do not fit, N < 2, or a feature is NaN or infinite.

    >>> single_feature_si([[0.0, 0.0], [1.0, 8.0], [5.0, 2.0], [7.0, 9.0]], [0, 0, 1, 1]).tolist()
    [1.0, 0.0]
    """
    x, y = _checked(features, labels)
    parts = []
    for batch in x.split(max(1, _BATCH // len(x)), dim=1):
        nearest = _nearest_by_sorting(batch.double().T.contiguous())
        parts.append((y[nearest] == y).double().mean(dim=1))
    return torch.cat(parts).cpu()


def forward_selection(features: Any, labels: Any, max_features: int | None = None) -> pd.DataFrame:
    """Add features one by one, each time the one with which SI is highest.

    Candidates are compared by the SI of float64 squared distances summed in the order of selection;
    equal SI goes to the lower feature. The first feature is the best of `single_feature_si`.

    Args:
        features: real ``(N, D)``, torch or NumPy, N ≥ 2, finite.
        labels: ``(N,)``, see `siutils.core.as_labels`.
        max_features: where to stop; by default all D are put in order.

    Returns:
        DataFrame with the columns ``step`` (from 1), ``feature`` (column selected at that step) and
        ``si``, exactly that of `SeparationIndex` on the columns selected so far, in their
        order.

    Raises:
        TypeError, ValueError: if shapes do not fit, N < 2, a feature is NaN or infinite, or
            ``max_features`` is not in 1 … D.

    >>> x = [[0.0, 5.0, 0.0], [1.0, 5.0, 9.0], [4.0, 5.0, 1.0], [5.0, 5.0, 8.0]]
    >>> forward_selection(x, [0, 0, 1, 1], max_features=2)
       step  feature   si
    0     1        0  1.0
    1     2        1  1.0
    """
    x, y = _checked(features, labels)
    wanted = x.shape[1] if max_features is None else max_features
    check_positive(wanted, "max_features")
    if wanted > x.shape[1]:
        raise ValueError(f"max_features must lie in 1 … {x.shape[1]} (features); got {wanted}")
    selected = [int(single_feature_si(x, y).numpy().argmax())]  # NumPy's: of equal ones the first
    search = _Search(_scaled(x.double().T.contiguous(), together=True), y)
    while len(selected) < wanted:
        search.add(selected[-1])
        left = [j for j in range(x.shape[1]) if j not in selected]
        hits = search.hits(left)
        selected.append(left[max(range(len(left)), key=lambda c: (int(hits[c]), -c))])
    rows = [(s, selected[s - 1], _si(x[:, selected[:s]], y)) for s in range(1, wanted + 1)]
    return pd.DataFrame(rows, columns=["step", "feature", "si"])


def best_subset(selection: pd.DataFrame) -> list[int]:
    """The selected features up to the step with the highest SI; of equal steps the first.

    Args:
        selection: what `forward_selection` returns.

    >>> best_subset(pd.DataFrame({"step": [1, 2, 3], "feature": [7, 4, 5], "si": [0.5, 0.9, 0.9]}))
    [7, 4]
    """
    end = int(selection["si"].to_numpy().argmax())
    return [int(feature) for feature in selection["feature"].iloc[: end + 1]]


def _nearest_by_sorting(columns: Tensor) -> Tensor:
    """Nearest neighbor of each sample in each column alone: float64 ``(B, N)`` to int64.

    In a sorted column equal values form groups, in which the lowest index stands first. The nearest
    sample is another of the own group, or the first of the group to the left or to the right.
    """
    columns = _scaled(columns)
    n = columns.shape[1]
    value, index = columns.sort(dim=1, stable=True)
    place = torch.arange(n, device=columns.device).expand_as(index)
    start = torch.searchsorted(value, value)  # of the group of each place
    stop = torch.searchsorted(value, value, right=True)

    def at(table: Tensor, places: Tensor) -> Tensor:
        return table.gather(1, places.clamp(0, n - 1))

    def squared(places: Tensor) -> Tensor:
        outside = (places < 0) | (places >= n)
        return (at(value, places) - value).square_().masked_fill_(outside, torch.inf)

    twin = torch.where(place == start, start + 1, start)
    twin = torch.where(stop - start > 1, twin, -1)
    left = torch.where(start > 0, at(start, start - 1), -1)
    candidates = [twin, left, stop]
    distances = torch.stack([squared(places) for places in candidates])
    samples = torch.stack([at(index, places) for places in candidates])
    least = distances.amin(dim=0)
    lowest = samples.masked_fill_(distances > least, n).amin(dim=0)
    nearest = torch.empty_like(index).scatter_(1, index, lowest)
    # rounding can make further groups as near: these few samples look at all others
    beyond_right = torch.where(stop < n, at(stop, stop), n)
    unsure = (squared(left - 1) == least) | (squared(beyond_right) == least)
    for row, position in unsure.nonzero().tolist():
        sample = int(index[row, position])
        distance = (columns[row] - columns[row, sample]).square_()
        distance[sample] = torch.inf
        nearest[row, sample] = (distance == distance.min()).nonzero()[0, 0]
    return nearest


@dataclass
class _Search:
    """Hits of the nearest neighbors over the selected features and one more.

    For each sample the list holds the nearest others when it was made, in the order of their index,
    with their squared distances now; any sample outside is at least as far as ``reach``.
    """

    columns: Tensor  # (D, N) float64
    labels: Tensor
    selected: list[int] = field(default_factory=list)
    ids: Tensor = field(init=False)  # (N, K)
    squared: Tensor = field(init=False)  # (N, K)
    reach: Tensor = field(init=False)  # (N,)
    listed: int = 0  # features selected when the lists were made; 0: there are none yet

    def add(self, feature: int) -> None:
        self.selected.append(feature)
        if self.listed:
            column = self.columns[feature]
            self.squared += (column[:, None] - column[self.ids]).square_()

    def hits(self, candidates: list[int]) -> Tensor:
        """Samples whose nearest neighbor has their label, counted for each candidate: ``(C,)``."""
        if not self.listed:
            self._make_lists()
        same, unsure = self._by_list(candidates)
        if self.listed < len(self.selected) and unsure.double().mean() > _TOO_MANY:
            self._make_lists()
            same, unsure = self._by_list(candidates)
        for rows, squared in self._blocks(unsure.nonzero()[:, 0]):
            for c, candidate in enumerate(candidates):
                column = self.columns[candidate]
                total = (column[rows, None] - column).square_().add_(squared)
                nearest = _first_least(total)[1]
                same[c, rows] = self.labels[nearest] == self.labels[rows]
        return same.sum(dim=1)

    def _by_list(self, candidates: list[int]) -> tuple[Tensor, Tensor]:
        """Hits by the lists alone, bool ``(C, N)``, and samples whose hits are not proven."""
        n = len(self.labels)
        same = torch.empty(len(candidates), n, dtype=torch.bool, device=self.labels.device)
        unsure = torch.zeros_like(self.labels, dtype=torch.bool)
        same_label = self.labels[self.ids] == self.labels[:, None]
        for c, candidate in enumerate(candidates):
            column = self.columns[candidate]
            squared = (column[:, None] - column[self.ids]).square_().add_(self.squared)
            least, first = _first_least(squared)
            same[c] = same_label.gather(1, first[:, None])[:, 0]
            unsure |= least >= self.reach  # at equality one outside may have a lower index
        return same, unsure

    def _make_lists(self) -> None:
        n = len(self.labels)
        k = min(_LIST, n - 1)
        self.ids = torch.empty(n, k, dtype=torch.int64, device=self.labels.device)
        self.squared = torch.empty(n, k, dtype=torch.float64, device=self.labels.device)
        for rows, squared in self._blocks(torch.arange(n, device=self.labels.device)):
            ids = squared.topk(k, largest=False, sorted=False).indices.sort(dim=1).values
            self.ids[rows], self.squared[rows] = ids, squared.gather(1, ids)
        # with all others in the list there is none outside
        self.reach = (
            self.squared.amax(dim=1) if k < n - 1 else self.squared.new_full((n,), torch.inf)
        )
        self.listed = len(self.selected)

    def _blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of rows with their squared distances to all samples over the selected features."""
        n = len(self.labels)
        for block in rows.split(max(1, _BLOCK // n)):
            squared = self.columns.new_zeros(len(block), n)
            for feature in self.selected:
                column = self.columns[feature]
                squared += (column[block, None] - column).square_()
            squared[torch.arange(len(block)), block] = torch.inf
            yield block, squared


def _first_least(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least value of each row, and the first column that holds it (`argmin` may take another)."""
    least = values.amin(dim=1, keepdim=True)
    place = torch.arange(values.shape[1], device=values.device)
    first = torch.where(values == least, place, values.shape[1]).amin(dim=1)
    return least[:, 0], first


def _si(features: Tensor, labels: Tensor) -> float:
    nearest = kneighbors(features, 1).indices[:, 0]
    return float((labels[nearest] == labels).double().mean())


def _scaled(columns: Tensor, together: bool = False) -> Tensor:
    """Columns times a power of two, exactly, where squares would leave the range of float64.

    Each column ``(N,)`` of ``(D, N)`` has its own power, or, ``together``, all have the same.
    """
    spread = columns.amax(dim=1) - columns.amin(dim=1)
    if together:
        spread = spread.max()
    if not bool(spread.isfinite().all()):
        raise ValueError("features span more than float64 can hold; scale them down")
    exponent = torch.frexp(spread).exponent.clamp(-1000, 1000)
    exponent = torch.where(exponent.abs() > 300, exponent, 0)
    if not bool(exponent.any()):
        return columns
    return columns * torch.exp2(-exponent.double()).reshape(-1, 1)


def _checked(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
    x, y = as_matrix(features, "features"), as_labels(labels, "labels").codes
    check_same_length(x, y, "features", "labels")
    check_finite(x, "features")
    if len(x) < 2:
        raise ValueError("features has 1 sample: a nearest neighbor needs at least 2")
    return x, y.to(x.device)
