"""The Smoothness Index: what the Separation Index is to classes, for a regression target.

``smi(i) = (max_j d(i, j) − d(i, nn(i))) / (max_j d(i, j) − min_j d(i, j))`` with d the distance of
the targets, j over all other samples, and nn(i) the nearest neighbor of i in feature space: 1 where
the nearest neighbor has the nearest target, 0 where it has the farthest.

Source: ``smi_linear`` of A. Kalhor's class ``Kalhor_SmoothnessIndex``, and A. Kalhor et al.,
"Evaluation of Dataflow through Layers of Deep Neural Networks in Classification and Regression
Problems" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from siutils.devices import resolve_device
from siutils.neighbors import kneighbors
from siutils.separation import ArrayLike, check_same_length, feature_matrix, moments, rescale


def smoothness_index(
    features: ArrayLike,
    targets: ArrayLike,
    normalize: bool = False,
    per: str = "dataset",
    device: str | torch.device = "auto",
) -> float | Tensor:
    """How smoothly a real target varies over the features, from 0 to 1.

    Where all others are equally far in the target (two samples, equal targets), no neighbor could
    be nearer: the value is 1.

    Args:
        features: real ``(N, D)``, N ≥ 2, finite.
        targets: real ``(N,)``, finite.
        normalize: z-score each feature first, as :class:`siutils.SeparationIndex` does.
        per: ``"dataset"`` for the mean, ``"sample"`` for ``(N,)``, float64 on the CPU.
        device: as for :class:`siutils.SeparationIndex`.

    Raises:
        TypeError, ValueError: wrong shapes or types, N < 2, NaN or infinity, unknown ``per``.

    >>> smoothness_index(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.0, 1.0, 9.0]))
    1.0
    >>> smoothness_index(torch.tensor([[0.0], [3.0], [1.0]]), torch.tensor([0.0, 1.0, 9.0]))
    0.0
    """
    if per not in ("dataset", "sample"):
        raise ValueError(f"per must be dataset or sample; got {per!r}")
    x = feature_matrix(features, "features")
    y = torch.as_tensor(targets)
    if y.ndim != 1:
        raise ValueError(f"targets must have shape (N,); got {tuple(y.shape)}")
    y = feature_matrix(y[:, None], "targets")[:, 0].double().cpu()
    check_same_length(x, y, "features", "targets")
    if len(x) < 2:
        raise ValueError("features has 1 sample: a nearest neighbor needs at least 2")
    x = x.to(resolve_device(device))
    if normalize:
        x = rescale(x, *moments(x))
    nearest = kneighbors(x, 1).indices[:, 0].cpu()
    farthest = torch.maximum(y - y.min(), y.max() - y)
    closest = _closest(y)
    room = farthest - closest
    values = torch.where(room > 0, (farthest - (y - y[nearest]).abs()) / room, 1.0)
    return float(values.mean()) if per == "dataset" else values


def _closest(y: Tensor) -> Tensor:
    """Distance of each target to the nearest other one."""
    ordered, order = y.sort()
    gaps = ordered.diff()
    inf = gaps.new_full((1,), torch.inf)
    closest = torch.minimum(torch.cat([inf, gaps]), torch.cat([gaps, inf]))
    return torch.empty_like(y).scatter_(0, order, closest)
