"""The trainings of the questions: which network learns which images by which recipe.

The notebooks and the command ``siutils train`` take them from here, so that they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from siutils.core import balanced_subset, cache_dir, train_val_split, trainings_dir
from siutils.data import ImageSet, Transform, transform_for
from siutils.networks import create_model
from siutils.training import Recipe, epochs_left, fit, get_recipe, seconds_of_a_step

# Variants of a network: name → the network, and whether its residual blocks start as the identity.
Variants = Mapping[str, tuple[str, bool]]
SHORTCUTS: Variants = {
    "resnet18": ("resnet18", False),
    "resnet18_no_shortcuts": ("resnet18_no_shortcuts", False),
}
STAGES: Variants = {  # the first against the others, each of which changes one thing
    "V2-S": ("efficientnet_v2_s", True),
    "V2-S, stage 0 with stride 1": ("efficientnet_v2_s_stride1", True),
    "V2-S, stage 1 of plain convolutions": ("efficientnet_v2_s_plain_stage1", True),
    "V2-S, blocks start as usual": ("efficientnet_v2_s", False),
}


@dataclass(frozen=True)
class Training:
    """A training: the start of a network, its images, its recipe.

    Attributes:
        name: shown to people, such as ``"resnet18, trained"``.
        network: a name of `siutils.create_model`.
        train, val: images to learn from, and to choose the best epoch by.
        recipe: how it is trained.
        transform: from uint8 images to the network's input.
        seed: of initialization, batches and augmentation.
        weights: where it starts from, as in `siutils.create_model`.
        zero_init: residual blocks start as the identity.
        snapshots: epochs whose weights are kept.
    """

    name: str
    network: str
    train: ImageSet
    val: ImageSet
    recipe: Recipe
    transform: Transform
    seed: int
    weights: str | None = None
    zero_init: bool = False
    snapshots: tuple[int, ...] = ()

    def start(self, seed: int | None = None) -> nn.Module:
        """Builds the network as it is before the training, or from another seed."""
        return create_model(
            self.network,
            len(self.train.classes),
            self.weights,
            self.seed if seed is None else seed,
            zero_init_residual=self.zero_init,
        )

    def run(
        self, device: str | torch.device = "auto", progress: Callable[[str], None] | None = None
    ) -> Trained:
        """Trains in the project's cache, or takes what is finished there or in `trainings_dir`.

        Raises:
            ValueError, RuntimeError, OSError: as `siutils.training.fit`.
        """
        model: nn.Module = self.start()
        snapshots: dict[int, dict[str, Tensor]] = {epoch: {} for epoch in self.snapshots}
        tell = progress and (lambda line: progress(f"{self.name}: {line}"))
        history = fit(model, **self._how(device), progress=tell, snapshots=snapshots)
        return Trained(self, model, history, snapshots)

    def minutes(self, device: str | torch.device = "auto") -> float:
        """Estimates how long this machine needs for the epochs that are left.

        The estimate is from a few steps; it leaves out validation.
        """
        model: Any = self.start()
        snapshots: dict[int, Any] = {epoch: {} for epoch in self.snapshots}
        left = epochs_left(model, **self._how(device), snapshots=snapshots)
        if not left:
            return 0.0
        dtypes: list[Any] = [self.recipe.dtype]
        if dtypes == ["auto"]:
            dtypes = ["float32", "bfloat16"]
        seconds = min(
            seconds_of_a_step(model, self.train, replace(self.recipe, dtype=dtype))
            for dtype in dtypes
        )
        epochs = range(self.recipe.epochs - left, self.recipe.epochs)
        whole = sum(self.recipe.side(epoch) ** 2 for epoch in epochs)  # at the full side
        return whole * len(self.train) / self.recipe.batch_size * seconds / 60

    def _how(self, device: str | torch.device) -> dict[str, Any]:
        """Arguments of `fit`, but for the model and what happens on the way."""
        names = ("train", "val", "recipe", "transform", "seed")
        how = {name: getattr(self, name) for name in names}
        return how | {"device": device, "cache": cache_dir(), "finished": trainings_dir()}


@dataclass(frozen=True)
class Trained:
    """A finished training: its model in eval mode, its history, the weights after some epochs."""

    training: Training
    model: nn.Module
    history: pd.DataFrame
    snapshots: Mapping[int, Mapping[str, Tensor]]

    @property
    def source(self) -> str:
        """Says what the network was trained on, by which commit and under which key."""
        training, made = self.training, self.history.attrs
        return (
            f"trained here: {training.recipe.name}, {len(self.history)} epochs of "
            f"{len(training.train):,} images, seed {training.seed}, key {made['key'][:10]}, "
            f"commit {made['commit']}"
        )


def split(images: ImageSet, per_class: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Divides training images 80/20 by class into those to learn from and those to validate on.

    Args:
        images: training images.
        per_class: images per class to learn from, and a quarter as many to validate on; 0: all.
        seed: of the choices.

    >>> from siutils.data import load_dataset
    >>> train, val = split(load_dataset("digits"), per_class=20, seed=0)
    >>> len(train), len(val)
    (200, 50)
    """
    train, val = (images.subset(part) for part in train_val_split(images.labels, seed=seed))
    if per_class:
        train = train.subset(balanced_subset(train.labels, per_class, seed))
        val = val.subset(balanced_subset(val.labels, max(1, per_class // 4), seed))
    return train, val


def tasks(images: ImageSet, pretrained: str) -> dict[str, ImageSet]:
    """Images of each arm: those of half of the classes where the other half is the pretext task.

    Args:
        images: of all classes.
        pretrained: ``"upstream"``, ``"imagenet"`` or ``"auto"``.

    >>> from siutils.data import load_dataset
    >>> {arm: task.classes for arm, task in tasks(load_dataset("digits"), "upstream").items()}
    {'pretrained': ('0', '1', '2', '3', '4'), 'trained': ('5', '6', '7', '8', '9')}
    """
    if pretrained not in ("upstream", "imagenet", "auto"):
        raise ValueError(f"pretrained must be upstream, imagenet or auto; got {pretrained!r}")
    if pretrained != "upstream":
        return {"trained": images}
    half = len(images.classes) // 2
    halves = {"pretrained": range(half), "trained": range(half, len(images.classes))}
    return {arm: images.of_classes(classes) for arm, classes in halves.items()}


def ranking_trainings(
    images: Mapping[str, ImageSet],
    networks: Sequence[str],
    *,
    recipe: str,
    dtypes: Sequence[str],
    epochs: Sequence[int],
    train_per_class: int,
    transform: Transform,
    seed: int,
) -> dict[tuple[str, str], Training]:
    """The trainings of question 1, by network and arm: each network from random weights.

    Args:
        images: training images of each arm, as of `tasks`.
        networks: names of `siutils.create_model`.
        recipe: ``"study"`` or ``"fast"``.
        dtypes, epochs: for each network; 0 epochs: as the recipe has.
        train_per_class: images per class; 0: all of the 80 % split.
        transform: from uint8 images to input.
        seed: of splits, initialization, batches and augmentation.

    >>> from siutils.data import load_dataset
    >>> digits = {"trained": load_dataset("digits")}
    >>> how = {"recipe": "fast", "dtypes": ["float32"], "epochs": [3], "train_per_class": 9}
    >>> how |= {"transform": transform_for("digits"), "seed": 0}
    >>> training = ranking_trainings(digits, ["resnet18"], **how)["resnet18", "trained"]
    >>> training.recipe.epochs, len(training.train), training.zero_init
    (3, 90, False)
    """
    trainings = {}
    for network, dtype, passes in zip(networks, dtypes, epochs, strict=True):
        for arm, task in images.items():
            train, val = split(task, train_per_class, seed)
            trainings[network, arm] = Training(
                f"{network}, {arm}",
                network,
                train,
                val,
                _recipe(recipe, network, train, dtype, passes),
                transform,
                seed,
                # deep networks that learn slowly; the study has nothing of the kind
                zero_init=network.startswith("efficientnet") and recipe != "study",
            )
    return trainings


def variant_trainings(
    images: ImageSet,
    variants: Variants,
    seeds: Iterable[int],
    per_class: int,
    epochs: int,
    dtype: str,
    transform: Transform,
) -> dict[tuple[str, int], Training]:
    """Short trainings of variants of a network, by variant and seed, on the same images.

    Args:
        images: training images.
        variants: `SHORTCUTS`, `STAGES` or others.
        seeds: of split, initialization, batches and augmentation.
        per_class: training images per class; 0: all of the 80 % split.
        epochs: of the fast recipe.
        dtype: as in `siutils.training.Recipe`.
        transform: from uint8 images to input.

    >>> from siutils.data import load_dataset
    >>> how = {"per_class": 9, "epochs": 2, "dtype": "float32"}
    >>> how["transform"] = transform_for("digits")
    >>> list(variant_trainings(load_dataset("digits"), SHORTCUTS, [1], **how))
    [('resnet18', 1), ('resnet18_no_shortcuts', 1)]
    """
    trainings = {}
    for seed in seeds:
        train, val = split(images, per_class, seed)
        for variant, (network, zero_init) in variants.items():
            recipe = _recipe("fast", network, train, dtype, epochs)
            how = (network, train, val, recipe, transform, seed)
            name = f"{variant}, seed {seed}"
            trainings[variant, seed] = Training(name, *how, zero_init=zero_init)
    return trainings


def candidate_trainings(
    images: ImageSet,
    networks: Iterable[str],
    sizes: Sequence[int],
    per_class: int,
    epochs: int,
    seed: int,
) -> dict[tuple[str, int], Training]:
    """The fine-tunings of each network with ImageNet weights at each size of its input.

    Args:
        images: training images.
        networks: names of `siutils.create_model` that have ImageNet weights.
        sizes: sides in pixels at which images enter the networks.
        per_class, epochs: as in `variant_trainings`.
        seed: of split, last layer, batches and augmentation.

    Raises:
        FileNotFoundError, ValueError: as `siutils.create_model` with ImageNet weights.

    >>> from siutils.data import load_dataset
    >>> how = {"per_class": 9, "epochs": 2, "seed": 0}
    >>> list(candidate_trainings(load_dataset("digits"), ["efficientnet_lite0"], [16, 32], **how))
    [('efficientnet_lite0', 16), ('efficientnet_lite0', 32)]
    """
    how: dict[str, Any] = {"weights": "imagenet", "recipe": "fast", "dtype": "float32"}
    how |= {"epochs": epochs, "train_per_class": per_class, "seed": seed, "snapshots": False}
    trainings = {}
    for network, size in product(networks, sizes):
        one = curve_training(images, network, size=size, **how)
        recipe = replace(one.recipe, sides=())  # the same for every size
        name = f"candidate {network}, {size} pixels"
        trainings[network, size] = replace(one, name=name, recipe=recipe)
    return trainings


def curve_training(
    images: ImageSet,
    network: str,
    *,
    weights: str,
    recipe: str,
    dtype: str,
    epochs: int,
    train_per_class: int,
    size: int,
    seed: int,
    snapshots: bool = True,
) -> Training:
    """The training of question 2: one network, from random or given weights, at some size.

    Args:
        images: training images.
        network: a name of `siutils.create_model`.
        weights: empty for random ones with residual blocks that start as the identity, ``"plain"``
            without that, ``"imagenet"``, or a file.
        recipe, dtype, epochs, train_per_class: as in `ranking_trainings`.
        size: side in pixels at which images enter the network.
        seed: of split, initialization, batches and augmentation.
        snapshots: keep the weights after the first epoch and after a third of them.

    >>> from siutils.data import load_dataset
    >>> how = {"recipe": "fast", "dtype": "float32", "epochs": 6, "train_per_class": 9, "seed": 0}
    >>> digits = load_dataset("digits")
    >>> training = curve_training(digits, "efficientnet_v2_s", weights="", size=32, **how)
    >>> training.snapshots, training.zero_init
    ((1, 2), True)
    """
    train, val = split(images, train_per_class, seed)
    how = _recipe(recipe, network, train, dtype, epochs)
    if recipe == "fast" and size >= 64:
        how = replace(how, sides=(0.5, 0.75, 1.0))
    source = None if weights in ("", "plain") else weights
    transform = transform_for(images.name)
    if source and source.startswith("imagenet"):
        transform = create_model(network, None, source).transform  # type: ignore[assignment]
    return Training(
        network,
        network,
        train,
        val,
        how,
        replace(transform, size=size),
        seed,
        source,
        zero_init=not weights,
        snapshots=tuple(sorted({1, -(-how.epochs // 3)})) if snapshots else (),
    )


def _recipe(name: str, network: str, train: ImageSet, dtype: str, epochs: int) -> Recipe:
    changes: dict[str, Any] = {"dtype": dtype} | ({"epochs": epochs} if epochs else {})
    if train.name == "digits":  # a mirrored digit is none, and its strokes are thin
        changes |= {"flip": False, "crop_padding": 3, "cutout": 0}
    return get_recipe(name, network, len(train), **changes)


def some_classes(images: ImageSet, count: int) -> ImageSet:
    """Images of `count` classes, evenly spread over the list of all; 0: of all classes.

    Raises:
        ValueError: there are not so many classes.

    >>> from siutils.data import load_dataset
    >>> some_classes(load_dataset("digits"), 3).classes
    ('0', '3', '6')
    """
    most = len(images.classes)
    if count > most:
        raise ValueError(f"curve_classes is {count}; {images.name} has {most}")
    return images.of_classes([i * most // count for i in range(count)]) if count else images
