"""Folders of images for the tests: scikit-learn's digits as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two")


def write_digits(folder: Path, per_class: int, first: int = 0, classes: int = 3) -> Path:
    """`per_class` digits of each class, from the `first` on, 24×16 pixels, of which 16 stay."""
    digits = load_digits()
    for label, name in enumerate(NAMES[:classes]):
        (folder / name).mkdir(parents=True)
        chosen = digits.images[digits.target == label][first : first + per_class]
        for i, pixels in enumerate(chosen):
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((24, 16))
            image.save(folder / name / f"{i:03d}.png")
    return folder
