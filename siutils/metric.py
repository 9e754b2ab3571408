"""The Separation Index as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from siutils.separation import (
    SeparationIndex,
    check_same_length,
    feature_matrix,
    integer_labels,
)


class SeparationIndexMetric(Metric):
    """The five indices as a torchmetrics metric: features and labels in, a dict out.

    Args:
        order: order of high-order, soft-order and anti SI.
        normalize: as in :class:`SeparationIndex`.
        kwargs: passed to ``torchmetrics.Metric``.

    >>> import torch
    >>> metric = SeparationIndexMetric(order=1)
    >>> metric.update(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]))
    >>> metric.update(torch.tensor([[9.0]]), torch.tensor([1]))
    >>> round(metric.compute()["si"], 3)
    0.667
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    features: list[Tensor]
    labels: list[Tensor]

    def __init__(self, order: int = 2, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order, self.normalize = order, normalize
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: real features ``(B, D)`` and integer labels ``(B,)``."""
        features, labels = feature_matrix(features, "features"), integer_labels(labels, "labels")
        check_same_length(features, labels, "features", "labels")
        self.features.append(features.detach())
        self.labels.append(labels)

    def compute(self) -> dict[str, float]:
        """The five indices over everything added since the last reset."""
        if len(self.features) == 0:
            raise ValueError("features: nothing was added; call update() before compute()")
        features, labels = dim_zero_cat(self.features), dim_zero_cat(self.labels)
        table = SeparationIndex(features, labels, self.normalize, features.device).report(
            self.order
        )
        wanted = table[table["order"].isin([0, self.order]) | (table["index"] == "si")]
        return {
            str(name): float(v) for name, v in zip(wanted["index"], wanted["value"], strict=True)
        }
