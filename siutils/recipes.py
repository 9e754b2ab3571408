"""Recipes of training, with what they determine: learning rate of each step and augmentation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; change fields with `dataclasses.replace`.

    Attributes:
        name: shown in tables.
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: "sgd" or "adamw".
        lr: the highest learning rate.
        momentum: of SGD; the first beta of AdamW.
        nesterov: of SGD.
        weight_decay: on all parameters.
        schedule: "multistep" (times `gamma` at each milestone) or "one_cycle" (cosine down to 0).
        milestones: as fractions of the epochs.
        gamma: see `schedule`.
        warmup_epochs: linear warm-up step by step, at most 30 % of the run.
        label_smoothing: of the training loss; the validation loss has none.
        crop_padding: random shift of up to so many pixels in each direction; 0 is off.
        flip: mirror every second image, drawn at random. Never for digits or text.
        rotation: random rotation of up to so many degrees to either side; 0 is off.
        bn_images: before each validation, estimate the statistics of BatchNorm anew from so many
            training images without augmentation; 0 keeps the running averages, which after a few
            dozen steps still remember the weights they started with.
    """

    name: str
    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["multistep", "one_cycle"] = "multistep"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    gamma: float = 0.2
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    rotation: float = 0.0
    bn_images: int = 0

    def __post_init__(self) -> None:
        for field, known in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("multistep", "one_cycle")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {known}, got {getattr(self, field)!r}")
        for field in ("epochs", "batch_size"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field} must be an integer of at least 1, got {value!r}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0, got {self.lr}")
        for field in ("weight_decay", "warmup_epochs", "crop_padding", "rotation", "bn_images"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")


# The study's recipe: milestones at epochs 60, 120, 160 of 200. For EfficientNet it has neither
# warm-up nor rotation. The one-cycle recipes are for a few epochs on a small budget; EfficientNets,
# slow learners from scratch, want AdamW there, and residual blocks that start as the identity.
_STUDY = Recipe("study", epochs=200, rotation=15.0)
_SHORT = Recipe(
    "one_cycle",
    epochs=10,
    batch_size=16,
    lr=0.02,
    nesterov=True,
    schedule="one_cycle",
    warmup_epochs=5.0,
    bn_images=128,
)
RECIPES: dict[str, Recipe] = {
    "study": _STUDY,
    "study_efficientnet": dataclasses.replace(
        _STUDY, name="study_efficientnet", warmup_epochs=0.0, rotation=0.0
    ),
    "one_cycle": _SHORT,
    "one_cycle_adamw": dataclasses.replace(
        _SHORT,
        name="one_cycle_adamw",
        batch_size=32,
        optimizer="adamw",
        lr=0.004,
        weight_decay=0.01,
    ),
}


def get_recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name, with some fields changed.

    Raises:
        ValueError: unknown recipe or field, or a value that a recipe cannot have.

    Example:
        >>> get_recipe("study").epochs, get_recipe("one_cycle", epochs=3, flip=False).flip
        (200, False)
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    unknown = changes.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no field {', '.join(sorted(unknown))}")
    return dataclasses.replace(RECIPES[name], **changes)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run.

    Example:
        >>> study = RECIPES["study"]
        >>> [round(learning_rate(study, step, 10, 200), 4) for step in (0, 9, 599, 600, 1999)]
        [0.01, 0.1, 0.1, 0.02, 0.0008]
    """
    total = steps_per_epoch * epochs
    warmup = min(recipe.warmup_epochs * steps_per_epoch, 0.3 * total)
    if step + 1 < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "one_cycle":
        done = (step + 1 - warmup) / (total + 1 - warmup)
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
    epoch = step // steps_per_epoch
    return recipe.lr * recipe.gamma ** sum(epoch >= round(m * epochs) for m in recipe.milestones)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, mirror and rotate each image by its own random draw, in one gather.

    The order is the study's: crop from the zero-padded image, flip, rotate about the center with
    the nearest pixel; what comes from outside is black. The draws come from the CPU, so that they
    are the same on every device.

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
    n, channels, height, width = images.shape
    draws = torch.rand(n, 4, generator=generator).to(images.device)
    angle = (2 * draws[:, 0, None, None] - 1) * math.radians(recipe.rotation)
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    row = torch.round(y * angle.cos() + x * angle.sin() + (height - 1) / 2).long()
    column = torch.round(x * angle.cos() - y * angle.sin() + (width - 1) / 2).long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if recipe.flip:
        column = torch.where(draws[:, 1, None, None] < 0.5, width - 1 - column, column)
    shift = (draws[:, 2:] * (2 * recipe.crop_padding + 1)).long() - recipe.crop_padding
    row, column = row + shift[:, 0, None, None], column + shift[:, 1, None, None]
    inside &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = (row * width + column).where(inside, 0).reshape(n, 1, -1).expand(-1, channels, -1)
    picked = images.flatten(2).gather(2, source).reshape(images.shape)
    return picked * inside[:, None]
