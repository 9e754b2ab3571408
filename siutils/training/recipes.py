"""Recipes of training, and the learning rate of each step that follows from one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from siutils.core import check_positive


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
        cutout: side of a square at a random place of each image that turns black; 0 is off.
        sides: shares of its side to which the network's input is resized, for equal parts of the
            epochs: small images first train faster (Tan and Le 2021, arXiv:2104.00298). Empty: the
            input as the transform gives it.
        bn_images: before each validation, estimate the statistics of BatchNorm anew from so many
            training images without augmentation; 0 keeps the running averages, which after a few
            dozen steps still remember the weights they started with.
        average: decay per step of an exponential moving average of the weights and of the
            statistics of BatchNorm (0 is off); it is the average that is validated and kept. After
            t steps the decay is at most (1 + t) / (10 + t), to forget the start.
        validate_every: epochs from one validation to the next; the last is always validated.
        dtype: of the products in training: "float32", "bfloat16" (weights stay float32), or
            "auto": bfloat16 on CUDA; on a CPU, the faster one, measured on the network itself.
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
    cutout: int = 0
    sides: tuple[float, ...] = ()
    bn_images: int = 0
    average: float = 0.0
    validate_every: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for field in ("optimizer", "schedule", "dtype"):
            value, known = getattr(self, field), get_args(get_type_hints(Recipe)[field])
            if value not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r}")
        for field in ("epochs", "batch_size", "validate_every"):
            check_positive(getattr(self, field), field)
        if not all(0 < side <= 1 for side in self.sides):
            raise ValueError(f"sides must be shares above 0, at most 1, got {self.sides}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0, got {self.lr}")
        limits = ("weight_decay", "warmup_epochs", "crop_padding", "rotation", "cutout")
        for field in (*limits, "bn_images"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and below 1, got {self.average}")

    def validates(self, epoch: int) -> bool:
        """True if an epoch, counted from 1, ends with a validation.

        >>> recipe = Recipe("sparse", epochs=5, validate_every=2)
        >>> [epoch for epoch in range(1, 6) if recipe.validates(epoch)]
        [2, 4, 5]
        """
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def side(self, epoch: int) -> float:
        """Share of its side that the network's input has in an epoch, counted from 0.

        >>> [Recipe("r", epochs=5, sides=(0.5, 1.0)).side(epoch) for epoch in range(5)]
        [0.5, 0.5, 0.5, 1.0, 1.0]
        """
        return self.sides[epoch * len(self.sides) // self.epochs] if self.sides else 1.0


# As the study printed it: milestones at epochs 60, 120, 160 of 200; for EfficientNet neither
# warm-up nor rotation.
_STUDY = Recipe("study", epochs=200, rotation=15.0, dtype="auto")
# For some 24 epochs on CIFAR-100: one cycle, Nesterov, label smoothing, averaged weights. Slow
# learners from scratch, EfficientNets want residual blocks that start as the identity.
_FAST = Recipe(
    "fast",
    epochs=24,
    nesterov=True,
    decay_all=False,
    schedule="one_cycle",
    warmup_epochs=5.0,
    label_smoothing=0.1,
    cutout=8,
    bn_images=2048,
    average=0.998,
    validate_every=2,
    dtype="auto",
)
_EXCEPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "study": {"efficientnet": {"warmup_epochs": 0.0, "rotation": 0.0}},
    "fast": {
        "vgg": {"lr": 0.05},
        "efficientnet": {"weight_decay": 2e-4, "cutout": 0},
        "efficientnet_v2": {"optimizer": "adamw", "lr": 0.004, "weight_decay": 0.05},
        "efficientnet_lite": {"lr": 0.02},  # from ImageNet weights
    },
}
RECIPES = {"study": _STUDY, "fast": _FAST}
_LEAST_STEPS = 16  # of an epoch: fewer images make smaller batches


def get_recipe(name: str, network: str = "", images: int = 0, **changes: Any) -> Recipe:
    """Returns a recipe for a network, with fields changed.

    Args:
        name: ``"study"``, as the study printed it, or ``"fast"``, for few epochs.
        network: whose exceptions apply, by the beginning of its name.
        images: number of training images. Where they are too few for 16 steps of the fast recipe
            in an epoch, batches are halved, down to 16, and SGD's learning rate with them (Goyal et
            al. 2017, arXiv:1706.02677); AdamW's stays, with which few steps learn more. 0: as many
            as it takes.
        changes: fields of `Recipe`.

    Raises:
        ValueError: unknown recipe or field, or a value that a recipe cannot have.

    >>> get_recipe("study").epochs, get_recipe("study", "efficientnet_b0").rotation
    (200, 0.0)
    >>> few = get_recipe("fast", images=600, epochs=3)
    >>> few.epochs, few.batch_size, few.lr
    (3, 32, 0.025)
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    unknown = changes.keys() - {field.name for field in fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no field {', '.join(sorted(unknown))}")
    recipe = RECIPES[name]
    for beginning, exceptions in _EXCEPTIONS[name].items():
        if network.startswith(beginning):
            recipe = replace(recipe, **exceptions)
    if name == "fast" and images:
        slower = 0.5 if recipe.optimizer == "sgd" else 1.0
        while recipe.batch_size > 16 and images < _LEAST_STEPS * recipe.batch_size:
            recipe = replace(recipe, batch_size=recipe.batch_size // 2, lr=recipe.lr * slower)
    return replace(recipe, **changes)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Computes the learning rate of a step; steps are counted from 0 over the whole run.

    >>> study = RECIPES["study"]
    >>> [round(learning_rate(study, step, 10), 4) for step in (0, 9, 599, 600, 1999)]
    [0.01, 0.1, 0.1, 0.02, 0.0008]
    """
    total = steps_per_epoch * recipe.epochs
    warmup = min(recipe.warmup_epochs * steps_per_epoch, 0.3 * total)
    if step + 1 < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "one_cycle":
        done = (step + 1 - warmup) / (total + 1 - warmup)
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
    epoch = step // steps_per_epoch
    return recipe.lr * recipe.gamma ** sum(
        epoch >= round(m * recipe.epochs) for m in recipe.milestones
    )
