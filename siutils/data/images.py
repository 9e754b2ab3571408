"""Labeled images in memory and the transform that a model expects.

Images are uint8 (N, 3, H, W), labels int64 (N,).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from siutils.core import as_integers, check_positive


@dataclass(frozen=True)
class ImageSet:
    """Labeled images in memory.

    Attributes:
        name: data set, for example ``"digits"``.
        images: uint8 tensor (N, 3, H, W), N ≥ 1.
        labels: int64 tensor (N,), each an index into `classes`.
        classes: class names.
        checksum: hex digest that identifies the source data; a subset keeps that of its source.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a shape does not fit, there is no image, or a label names no class.

    >>> images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    >>> data = ImageSet("toy", images, torch.tensor([0, 2, 1]), ("ant", "bee", "cat"), "")
    >>> data.of_classes([2, 1]).labels, data.of_classes([2, 1]).classes
    (tensor([0, 1]), ('cat', 'bee'))
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    checksum: str

    def __post_init__(self) -> None:
        _check_images(self.images)
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got {self.labels.dtype}")
        if self.labels.shape != self.images.shape[:1] or not len(self.labels):
            raise ValueError(
                f"labels must be (N,) for images (N, 3, H, W) with N ≥ 1, got labels "
                f"{tuple(self.labels.shape)} and images {tuple(self.images.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"labels must be 0…{len(self.classes) - 1} for {len(self.classes)} classes, "
                f"got {low}…{high}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | ArrayLike) -> "ImageSet":
        """Selects the samples at integer `indices` (M,), in that order.

        Raises:
            ValueError: an index lies outside 0…N-1, or there is none.
        """
        index = as_integers(indices, "indices").to(self.images.device)
        if int(index.min()) < 0 or int(index.max()) >= len(self):
            raise ValueError(
                f"indices must be 0…{len(self) - 1}, got {int(index.min())}…{int(index.max())}"
            )
        return replace(self, images=self.images[index], labels=self.labels[index])

    def of_classes(self, classes: Sequence[int]) -> "ImageSet":
        """Selects the samples of these labels and relabels them 0…len(classes)-1 in this order.

        Raises:
            ValueError: a class is unknown or repeated, or no sample is left.
        """
        wanted = as_integers(classes, "classes").tolist()
        unknown = [c for c in wanted if not 0 <= c < len(self.classes)]
        if unknown or len(set(wanted)) < len(wanted):
            raise ValueError(
                f"classes must be distinct labels from 0…{len(self.classes) - 1}, got {wanted}"
            )
        new_label = torch.full((len(self.classes),), -1, device=self.labels.device)
        new_label[wanted] = torch.arange(len(wanted), device=self.labels.device)
        labels = new_label[self.labels]
        keep = labels >= 0
        names = tuple(self.classes[c] for c in wanted)
        return replace(self, images=self.images[keep], labels=labels[keep], classes=names)

    def shifted(self, pixels: int, seed: int = 42) -> "ImageSet":
        """Moves each image by a random whole number of pixels, up to `pixels` to each side.

        What moves in from outside is black. Centered images are close to each other in raw pixels
        already; shifted ones need a representation that does not mind where things are.

        Args:
            pixels: at least 0; 0 moves nothing.
            seed: non-negative integer.

        Raises:
            ValueError: `pixels` is no integer of at least 0.

        >>> image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
        >>> image[..., 2, 2] = 1  # two pixels from the edge: not lost
        >>> data = ImageSet("toy", image, torch.tensor([0]), ("ant",), "")
        >>> int(data.shifted(2).images.sum()), data.shifted(0) is data
        (3, True)
        """
        if pixels == 0:
            return self
        check_positive(pixels, "pixels")
        n, channels, height, width = self.images.shape
        generator = np.random.Generator(np.random.PCG64([int(seed), 2]))
        moves = torch.from_numpy(np.floor(generator.random((n, 2)) * (2 * pixels + 1))).long()
        row = moves[:, :1] + torch.arange(height)  # of the padded image
        column = moves[:, 1:] + torch.arange(width)
        padded = F.pad(self.images, (pixels,) * 4)
        picked = padded[
            torch.arange(n)[:, None, None, None],
            torch.arange(channels)[:, None, None],
            row[:, None, :, None],
            column[:, None, None, :],
        ]
        return replace(self, images=picked)


@dataclass(frozen=True)
class Transform:
    """What a model expects: resize (optional), scale to [0, 1], normalize per channel.

    Attributes:
        mean: channel means of the scaled images.
        std: channel standard deviations, positive.
        size: side in pixels to resize to (bicubic, antialiased); None leaves the size.

    >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> Transform((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), size=1)(white).flatten()
    tensor([2., 2., 2.])
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean and std need 3 channels, got {self.mean} and {self.std}")
        if not (all(np.isfinite(self.mean)) and all(0 < s < np.inf for s in self.std)):
            raise ValueError(
                f"mean must be finite and std positive, got mean {self.mean} and std {self.std}"
            )
        if self.size is not None:
            check_positive(self.size, "size")

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 (N, 3, H, W) → float32 (N, 3, H', W') on the same device."""
        _check_images(images)
        x = images.to(torch.float32)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
            x = x.clamp(0, 255)  # bicubic overshoots
        mean = torch.tensor(self.mean, dtype=torch.float32, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=x.device).view(3, 1, 1)
        return (x / 255 - mean) / std


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"images must be a uint8 tensor, got {kind}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
