"""How an index grows with the number of samples: exact values on random subsamples."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from siutils.neighbors import kneighbors
from siutils.separation import indices
from siutils.separation.uncertainty import quantile


def subsample_curve(
    features: Tensor,
    labels: Tensor,
    n_list: Sequence[int],
    repeats: int = 10,
    max_order: int = 2,
    seed: int = 0,
    whole: Tensor | None = None,
) -> pd.DataFrame:
    """Neighbor indices of random subsamples, without replacement, at each of several sizes.

    Subsamples are plain, not stratified: class counts vary as among samples drawn at random, which
    is what the intervals of `uncertainty` assume, too. Drawing with replacement would make copies,
    each the nearest neighbor of its original. Features stay scaled as they are in the whole data.

    Args:
        features: real ``(N, D)``.
        labels: integers ``(N,)``, CPU.
        n_list: sizes, each from ``max_order`` + 1 to N.
        repeats: subsamples per size, from 2; at n = N there is only one.
        max_order: highest order of high-order, soft-order and anti SI, from 1.
        seed: of the choices; the smaller subsamples are parts of the larger ones.
        whole: hits of all samples, bool ``(N, k)``, k ≥ ``max_order``, if they are known already.

    Returns:
        DataFrame, a row per size, index and order: ``index, order, n, value`` (mean over the
        subsamples), ``std`` (between them), ``low, high`` (value ∓ 1.96 std: where the index of
        another such subsample of this data lies, 19 times of 20; it shrinks to a point at n = N)
        and ``repeats``.

    Raises:
        ValueError: a size or ``repeats`` out of range.

    >>> x, y = torch.tensor([[0.0], [1.0], [5.0], [6.5]]), torch.tensor([0, 0, 1, 0])
    >>> subsample_curve(x, y, [4], max_order=1)[["index", "n", "value", "std"]].values.tolist()[0]
    ['si', 4, 0.5, 0.0]
    """
    total = len(labels)
    if max_order < 1:
        raise ValueError(f"max_order must be 1 or more; got {max_order}")
    if repeats < 2:
        raise ValueError(f"repeats must be 2 or more, to show a spread; got {repeats}")
    for n in n_list:
        if not max_order < n <= total:
            raise ValueError(f"n_list must lie in {max_order + 1} … {total}; got {n}")
    names = [("si", 1)]
    names += [(i, r) for i in indices.INDICES[1:4] for r in range(1, max_order + 1)]
    generator = torch.Generator().manual_seed(seed)
    choices = [torch.randperm(total, generator=generator) for _ in range(repeats)]
    rows = []
    for n in n_list:
        if n == total and whole is not None:
            values = [_values(whole, names)]
        else:
            picks = [c[:n].sort().values for c in choices[: 1 if n == total else repeats]]
            values = [_values(_hits(features, labels, p, max_order), names) for p in picks]
        table = torch.tensor(values, dtype=torch.float64)
        means = table.mean(dim=0)
        stds = table.std(dim=0) if len(table) > 1 else torch.zeros_like(means)
        for (name, order), mean, std in zip(names, means.tolist(), stds.tolist(), strict=True):
            low, high = mean - quantile(0.95) * std, mean + quantile(0.95) * std
            rows.append((name, order, n, mean, std, max(0.0, low), min(1.0, high), len(table)))
    columns = ["index", "order", "n", "value", "std", "low", "high", "repeats"]
    return pd.DataFrame(rows, columns=columns)


def _hits(features: Tensor, labels: Tensor, rows: Tensor, depth: int) -> Tensor:
    neighbors = kneighbors(features[rows.to(features.device)], depth).indices.cpu()
    own = labels[rows]
    return indices.neighbor_hits(own, own[neighbors])


def _values(hits: Tensor, names: list[tuple[str, int]]) -> list[float]:
    per_sample = (getattr(indices, "high_order_si" if i == "si" else i)(hits, r) for i, r in names)
    return [float(v.mean()) for v in per_sample]
