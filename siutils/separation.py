"""The Separation Index of a labeled representation.

Neighbors are searched once per object, as deep as the deepest order asked for; every index and
every level (data set, class, sample) is then a cheap function of their labels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils import indices
from siutils.devices import resolve_device
from siutils.neighbors import kneighbors

ArrayLike = Tensor | np.ndarray
STD_EPSILON = 1e-10  # of the reference study: keeps constant features finite


class SeparationIndex:
    """How well features separate classes, judged by the nearest neighbors of each sample.

    Distances are Euclidean; a sample is never its own neighbor; equal distances are ordered by the
    lower index; the result equals a float64 brute force on every device. A class with a single
    sample has no same-label neighbor: its sample counts as not separated.

    Args:
        features: real ``(N, D)``, torch or NumPy, N ≥ 2, finite.
        labels: integers ``(N,)``, any values: gaps and negative numbers are fine.
        normalize: z-score each feature first, in float64: subtract the mean, divide by the sample
            standard deviation (N − 1) plus 1e-10.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or a ``torch.device``.

    Attributes:
        classes: int64 ``(C,)``, the label values in ascending order.
        n, n_features, n_classes: N, D, C.

    Raises:
        TypeError: if labels are no integers or features no real numbers.
        ValueError: if shapes do not fit, N < 2, or a feature is NaN or infinite.

    >>> s = SeparationIndex(torch.tensor([[0.0], [1.0], [5.0], [6.5]]), torch.tensor([0, 0, 1, 0]))
    >>> s.si(), s.si(per="class").tolist(), s.si(per="sample").tolist()
    (0.5, [0.6666666666666666, 0.0], [1.0, 1.0, 0.0, 0.0])
    """

    def __init__(
        self,
        features: ArrayLike,
        labels: ArrayLike,
        normalize: bool = False,
        device: str | torch.device = "auto",
    ) -> None:
        self.device = resolve_device(device)
        self.normalize = normalize
        features, labels = feature_matrix(features, "features"), integer_labels(labels, "labels")
        check_same_length(features, labels, "features", "labels")
        if len(features) < 2:
            raise ValueError("features has 1 sample: a nearest neighbor needs at least 2")
        self.classes, codes = labels.cpu().unique(return_inverse=True)
        self._codes = codes
        features = features.to(self.device)
        self._scale = _moments(features) if normalize else None
        self._features = self._scaled(features)
        self._neighbor_codes: Tensor | None = None
        self.n, self.n_features = self._features.shape
        self.n_classes = len(self.classes)

    def si(self, per: str = "dataset") -> float | Tensor:
        """Separation Index: the fraction of samples whose nearest neighbor shares their label.

        Args:
            per: ``"dataset"`` for a float; ``"class"`` for a tensor ``(C,)`` of class means in
                ascending label order; ``"sample"`` for ``(N,)`` of zeros and ones. Float64, CPU.

        >>> SeparationIndex(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])).si()
        0.6666666666666666
        """
        return self.high_order_si(1, per)

    def high_order_si(self, order: int, per: str = "dataset") -> float | Tensor:
        """The fraction of samples whose ``order`` nearest neighbors all share their label.

        Args:
            order: neighbors looked at, 1 ≤ order ≤ N − 1.
            per: as in :meth:`si`.

        Raises:
            ValueError: if ``order`` is out of range or ``per`` unknown.
        """
        return self._value("high_order_si", order, per)

    def soft_order_si(self, order: int, per: str = "dataset") -> float | Tensor:
        """The mean fraction of same-label samples among the ``order`` nearest neighbors.

        Arguments and errors as in :meth:`high_order_si`.
        """
        return self._value("soft_order_si", order, per)

    def anti_si(self, order: int, per: str = "dataset") -> float | Tensor:
        """The fraction of samples none of whose ``order`` nearest neighbors shares their label.

        Arguments and errors as in :meth:`high_order_si`.
        """
        return self._value("anti_si", order, per)

    def center_si(self, per: str = "dataset") -> float | Tensor:
        """The fraction of samples that lie nearest to the mean of their own class.

        Equal distances go to the lower label. Argument ``per`` as in :meth:`si`.
        """
        self._check_level(per)
        means = indices.class_means(self._features, self._codes.to(self.device), self.n_classes)
        nearest = kneighbors(means, 1, queries=self._features).indices[:, 0].cpu()
        return indices.aggregate(nearest == self._codes, self._codes, self.n_classes, per)

    def cross_si(
        self, test_features: ArrayLike, test_labels: ArrayLike, per: str = "dataset"
    ) -> float | Tensor:
        """The fraction of test samples whose nearest of these samples shares their label.

        Test features are scaled with the mean and standard deviation of these features. A test
        class that is missing here has no hit.

        Args:
            test_features: real ``(M, D)``.
            test_labels: integers ``(M,)``, in the same coding as ``labels``.
            per: as in :meth:`si`; classes are those of ``test_labels``, ascending.

        Raises:
            TypeError, ValueError: as the constructor, and if D differs.
        """
        self._check_level(per)
        features = feature_matrix(test_features, "test_features")
        labels = integer_labels(test_labels, "test_labels").cpu()
        check_same_length(features, labels, "test_features", "test_labels")
        if features.shape[1] != self.n_features:
            raise ValueError(
                f"test_features must have D = {self.n_features} as features has; "
                f"got {features.shape[1]}"
            )
        queries = self._scaled(features.to(self.device))
        nearest = kneighbors(self._features, 1, queries=queries).indices[:, 0].cpu()
        hits = self.classes[self._codes[nearest]] == labels
        classes, codes = labels.unique(return_inverse=True)
        return indices.aggregate(hits, codes, len(classes), per)

    def report(self, max_order: int = 2) -> pd.DataFrame:
        """All indices as a tidy table, one row per index and order.

        Args:
            max_order: highest order of high-order, soft-order and anti SI, from 1.

        Returns:
            DataFrame with the columns ``index, order, value, chance, n, n_features, n_classes,
            normalize``; ``chance`` is the exact expectation under permuted labels (not available
            for center SI), ``order`` is 1 for SI and 0 for center SI.
        """
        self._hits(max_order)
        rows = [("si", 1, self.si())]
        for name in ("high_order_si", "soft_order_si", "anti_si"):
            rows += [(name, r, self._value(name, r, "dataset")) for r in range(1, max_order + 1)]
        rows.append(("center_si", 0, self.center_si()))
        table = pd.DataFrame(rows, columns=["index", "order", "value"])
        counts = torch.bincount(self._codes).tolist()
        table["chance"] = [indices.chance(name, counts, r) for name, r, _ in rows]
        return table.assign(
            n=self.n, n_features=self.n_features, n_classes=self.n_classes, normalize=self.normalize
        )

    def _value(self, name: str, order: int, per: str) -> float | Tensor:
        self._check_level(per)
        values = getattr(indices, name)(self._hits(order), order)
        return indices.aggregate(values, self._codes, self.n_classes, per)

    def _hits(self, order: int) -> Tensor:
        if isinstance(order, bool) or not isinstance(order, int | np.integer):
            raise TypeError(f"order must be an integer; got {type(order).__name__}")
        if not 1 <= order < self.n:
            raise ValueError(f"order must lie in 1 … {self.n - 1} (the other samples); got {order}")
        if self._neighbor_codes is None or self._neighbor_codes.shape[1] < order:
            found = kneighbors(self._features, int(order)).indices.cpu()
            self._neighbor_codes = self._codes[found]
        return indices.neighbor_hits(self._codes, self._neighbor_codes)

    def _scaled(self, features: Tensor) -> Tensor:
        if self._scale is None:
            return features
        mean, std = self._scale
        return features.double().sub_(mean).div_(std + STD_EPSILON)

    @staticmethod
    def _check_level(per: str) -> None:
        if per not in indices.LEVELS:
            raise ValueError(f"per must be one of {', '.join(indices.LEVELS)}; got {per!r}")


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation per feature, float64, a slice of features at a time."""
    n = len(features)
    means, stds = [], []
    for part in features.split(max(1, 2**24 // n), dim=1):
        means.append(indices.column_sum(part) / n)
        squares = (part.double() - means[-1]).square_()
        stds.append((indices.column_sum(squares) / (n - 1)).sqrt_())
    return torch.cat(means), torch.cat(stds)


def feature_matrix(features: ArrayLike, name: str) -> Tensor:
    try:
        matrix = torch.as_tensor(features)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers: {error}") from None
    if matrix.is_complex() or matrix.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers; got {matrix.dtype}")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must have shape (N, D), both > 0; got {tuple(matrix.shape)}")
    if matrix.is_floating_point():
        for start in range(0, len(matrix), 4096):
            bad = ~matrix[start : start + 4096].isfinite().all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0, 0])
                raise ValueError(f"{name} must be finite; row {row} has NaN or infinity")
    return matrix


def integer_labels(labels: ArrayLike, name: str) -> Tensor:
    try:
        vector = torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of integers: {error}") from None
    if vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool:
        raise TypeError(
            f"{name} must be integers; got {vector.dtype}: convert class names to codes"
        )
    if vector.ndim != 1:
        raise ValueError(f"{name} must have shape (N,); got {tuple(vector.shape)}")
    return vector.long()


def check_same_length(features: Tensor, labels: Tensor, first: str, second: str) -> None:
    if len(features) != len(labels):
        raise ValueError(
            f"{first} and {second} must have the same length; got {len(features)} and {len(labels)}"
        )
