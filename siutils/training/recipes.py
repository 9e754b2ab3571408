"""Recipes of training, and the learning rate of each step that follows from one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal


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
        weight_decay: on the parameters.
        decay_all: False leaves biases and the parameters of BatchNorm undecayed.
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
        average: decay per step of an exponential moving average of the weights and of the
            statistics of BatchNorm (0 is off); it is the average that is validated and kept. After
            t steps the decay is at most (1 + t) / (10 + t), to forget the start.
    """

    name: str
    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True
    schedule: Literal["multistep", "one_cycle"] = "multistep"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    gamma: float = 0.2
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    rotation: float = 0.0
    bn_images: int = 0
    average: float = 0.0

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
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and below 1, got {self.average}")


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
    """Returns a recipe by name, with fields changed.

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
    """Computes the learning rate of a step; steps are counted from 0 over the whole run.

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
