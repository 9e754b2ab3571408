"""The Separation Index as a torchmetrics metric."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from siutils.core import as_integers, as_matrix, check_finite, check_same_length
from siutils.separation.indices import INDICES
from siutils.separation.separation_index import SeparationIndex

_DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


class SeparationIndexMetric(Metric):
    """The five indices as a torchmetrics metric: features and labels in, a dict out.

    Across processes it judges all samples together, in the order of the ranks; a rank may have
    none. Every rank holds all features while it computes.

    Args:
        order: order of high-order, soft-order and anti SI.
        normalize: as in `SeparationIndex`.
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
        super().__init__(**{"dist_sync_fn": _gather, **kwargs})
        self.order, self.normalize = order, normalize
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: real features ``(B, D)`` and integer labels ``(B,)``."""
        features, labels = as_matrix(features, "features"), as_integers(labels, "labels")
        check_same_length(features, labels, "features", "labels")
        check_finite(features, "features")
        self.features.append(features)
        self.labels.append(labels)

    def compute(self) -> dict[str, float]:
        """The five indices over everything added since the last reset, on all ranks.

        Raises:
            ValueError: nothing was added, too few samples for ``order``, or ranks whose features
                differ in D.
        """
        if len(self.features) == 0:
            raise ValueError("features: nothing was added; call update() before compute()")
        features, labels = dim_zero_cat(self.features), dim_zero_cat(self.labels)
        index = SeparationIndex(features, labels, self.normalize, features.device)
        record = index.record(self.order, center=True)
        return {name: float(record.value(name, self.order)) for name in INDICES}


def _gather(values: Tensor, group: Any = None) -> list[Tensor]:
    """``gather_all_tensors`` for ranks without samples too, and for different dtypes.

    torchmetrics sends an empty vector of floats for such a rank, which the other ranks' matrices
    and integers do not fit: the process would be aborted.
    """
    width = values.shape[1] if values.ndim == 2 else 0
    mine = [len(values), width, _DTYPES.index(values.dtype)]
    facts = gather_all_tensors(torch.tensor(mine, device=values.device), group)
    filled = [rank.tolist() for rank in facts if rank[0] > 0]
    if not filled:
        return [values] * len(facts)
    widths = sorted({rank[1] for rank in filled})
    if len(widths) > 1:
        raise ValueError(f"features must have the same D on all ranks; got {widths}")
    dtype = reduce(torch.promote_types, (_DTYPES[rank[2]] for rank in filled))
    if len(values) == 0:
        values = values.reshape((0, widths[0]) if widths[0] else (0,))
    return gather_all_tensors(values.to(dtype), group)
