"""Recipes and the loop that trains a network, resumed exactly where it stopped."""

from siutils.training.augmentation import augment
from siutils.training.loop import evaluate, fit
from siutils.training.recipes import RECIPES, Recipe, get_recipe

__all__ = [
    "RECIPES", "Recipe", "augment", "evaluate", "fit", "get_recipe",
]  # fmt: skip
