"""Recipes and the loop that trains a network, resumed exactly where it stopped."""

from siutils.training.augmentation import augment
from siutils.training.evaluation import evaluate
from siutils.training.loop import epochs_left, fit
from siutils.training.precision import seconds_of_a_step
from siutils.training.recipes import RECIPES, Recipe, get_recipe

__all__ = [
    "RECIPES", "Recipe", "augment", "epochs_left", "evaluate", "fit", "get_recipe",
    "seconds_of_a_step",
]  # fmt: skip
