"""Images and their labels: digits, CIFAR-10/100 and folders become uint8 tensors."""

from siutils.data.datasets import DATASETS, IMAGENET_MEAN, IMAGENET_STD, load_dataset, transform_for
from siutils.data.folders import (
    ImageFiles,
    find_halves,
    find_images,
    is_divided,
    refuse_unreadable,
)
from siutils.data.images import ImageSet, Transform
from siutils.data.sources import all_images, image_batches, joined_labels

__all__ = [
    "DATASETS", "IMAGENET_MEAN", "IMAGENET_STD", "ImageFiles", "ImageSet", "Transform",
    "all_images", "find_halves", "find_images", "image_batches", "is_divided", "joined_labels",
    "load_dataset", "refuse_unreadable",
    "transform_for",
]  # fmt: skip
