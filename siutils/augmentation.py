"""Augmentation as tensor operations on whole batches, on the images' own device.

All draws come from a CPU generator, so that they are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from siutils.recipes import Recipe


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, mirror and rotate each image by its own random draw, in one gather.

    The order is the study's: crop from the zero-padded image, flip, rotate about the center with
    the nearest pixel; what comes from outside is black.

    Args:
        images: uint8 or float (N, C, H, W), on any device.
        recipe: its `crop_padding`, `flip` and `rotation`.
        generator: a CPU generator; four numbers are drawn per image.

    Returns:
        A new tensor of the same shape, type and device.

    Example:
        >>> image = torch.arange(1, 5, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> recipe = Recipe("mirror", epochs=1, crop_padding=0)
        >>> augment(image, recipe, torch.Generator().manual_seed(1)).flatten().tolist()
        [2, 1, 4, 3]
    """
    height, width = images.shape[2:]
    draws = torch.rand(len(images), 4, generator=generator).to(images.device)
    angle = (2 * draws[:, 0, None, None] - 1) * math.radians(recipe.rotation)
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    row = torch.round(y * angle.cos() + x * angle.sin() + (height - 1) / 2).long()
    column = torch.round(x * angle.cos() - y * angle.sin() + (width - 1) / 2).long()
    inside = _inside(row, column, height, width)
    if recipe.flip:
        column = torch.where(draws[:, 1, None, None] < 0.5, width - 1 - column, column)
    shift = (draws[:, 2:] * (2 * recipe.crop_padding + 1)).long() - recipe.crop_padding
    row, column = row + shift[:, 0, None, None], column + shift[:, 1, None, None]
    return _picked(images, row, column, inside & _inside(row, column, height, width))


def cutmix(images: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the batch's previous image into an image (CutMix).

    The area of the rectangle is drawn uniformly from 0…1 of the image, its center uniformly; what
    would stick out is cut off. Each image has its own rectangle. Yun et al. 2019, arXiv:1905.04899.

    Args:
        images: (N, C, H, W), on any device, in random order.
        probability: that an image is mixed.
        generator: a CPU generator; four numbers are drawn per image.

    Returns:
        The mixed images, and the share (N,) of pixels that are the image's own; the others come
        from ``images.roll(1, 0)``, and so does that part of the label.

    Example:
        >>> images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 4, 4)
        >>> mixed, share = cutmix(images, 1.0, torch.Generator().manual_seed(2))
        >>> share.tolist(), mixed.mean((1, 2, 3)).tolist()
        ([0.625, 0.625], [0.375, 0.625])
    """
    height, width = images.shape[2:]
    draws = torch.rand(len(images), 4, 1, 1, generator=generator).to(images.device)
    chosen, area, y, x = draws.unbind(1)
    row = torch.arange(height, device=images.device)[:, None] + 0.5
    column = torch.arange(width, device=images.device) + 0.5
    half = area.sqrt() / 2
    pasted = (row - y * height).abs() < half * height
    pasted = pasted & ((column - x * width).abs() < half * width) & (chosen < probability)
    mixed = torch.where(pasted[:, None], images.roll(1, 0), images)
    return mixed, 1 - pasted.float().mean((1, 2))


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change each image by one random operation of random strength (TrivialAugment, wide space).

    One of the 14 `OPERATIONS` with equal probability, its strength one of 31 levels from none to
    its maximum. Müller & Hutter 2021, arXiv:2103.10158.

    Args:
        images: uint8 (N, 3, H, W) with sides of at least 3, on any device.
        generator: a CPU generator; three numbers are drawn per image.

    Returns:
        A new tensor of the same shape, type and device.

    Example:
        >>> images = torch.full((100, 3, 4, 4), 255, dtype=torch.uint8)
        >>> changed = trivial_augment(images, torch.Generator().manual_seed(0)) < 255
        >>> int(changed.any((1, 2, 3)).sum())  # the others stay white, whatever their color
        57
    """
    draws = torch.rand(len(images), 3, generator=generator)
    kind = (draws[:, 0] * len(OPERATIONS)).long()
    level = (draws[:, 1] * 31).long()[:, None, None, None] / 30
    signed = torch.where(draws[:, 2, None, None, None] < 0.5, -level, level)
    result = images.clone()
    for number, operation in enumerate(OPERATIONS.values()):
        rows = (kind == number).nonzero()[:, 0]
        if len(rows):
            strength = level[rows].to(images.device), signed[rows].to(images.device)
            chosen = rows.to(images.device)
            result[chosen] = operation(images[chosen], *strength)
    return result


