"""Images in whatever form they come, and the labels that come along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from siutils.core import Labels, as_labels
from siutils.data.decoding import rgb
from siutils.data.images import ImageSet

_BATCH = 256
_IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x", "input")
_LABEL_KEYS = ("label", "labels", "target", "targets", "fine_label", "y")
_FORMS = "a tensor (N, C, H, W), an array (N, H, W, C), a list of images, a Dataset or a DataLoader"


def image_batches(source: Any) -> Iterator[tuple[Tensor, Any]]:
    """Yields batches of images (B, C, H, W), uint8 or float, and their labels or None.

    Args:
        source: images as a tensor (N, C, H, W) or an array (N, H, W, C), (N, C, H, W) or (N, H, W);
            a list of PIL images or arrays of one size; an `ImageSet`; a Dataset or DataLoader of
            images, of pairs (image, label), or of dictionaries with the keys ``image`` and
            ``label`` or the like.

    Raises:
        TypeError: something else.
        ValueError: no images, or images of several sizes.

    >>> [tuple(batch.shape) for batch, _ in image_batches(np.zeros((2, 4, 5, 3), np.uint8))]
    [(2, 3, 4, 5)]
    """
    if isinstance(source, ImageSet):
        yield source.images, source.labels
    elif isinstance(source, Tensor | np.ndarray):
        yield _batch(source), None
    elif isinstance(source, DataLoader):
        for item in source:
            images, labels = _split(item)
            yield _batch(images), labels
    elif (
        hasattr(source, "__getitem__")
        and hasattr(source, "__len__")
        and not isinstance(source, str | Mapping)
    ):
        for start in range(0, len(source), _BATCH):
            items = [_split(source[i]) for i in range(start, min(start + _BATCH, len(source)))]
            labels = [label for _, label in items]
            yield (
                _stack([_single(image) for image, _ in items]),
                None if labels[0] is None else labels,
            )
    else:
        raise TypeError(f"images must be {_FORMS}, got {type(source).__name__}")


def all_images(source: Any) -> tuple[Tensor, Labels | None]:
    """All images of `image_batches` in one tensor, and their labels or None.

    >>> all_images([Image.new("L", (2, 2)), Image.new("L", (2, 2))])[0].shape
    torch.Size([2, 3, 2, 2])
    """
    batches = list(image_batches(source))
    if not batches:
        raise ValueError("images is empty")
    images = batches[0][0] if len(batches) == 1 else torch.cat([batch for batch, _ in batches])
    return images, joined_labels([labels for _, labels in batches])


def joined_labels(parts: list[Any]) -> Labels | None:
    """Labels of all batches; None if they have none.

    >>> joined_labels([[1], torch.tensor([2])]).codes
    tensor([1, 2])
    """
    if any(part is None for part in parts):
        return None
    return as_labels(
        [label for part in parts for label in (part.tolist() if isinstance(part, Tensor) else part)]
    )


def _split(item: Any) -> tuple[Any, Any]:
    """Image and label of an item or batch."""
    if isinstance(item, Mapping):
        keys = [
            next((key for key in names if key in item), None)
            for names in (_IMAGE_KEYS, _LABEL_KEYS)
        ]
        if keys[0] is None:
            raise TypeError(
                f"images: an item has the keys {list(item)}, none of {', '.join(_IMAGE_KEYS)}"
            )
        return item[keys[0]], None if keys[1] is None else item[keys[1]]
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[0], item[1]
    return (item[0], None) if isinstance(item, tuple | list) else (item, None)


def _single(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(rgb(image))).permute(2, 0, 1)
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(f"images must be {_FORMS}; got one of type {type(image).__name__}")
    return _batch(image[None])[0]


def _stack(images: list[Tensor]) -> Tensor:
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"images must have one size; there are {sizes[0]} and {sizes[-1]}: resize them first"
        )
    return torch.stack(images)


def _batch(images: Any) -> Tensor:
    """A tensor as it is, an array with its channels put first."""
    if isinstance(images, Tensor):
        return images
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))
