"""Folders of images, one folder per class: which files, which of them, and their pixels.

A folder is *divided* if it holds ``train/`` and, beside it, ``test/`` or ``val/``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from siutils.core import capped_subset, train_val_split
from siutils.data.images import ImageSet


@dataclass(frozen=True)
class ImageFiles:
    """Labeled image files that are not read yet.

    Attributes:
        root: the folder that was given; paths below it enter the checksum.
        paths: N files.
        labels: int64 (N,), each an index into `classes`.
        classes: class names.

    >>> paths = [Path("x/a/1.png"), Path("x/b/2.png")]
    >>> files = ImageFiles(Path("x"), paths, torch.arange(2), ("a", "b"))
    >>> [path.name for path in files.subset(torch.tensor([1])).paths], files.counts()
    (['2.png'], [1, 1])
    """

    root: Path
    paths: Sequence[Path]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> list[int]:
        """Files per class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at integer `indices` (M,), in that order."""
        paths = [self.paths[i] for i in indices.tolist()]
        return replace(self, paths=paths, labels=self.labels[indices])

    def load(
        self,
        image_size: int,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        chosen: Tensor | None = None,
    ) -> ImageSet:
        """Reads the images; resizes the shorter side to `image_size` pixels and crops the center.

        Args:
            image_size: side of the square images.
            interpolation: of the resizing.
            chosen: indices of the files to decode, ascending; the checksum is of all.

        Raises:
            ValueError: a file is no readable image.
        """
        numbers = range(len(self)) if chosen is None else chosen.tolist()
        wanted = set(numbers)
        images = torch.empty(len(numbers), 3, image_size, image_size, dtype=torch.uint8)
        digest, place = hashlib.sha256(), 0
        for i, path in enumerate(self.paths):
            content = path.read_bytes()
            digest.update(path.relative_to(self.root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(content).digest())
            if i in wanted:
                pixels = _decoded(content, path, image_size, interpolation)
                images[place] = torch.from_numpy(pixels).permute(2, 0, 1)
                place += 1
        labels = self.labels if chosen is None else self.labels[chosen]
        name = self.root.resolve().name
        return ImageSet(name, images, labels, self.classes, digest.hexdigest())


def is_divided(folder: Path) -> bool:
    """True if the folder has a part for training.

    >>> is_divided(Path("no/such/folder"))
    False
    """
    return (folder / "train").is_dir()


def find_images(folder: str | Path, split: str = "") -> ImageFiles:
    """Lists the image files of a folder, sorted by class and path.

    Args:
        folder: of class folders, or divided.
        split: ``"train"`` or ``"test"`` (``test/``, else ``val/``) of a divided folder; empty: all
            of an undivided folder, the training part of a divided one.

    Raises:
        ValueError: no such folder, no class folders, an empty class, a part missing, or a test
            class that training has not.

    >>> find_images("no/such/folder")
    Traceback (most recent call last):
        ...
    ValueError: no such folder of images: 'no/such/folder'
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"no such folder of images: {str(folder)!r}")
    if not is_divided(root):
        classes = _class_names(root)
        return ImageFiles(root, *_image_paths(root, classes), classes)
    classes = _class_names(root / "train")
    part = root / "train"
    if split == "test":
        part = root / "test" if (root / "test").is_dir() else root / "val"
    return ImageFiles(root, *_image_paths(part, classes), classes)


def find_halves(
    folder: str | Path, per_class: int = 0, seed: int = 42
) -> tuple[ImageFiles, ImageFiles]:
    """Lists training and test files, equally many of each class, so that their indices compare.

    A divided folder has both parts; any other is divided at random into two halves of each class.
    The larger side of a class then gives as many files as the smaller side has.

    Args:
        folder: as in `find_images`.
        per_class: the most files of each class on each side; 0: no limit.
        seed: of all choices.

    Raises:
        ValueError: as `find_images`, or a class with a single file to be divided.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     for file in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"):
    ...         (Path(name) / file).parent.mkdir(exist_ok=True)
    ...         (Path(name) / file).touch()
    ...     train, test = find_halves(name)
    >>> train.counts(), test.counts()
    ([1, 1], [1, 1])
    """
    root = Path(folder).expanduser()
    files = find_images(root)
    if is_divided(root):
        sides = [files, find_images(root, "test")]
    else:
        if min(files.counts()) < 2:
            name = files.classes[files.counts().index(1)]
            raise ValueError(f"class {name!r} has 1 image; halves for training and test need 2")
        sides = [files.subset(half) for half in train_val_split(files.labels, 0.5, seed)]
    pairs = zip(sides[0].counts(), sides[1].counts(), strict=True)
    most = [min(*pair, per_class or max(pair)) for pair in pairs]
    train, test = (side.subset(capped_subset(side.labels, most, seed)) for side in sides)
    return train, test


def _class_names(folder: Path) -> tuple[str, ...]:
    names = (d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    classes = tuple(sorted(names))
    if not classes:
        raise ValueError(f"{folder} holds no class folders; put each class's images into its own")
    return classes


def _image_paths(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Lists all image files below the class folders, sorted, and the label of each."""
    if not folder.is_dir():
        raise ValueError(f"{folder.parent} has train/, but neither test/ nor val/ beside it")
    if unknown := set(_class_names(folder)) - set(classes):
        raise ValueError(f"{folder} holds classes that train/ has not: {sorted(unknown)}")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(
            (p for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS),
            key=lambda p: p.as_posix(),
        )
        if not files:
            raise ValueError(
                f"{folder / name} is an empty class: no file ends in {', '.join(IMG_EXTENSIONS)}; "
                "add images or remove the folder"
            )
        paths += files
        labels += [label] * len(files)
    return paths, torch.tensor(labels)


def _decoded(
    content: bytes, path: Path, image_size: int, interpolation: InterpolationMode
) -> np.ndarray:
    """Decodes an image: uint8 (H, W, 3), shorter side resized, center-cropped."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no readable image: {error}") from error
    resized = TF.resize(rgb, [image_size], interpolation)
    return np.array(TF.center_crop(resized, [image_size]))