def _inside(row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


def _picked(images: Tensor, row: Tensor, column: Tensor, inside: Tensor) -> Tensor:
    """The pixels at integer (N, H, W) positions, black where not `inside`."""
    source = (row * images.shape[3] + column).where(inside, 0).flatten(1)[:, None]
    picked = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1))
    return picked.reshape(images.shape) * inside[:, None]


def _warped(images: Tensor, source: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The nearest pixel at `source(y, x)`, in pixels from the upper left corner of the image."""
    n, _, height, width = images.shape
    y = torch.arange(height, device=images.device)[:, None] + 0.5
    x = torch.arange(width, device=images.device) + 0.5
    row, column = (p.floor().long().expand(n, 1, height, width)[:, 0] for p in source(y, x))
    return _picked(images, row, column, _inside(row, column, height, width))


def _rotated(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate about the center by (N, 1, 1, 1) radians, counterclockwise."""
    cos, sin = angle.cos(), angle.sin()
    up, left = images.shape[2] / 2, images.shape[3] / 2
    return _warped(
        images,
        lambda y, x: (
            (y - up) * cos + (x - left) * sin + up,
            (x - left) * cos - (y - up) * sin + left,
        ),
    )


def _blended(images: Tensor, other: Tensor | float, change: Tensor) -> Tensor:
    """Away from `other` where `change` is positive, toward it where negative."""
    return (images + change * (images - other)).clamp(0, 255).to(images.dtype)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()[:, None]


def _smoothed(images: Tensor) -> Tensor:
    """Mean of the 3×3 pixels around, the own one five times; the border stays."""
    result = images.float()
    inner = result[..., 1:-1, 1:-1]
    inner.copy_(((9 * F.avg_pool2d(result, 3, stride=1) + 4 * inner) / 13).round())
    return result


# Images uint8 (N, 3, H, W), level 0…1 and the same with a random sign, both (N, 1, 1, 1).
OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "identity": lambda images, level, signed: images,
    "shear_x": lambda images, level, signed: _warped(
        images, lambda y, x: (y, x + 0.99 * signed * y)
    ),
    "shear_y": lambda images, level, signed: _warped(
        images, lambda y, x: (y + 0.99 * signed * x, x)
    ),
    "translate_x": lambda images, level, signed: _warped(
        images, lambda y, x: (y, x - (32 * signed).trunc())
    ),
    "translate_y": lambda images, level, signed: _warped(
        images, lambda y, x: (y - (32 * signed).trunc(), x)
    ),
    "rotate": lambda images, level, signed: _rotated(images, math.radians(135) * signed),
    "brightness": lambda images, level, signed: _blended(images, 0, 0.99 * signed),
    "color": lambda images, level, signed: _blended(images, _gray(images), 0.99 * signed),
    "contrast": lambda images, level, signed: _blended(
        images, _gray(images).mean((1, 2, 3), keepdim=True), 0.99 * signed
    ),
    "sharpness": lambda images, level, signed: _blended(images, _smoothed(images), 0.99 * signed),
    "posterize": lambda images, level, signed: images & (256 - 2 ** (6 * level).round()).byte(),
    "solarize": lambda images, level, signed: torch.where(
        images >= 255 * (1 - level), 255 - images, images
    ),
    "autocontrast": lambda images, level, signed: TF.autocontrast(images),
    "equalize": lambda images, level, signed: TF.equalize(images),
}
