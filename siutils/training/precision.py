"""The dtype of a training's products, and its forward pass."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siutils.core import fingerprint, write_file
from siutils.data import ImageSet
from siutils.training.recipes import Recipe


def forward(
    model: nn.Module, inputs: Tensor, target: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Computes logits and loss of a batch, with products in the recipe's dtype.

    >>> recipe, model = Recipe("plain", epochs=1), nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    >>> logits, loss = forward(model, torch.zeros(4, 3, 1, 1), torch.zeros(4).long(), recipe)
    >>> logits.shape, loss.ndim
    (torch.Size([4, 2]), 0)
    """
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    low = recipe.dtype == "bfloat16"
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=low):
        logits = model(inputs)
    smoothing = recipe.label_smoothing
    return logits, F.cross_entropy(logits.float(), target, label_smoothing=smoothing)


def training_dtype(
    model: nn.Module, train: ImageSet, recipe: Recipe, device: torch.device, cache: Path | None
) -> Literal["float32", "bfloat16"]:
    """Returns the recipe's dtype, or the faster one; with a cache, measured once and kept there.

    >>> training_dtype(nn.ReLU(), None, Recipe("plain", epochs=1), torch.device("cpu"), None)
    'float32'
    """
    if recipe.dtype != "auto":
        return recipe.dtype
    if device.type != "cpu":
        return "bfloat16" if device.type == "cuda" else "float32"
    if not torch.cpu._is_avx512_bf16_supported():
        return "float32"
    images = train.images[: recipe.batch_size]
    file = None
    if cache is not None:
        key = fingerprint(repr(model), repr(model.transform), tuple(images.shape))
        file = cache / "dtypes" / f"{key}.txt"
        if file.exists():
            return "bfloat16" if file.read_text() == "bfloat16" else "float32"
    seconds = {
        dtype: seconds_of_a_step(model, train, replace(recipe, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    }
    faster: Any = min(seconds, key=lambda dtype: seconds[dtype])
    if file is not None:
        write_file(file, faster)
    return faster


def seconds_of_a_step(model: nn.Module, train: ImageSet, recipe: Recipe) -> float:
    """Measures a copy of the model: least time of three steps; the first is a warm-up.

    >>> images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    >>> data = ImageSet("black", images, torch.zeros(2).long(), ("black",), "")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))
    >>> model.transform = torch.Tensor.float
    >>> seconds_of_a_step(model, data, Recipe("plain", epochs=1)) > 0
    True
    """
    device = next(model.parameters()).device
    model, times = copy.deepcopy(model).train(), []
    transform: Any = model.transform
    inputs = transform(train.images[: recipe.batch_size].to(device))
    target = train.labels[: recipe.batch_size].to(device)
    for _ in range(3):
        start = time.perf_counter()
        forward(model, inputs, target, recipe)[1].backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
