"""The Separation Index as a torchmetrics metric."""

from __future__ import annotations

import warnings
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from siutils.core import as_labels, as_matrix, check_finite, check_same_length
from siutils.separation.indices import INDICES, check_index
from siutils.separation.separation_index import SeparationIndex

_MANY_COPIES = 0.25  # share of samples with an exact copy
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
        index: name of the only index wanted: the metric is a tensor then, as ``MetricTracker`` and
            ``BootStrapper`` need it. A bootstrap draws copies, which are nearest to each other and
            raise SI; so many copies bring a warning. `SeparationIndex.interval` has none.
        kwargs: passed to ``torchmetrics.Metric``.

    >>> import torch
    >>> metric = SeparationIndexMetric(order=1)
    >>> metric.update(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]))
    >>> metric.update(torch.tensor([[9.0]]), torch.tensor([1]))
    >>> round(metric.compute()["si"], 3)
    0.667
    """

    is_differentiable = False
    higher_is_better = True  # but for anti SI
    full_state_update = False
    features: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self, order: int = 2, normalize: bool = False, index: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**{"dist_sync_fn": _gather, **kwargs})
        self.order, self.normalize, self.index = order, normalize, index
        if index is not None:
            check_index(index)
            self.__dict__["higher_is_better"] = index != "anti_si"  # Metric's __setattr__ refuses
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, features: Any, labels: Any) -> None:
        """Add a batch: real features ``(B, D)`` and labels ``(B,)``, integers or one-hot.

        A single sample may come without its first dimension.
        """
        if isinstance(features, Tensor) and features.ndim == 1 and np.ndim(labels) == 0:
            features, labels = features[None], [labels]
        features, given = as_matrix(features, "features"), as_labels(labels, "labels")
        check_same_length(features, given, "features", "labels")
        check_finite(features, "features")
        values = given.values(given.codes)
        if values.dtype.kind not in "ib":
            raise TypeError(
                f"labels must be integers in a metric, as batches and ranks know nothing of each "
                f"other's names; got {values.dtype}"
            )
        self.features.append(features)
        self.labels.append(torch.from_numpy(values).to(features.device, torch.int64))

    def forward(self, features: Any, labels: Any) -> Any:
        """Add a batch and return its own indices; {} where it is too small for ``order``."""
        if len(features) > self.order and features.ndim > 1:
            return super().forward(features, labels)
        self.update(features, labels)
        return {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the indices, or those of several calls, as every metric of torchmetrics does."""
        several = val if isinstance(val, list | tuple) else [self.compute() if val is None else val]
        tensors = [_as_tensors(value) for value in several]
        return self._plot(tensors if isinstance(val, list | tuple) else tensors[0], ax)

    def compute(self) -> dict[str, float] | Tensor:
        """The five indices over everything added since the last reset, on all ranks.

        Raises:
            ValueError: nothing was added, too few samples for ``order``, or ranks whose features
                differ in D.
        """
        if len(self.features) == 0:
            raise ValueError("features: nothing was added; call update() before compute()")
        features, labels = dim_zero_cat(self.features), dim_zero_cat(self.labels)
        index = SeparationIndex(features, labels, self.normalize, features.device, copy=False)
        record = index.record(self.order, center=True)
        copies = float((record.neighbors.distances[:, 0] == 0).double().mean())
        if copies > _MANY_COPIES:
            warnings.warn(
                f"{copies:.0%} of the samples have an exact copy, as a bootstrap draws them, which "
                "raises SI; for intervals use SeparationIndex(...).interval()",
                stacklevel=2,
            )
        if self.index is not None:
            return torch.as_tensor(record.value(self.index, self.order), device=features.device)
        return {name: float(record.value(name, self.order)) for name in INDICES}


def _as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: torch.as_tensor(each) for name, each in value.items()}
    return torch.as_tensor(value)


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
