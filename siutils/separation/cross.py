"""Separation of one labeled set among the samples of another, such as test among training data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from siutils.core import Labels
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
        labels: of these, N.
        test_features: real ``(M, D)``, on the same device and scale.
        test_labels: of these, M, in the same coding.
        normalize: for the report: whether both were z-scored by the reference.
        constant: for the report: features that are constant in the reference.
        memory: bytes that a search should keep to, see `siutils.kneighbors`.

    Attributes:
        classes: the test classes in ascending order; ``n`` is M, ``n_reference`` N.
        missing_classes: test classes that the reference lacks, NumPy.
        unused_classes: reference classes that the test set lacks, NumPy.

    >>> import torch
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
        labels: Labels,
        test_features: Tensor,
        test_labels: Labels,
        normalize: bool = False,
        constant: int = 0,
        memory: float = math.inf,
    ) -> None:
        super().__init__(features, labels, normalize, memory, test_features, test_labels)
        self.n_reference = len(features)
        self.n_constant = constant
        reference = labels.values(labels.codes.unique())
        self.missing_classes = np.setdiff1d(self.classes, reference)
        self.unused_classes = np.setdiff1d(reference, self.classes)

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {
            "n_reference": self.n_reference,
            "missing_classes": len(self.missing_classes),
            "unused_classes": len(self.unused_classes),
        }
