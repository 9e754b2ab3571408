"""Images and their labels: digits, CIFAR-10/100 and folders become uint8 tensors."""

from siutils.data.datasets import DATASETS, IMAGENET_MEAN, IMAGENET_STD, load_dataset, transform_for
from siutils.data.folders import ImageFiles, find_halves, find_images, is_divided
from siutils.data.images import ImageSet, Transform

__all__ = [
    "DATASETS", "IMAGENET_MEAN", "IMAGENET_STD", "ImageFiles", "ImageSet", "Transform",
    "find_halves", "find_images", "is_divided", "load_dataset", "transform_for",
]  # fmt: skip
