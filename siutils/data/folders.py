"""Folders of images, one folder per class: which files, which of them, and their pixels.

A folder is *divided* if it holds a part for training, ``train/`` or ``training/``, with class
folders in it, and a part for testing beside it, the first of ``test/``, ``testing/``, ``val/``,
``valid/`` and ``validation/``; upper case is fine. Without the part for testing it is divided if
there is no other folder. Hidden files and folders, ``__MACOSX`` and files of other kinds than
images do not count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode

from siutils.core import capped_subset, train_val_split, user_path
from siutils.data.decoding import FORMATS, decode
from siutils.data.images import ImageSet

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
_SHOWN = 20  # files that an error names


@dataclass(frozen=True)
class ImageFiles:
    """Labeled image files that are not read yet.

    Attributes:
        root: the folder that was given; paths below it enter the checksum.
        paths: N files.
        labels: int64 (N,), each an index into `classes`.
        classes: class names.
        skipped: names of files that were left out → why.

    >>> paths = [Path("x/a/1.png"), Path("x/b/2.png")]
    >>> files = ImageFiles(Path("x"), paths, torch.arange(2), ("a", "b"))
    >>> [path.name for path in files.subset(torch.tensor([1])).paths], files.counts()
    (['2.png'], [1, 1])
    """

    root: Path
    paths: Sequence[Path]
    labels: Tensor
    classes: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> list[int]:
        """Files per class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at integer `indices` (M,), in that order."""
        paths = [self.paths[i] for i in indices.tolist()]
        return replace(self, paths=paths, labels=self.labels[indices])

    def readable(self) -> ImageFiles:
        """The files that are readable images; decodes all, and keeps the others in `skipped`."""
        skipped, left = {}, []
        for i, path in enumerate(self.paths):
            try:
                decode(_content(path), 1)
                left.append(i)
            except ValueError as error:
                name = path.relative_to(self.root).as_posix()
                skipped[os.fsencode(name).decode(errors="replace")] = str(error)
        return replace(self.subset(torch.tensor(left, dtype=torch.int64)), skipped=skipped)

    def load(
        self,
        image_size: int,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        chosen: Tensor | None = None,
    ) -> ImageSet:
        """Reads the images; resizes the shorter side to `image_size` pixels and crops the center.

        See `siutils.data.decoding` for what becomes of transparency, of 16 bits and the like.

        Args:
            image_size: side of the square images.
            interpolation: of the resizing.
            chosen: indices of the files to decode, ascending; the checksum is of all.

        Raises:
            ValueError: some files are no readable images; the message names them all.
        """
        numbers = range(len(self)) if chosen is None else chosen.tolist()
        wanted = set(numbers)
        images = torch.empty(len(numbers), 3, image_size, image_size, dtype=torch.uint8)
        digest, place = hashlib.sha256(), 0
        for i, path in enumerate(self.paths):
            try:
                content = _content(path)
                digest.update(os.fsencode(path.relative_to(self.root).as_posix()) + b"\0")
                digest.update(hashlib.sha256(content).digest())
                if i in wanted:
                    pixels = decode(content, image_size, interpolation)
                    images[place] = torch.from_numpy(pixels).permute(2, 0, 1)
                    place += 1
            except ValueError:
                refuse_unreadable(self.readable().skipped)
                raise
        labels = self.labels if chosen is None else self.labels[chosen]
        name = self.root.resolve().name
        return ImageSet(name, images, labels, self.classes, digest.hexdigest())


def refuse_unreadable(files: Mapping[str, str]) -> None:
    """Raises a ValueError that names files with the reasons, if there are any.

    >>> refuse_unreadable({})
    """
    if files:
        lines = [f"{path} is no readable image: {why}" for path, why in files.items()]
        more = f"; and {len(files) - _SHOWN} more" * (len(files) > _SHOWN)
        raise ValueError(
            f"{'; '.join(lines[:_SHOWN])}{more}. Mend or remove them, or leave them out by "
            "--skip-unreadable"
        )


def is_divided(folder: Path) -> bool:
    """True if the folder has a part for training.

    Raises:
        ValueError: the parts hold images instead of class folders.

    >>> is_divided(Path("no/such/folder"))
    False
    """
    return _parts(folder) is not None


def find_images(
    folder: str | Path, split: str = "", *, skip_unreadable: bool = False
) -> ImageFiles:
    """Lists the image files of a folder, sorted by class and path.

    Args:
        folder: of class folders, or divided.
        split: ``"train"`` or ``"test"`` of a divided folder; empty: all of an undivided folder, the
            training part of a divided one.
        skip_unreadable: decode all files and leave out those that are no readable images.

    Raises:
        ValueError: no such folder, no class folders, an empty class, a part missing, or a test
            class that training has not.

    >>> find_images("no/such/folder")
    Traceback (most recent call last):
        ...
    ValueError: no such folder of images: 'no/such/folder'
    """
    root = user_path(folder)
    if not root.is_dir():
        raise ValueError(f"no such folder of images: {str(folder)!r}")
    part, parts = root, _parts(root)
    if parts is not None:
        train, test = parts
        part = train if split != "test" else test or root / "test"
        if not part.is_dir():
            raise ValueError(f"{root} has {train.name}/, but neither test/ nor val/ beside it")
    classes = _class_names(root if parts is None else parts[0])
    if unknown := set(_class_names(part)) - set(classes):
        raise ValueError(f"{part} holds classes that training has not: {sorted(unknown)}")
    files = ImageFiles(root, *_image_paths(part, classes), classes)
    if not skip_unreadable:
        return files
    files = files.readable()
    if 0 in files.counts():
        name = classes[files.counts().index(0)]
        raise ValueError(f"no image of class {name!r} is readable: {list(files.skipped)[:_SHOWN]}")
    return files


def find_halves(
    folder: str | Path, per_class: int = 0, seed: int = 42, *, skip_unreadable: bool = False
) -> tuple[ImageFiles, ImageFiles]:
    """Lists training and test files, equally many of each class, so that their indices compare.

    A divided folder has both parts; any other is divided at random into two halves of each class.
    The larger side of a class then gives as many files as the smaller side has.

    Args:
        folder: as in `find_images`.
        per_class: the most files of each class on each side; 0: no limit.
        seed: of all choices.
        skip_unreadable: as in `find_images`.

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
    root = user_path(folder)
    files = find_images(root, skip_unreadable=skip_unreadable)
    if is_divided(root):
        sides = [files, find_images(root, "test", skip_unreadable=skip_unreadable)]
    else:
        if min(files.counts()) < 2:
            name = files.classes[files.counts().index(1)]
            raise ValueError(f"class {name!r} has 1 image; halves for training and test need 2")
        sides = [files.subset(half) for half in train_val_split(files.labels, 0.5, seed)]
    pairs = zip(sides[0].counts(), sides[1].counts(), strict=True)
    most = [min(*pair, per_class or max(pair)) for pair in pairs]
    train, test = (side.subset(capped_subset(side.labels, most, seed)) for side in sides)
    return train, test


