"""The Separation Index layer by layer: where in a network the classes come apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from siutils.data import Transform
from siutils.devices import resolve_device
from siutils.features import extract_features, input_transform
from siutils.layer_names import layer_names
from siutils.pooling import Pool, check_pools, pool_name
from siutils.separation import SeparationIndex


def layer_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: str | Sequence[str] = "stages",
    *,
    order: int = 2,
    normalize: bool = True,
    transform: Transform | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    pool: Pool | Sequence[Pool] = None,
) -> pd.DataFrame:
    """All indices of the outputs of layers, from one pass over the images.

    Args:
        model: any network.
        images: uint8 or float ``(N, 3, H, W)``, as in :func:`siutils.extract_features`.
        labels: integers ``(N,)``.
        layers: ``"stages"``, ``"blocks"`` or ``"all"``, see `siutils.layer_names.layer_names`;
            or names as in ``model.named_modules()``, in the order wanted.
        order: highest order of high-order, soft-order and anti SI.
        normalize: z-score the features of each layer.
        transform: what the model expects; default ``model.transform``.
        batch_size: images per forward pass.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        cache: folder that keeps the features; a second call reads them from there.

        pool: None for flattened features, ``"mean"``, the side of a grid, or a list of these side
            by side; see :func:`siutils.pooling.pooled`.

    Returns:
        DataFrame: ``layer``, ``depth`` (0, 1, …) and ``pool`` (``flattened``, ``mean``, ``2×2``)
        before the columns of :meth:`siutils.SeparationIndex.report`.

    Raises:
        ValueError: as :func:`siutils.extract_features` and :class:`siutils.SeparationIndex`.

    >>> model, images = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.tensor([[-9.0], [1.0], [0.0]])
    >>> table = layer_curve(model, images, torch.tensor([0, 1, 1]), ["0", "1"], device="cpu")
    >>> table.loc[table["index"] == "si", ["depth", "layer", "value"]].round(2).to_numpy().tolist()
    [[0, '0', 0.67], [1, '1', 0.0]]
    """
    if isinstance(layers, str):
        given = input_transform(model, images, transform)
        layers = layer_names(model, layers, given(images[:2].to(resolve_device(device))))
    options: dict[str, Any] = {"transform": transform, "batch_size": batch_size, "cache": cache}
    pools = check_pools(pool)
    features = extract_features(model, images, layers, device=device, pool=pools, **options)
    parts = []
    for depth, layer in enumerate(layers):
        for p in pools:
            index = SeparationIndex(features.pop((layer, p)), labels, normalize, device)
            table = index.report(order)
            for position, (name, value) in enumerate(
                {"layer": layer, "depth": depth, "pool": pool_name(p)}.items()
            ):
                table.insert(position, name, value)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)
