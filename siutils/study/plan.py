"""All trainings of a profile: what ``siutils train`` does, and what a report will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siutils.data import ImageSet, load_dataset, transform_for
from siutils.study.trainings import (
    SHORTCUTS,
    STAGES,
    Training,
    candidate_trainings,
    curve_training,
    ranking_trainings,
    some_classes,
    tasks,
    variant_trainings,
)


def planned_trainings(parameters: Mapping[str, Any]) -> list[Training]:
    """Lists all trainings of a profile, in the order of the notebooks.

    Args:
        parameters: those of the notebooks on ranking and layers, defaults included.

    >>> from siutils.report import profile_parameters
    >>> tiny = planned_trainings(profile_parameters("tiny"))
    >>> [training.name for training in tiny if training.weights == "imagenet"][1:]
    ['candidate efficientnet_lite0, 32 pixels', 'efficientnet_lite0']
    """
    given = dict(parameters)
    images = load_dataset(given["dataset"]).shifted(given["shift"], given["seed"])
    return [*_of_ranking(images, given), *_of_curves(images, given)]


def _of_ranking(images: ImageSet, given: Mapping[str, Any]) -> list[Training]:
    seed, transform = given["seed"], transform_for(given["dataset"])
    names = ("networks", "recipe", "dtypes", "epochs", "train_per_class", "seed")
    how = {name: given[name] for name in names} | {"transform": transform}
    ranked = ranking_trainings(tasks(images, given["pretrained"]), **how)
    seeds = range(seed, seed + given["shortcut_seeds"])
    options = (*given["shortcut_plan"], given["shortcut_dtype"], transform)
    shortcuts = variant_trainings(images, SHORTCUTS, seeds, *options)
    pairs = given["transfer_networks"], given["transfer_sizes"]
    per_class, epochs = given["transfer_plan"]
    candidates = candidate_trainings(images, *pairs, per_class, epochs, seed)
    return [*ranked.values(), *shortcuts.values(), *candidates.values()]


def _of_curves(images: ImageSet, given: Mapping[str, Any]) -> list[Training]:
    images = some_classes(images, given["curve_classes"])
    seed, dtype, transform = given["seed"], given["curve_dtype"], transform_for(given["dataset"])
    of_curve = ("weights", "size", "recipe", "dtype", "epochs", "train_per_class")
    curve = {name: given[f"curve_{name}"] for name in of_curve} | {"seed": seed}
    size, epochs = given["tuned_plan"]
    tuned = curve | {"weights": "imagenet", "size": size, "epochs": epochs, "recipe": "fast"}
    seeds = range(seed, seed + given["variant_seeds"])
    options = (*given["variant_plan"], dtype, transform)
    variants = variant_trainings(images, STAGES, seeds, *options)
    names, per_class = ["resnet18", "vgg16"], given["curve_train_per_class"]
    how: dict[str, Any] = {"recipe": "fast", "dtypes": 2 * [dtype]}
    how |= {"epochs": 2 * [given["other_epochs"]], "seed": seed}
    how |= {"train_per_class": per_class, "transform": transform}
    others = ranking_trainings({"trained": images}, names, **how)
    return [
        curve_training(images, given["curve_network"], **curve),
        curve_training(images, given["tuned_network"], snapshots=False, **tuned),
        *variants.values(),
        *(others.values() if given["other_epochs"] else ()),
    ]
