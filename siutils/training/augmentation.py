"""Augmentation as tensor operations on whole batches, on the images' own device.

All draws come from a CPU generator, so that they are the same on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from siutils.training.recipes import Recipe


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shifts, mirrors, rotates and cuts each image by its own random draw, in one gather.

    The order is the study's: crop from the zero-padded image, flip, rotate about the center with
    the nearest pixel; what comes from outside is black. Cutout (DeVries and Taylor 2017,
    arXiv:1708.04552) comes last: a black square whose center lies anywhere in the image.

    Args:
        images: uint8 or float (N, C, H, W), on any device.
        recipe: its `crop_padding`, `flip`, `rotation` and `cutout`.
        generator: a CPU generator; four numbers are drawn per image, and two more for cutout.

    Returns:
        A new tensor of the same shape, type and device.

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
    inside = inside & _inside(row, column, height, width)
    if recipe.cutout:
        size = torch.tensor([height, width])
        corner = (
            torch.rand(len(images), 2, generator=generator) * size
        ).long() - recipe.cutout // 2
        top, left = (corner.to(images.device)[:, i, None, None] for i in (0, 1))
        y, x = torch.arange(height, device=images.device)[:, None], torch.arange(width).to(y)
        inside = inside & ~_inside(y - top, x - left, recipe.cutout, recipe.cutout)
    return _picked(images, row, column, inside)


def _inside(row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


def _picked(images: Tensor, row: Tensor, column: Tensor, inside: Tensor) -> Tensor:
    """Takes the pixels at integer (N, H, W) positions; black where not `inside`."""
    source = (row * images.shape[3] + column).where(inside, 0).flatten(1)[:, None]
    picked = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1))
    return picked.reshape(images.shape) * inside[:, None]