def _parts(root: Path) -> tuple[Path, Path | None] | None:
    """The parts for training and testing of a divided folder, else None."""
    folders = (
        {path.name.lower(): path for path in sorted(root.iterdir()) if _is_class(path)}
        if root.is_dir()
        else {}
    )
    train, test = (
        next((folders[name] for name in names if name in folders), None)
        for names in (_TRAIN, _TEST)
    )
    if train is None:
        return None
    if any(_is_class(path) for path in train.iterdir()):
        return (train, test) if test is not None or len(folders) == 1 else None
    if set(folders) <= {*_TRAIN, *_TEST} and len(folders) > 1:
        raise ValueError(
            f"{root}: {train.name}/ holds no class folders; put each class's images into its own"
        )
    return None  # a class of that name


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__MACOSX"))


def _class_names(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(path.name for path in folder.iterdir() if _is_class(path)))
    if not classes:
        raise ValueError(f"{folder} holds no class folders; put each class's images into its own")
    return classes


def _image_paths(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Lists all image files below the class folders, sorted, and the label of each."""
    paths, codes = [], []
    for label, name in enumerate(classes):
        files = sorted(_walk(folder / name, ()), key=lambda path: path.as_posix())
        if not files:
            raise ValueError(
                f"{folder / name} is an empty class: no file ends in {', '.join(FORMATS)}; "
                "add images or remove the folder"
            )
        paths += files
        codes += [label] * len(files)
    return paths, torch.tensor(codes)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Image files below a folder, through symbolic links, too, but not in a circle."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        return
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            if _is_class(path):
                yield from _walk(path, (*above, here))
        elif path.suffix.lower() in FORMATS and not path.name.startswith("."):
            yield path


def _content(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe or device might never end
        raise ValueError("a broken link, or no regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
