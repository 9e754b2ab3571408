"""Separation of one labeled set among the samples of another, such as test among training data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from siutils.neighbors import kneighbors
from siutils.separation.family import IndexFamily


class CrossSeparation(IndexFamily):
    """Every index of test samples among the samples of a reference set.

    Made by `siutils.SeparationIndex.cross`; neighbors are searched once and as deep as
    needed. A test class that the reference lacks has no hit and no mean: its samples count as not
    separated, as ``undefined`` in the report, and lower ``attainable``. Chance permutes the
    reference labels. Given the reference, test samples are independent: the design effect of
    intervals is 1.

    Args:
        features: the reference set, real ``(N, D)``.
        labels: int64 ``(N,)``, CPU.
        test_features: real ``(M, D)``, on the same device and scale.
        test_labels: int64 ``(M,)``, CPU, in the same coding.
        normalize: for the report: whether both were z-scored by the reference.

    Attributes:
        classes: int64, the test labels in ascending order; ``n`` is M, ``n_reference`` N.
        missing_classes: int64, test classes that the reference lacks.
        unused_classes: int64, reference classes that the test set lacks.

    >>> from siutils import SeparationIndex
    >>> s = SeparationIndex(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> c = s.cross(torch.tensor([[0.4], [6.0], [7.0]]), torch.tensor([0, 1, 2]))
    >>> round(c.si(), 3), c.missing_classes.tolist()
    (0.667, [2])
    >>> c.report(1).loc[0, ["value", "undefined"]].tolist()
    [0.6666666666666666, 1.0]
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        test_features: Tensor,
        test_labels: Tensor,
        normalize: bool = False,
        memory: float = math.inf,
    ) -> None:
        self._memory = memory
        self._features, self._queries, self.normalize = features, test_features, normalize
        self.classes, self._codes = test_labels.unique(return_inverse=True)
        self._labels, self._candidate_labels = self.classes[self._codes], labels
        self.n, self.n_features = test_features.shape
        self.n_classes, self.n_reference = len(self.classes), len(features)
        self._candidates = len(features)
        reference, counts = labels.unique(return_counts=True)
        sizes = dict(zip(reference.tolist(), counts.tolist(), strict=True))
        own = [sizes.pop(c, 0) for c in self.classes.tolist()]
        self._reference_counts = own + list(sizes.values())
        self.missing_classes = self.classes[~torch.isin(self.classes, reference)]
        self.unused_classes = reference[~torch.isin(reference, self.classes)]

    def _search(self, k: int, rows: Tensor | None = None) -> Tensor:
        queries = self._queries if rows is None else self._queries[rows.to(self._queries.device)]
        return kneighbors(self._features, k, queries=queries, memory=self._memory).indices.cpu()

    def _design_effect(self, values: Tensor, index: str, order: int, seed: int) -> float:
        return 1.0

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {
            "n_reference": self.n_reference,
            "missing_classes": len(self.missing_classes),
            "unused_classes": len(self.unused_classes),
        }
