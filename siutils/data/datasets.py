"""Data sets by name: digits, CIFAR-10/100, image folders, and how each is normalized."""

import hashlib
import http.client
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import calculate_md5, check_integrity, extract_archive

from siutils.core import check_positive, data_dir, train_val_split, user_path
from siutils.data.folders import find_images, is_divided
from siutils.data.images import ImageSet, Transform

DATASETS = ("digits", "cifar10", "cifar100")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Channel mean and standard deviation of the training images, scaled to [0, 1], at 32×32.
_STATISTICS = {
    "digits": ((0.30534,) * 3, (0.32348,) * 3),
    "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": ((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
}
_CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}
# Data without a test set of their own are split once and for all: 20 % test, stratified, seed 0.
_TEST_FRACTION, _TEST_SEED = 0.2, 0


def load_dataset(
    name: str | Path, split: str = "train", root: str | Path | None = None, image_size: int = 32
) -> ImageSet:
    """Loads a data set; downloads CIFAR where it is absent.

    Args:
        name: ``"digits"`` (bundled with scikit-learn), ``"cifar10"``, ``"cifar100"``, or the path
            of a folder: either ``train/`` and ``test/`` (or ``val/``) with one folder per class, or
            the class folders themselves. Digits and undivided folders are split once and for
            all, stratified 80/20 (seed 0).
        split: ``"train"`` or ``"test"``.
        root: folder that holds or receives the CIFAR files; None is `data_dir()`.
        image_size: side in pixels. Folders: shorter side resized, then center-cropped.

    Returns:
        uint8 images (N, 3, image_size, image_size) with labels, class names and checksum.

    Raises:
        ValueError: unknown name or split, an empty class folder, an unreadable image.
        FileNotFoundError: CIFAR is absent and cannot be downloaded; says what to put where.
        RuntimeError: a file of CIFAR has not the known checksum.

    >>> data = load_dataset("digits", "test")
    >>> data.images.shape, data.images.dtype
    (torch.Size([359, 3, 32, 32]), torch.uint8)
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    check_positive(image_size, "image_size")
    if name == "digits":
        return _load_digits(split, image_size)
    if name in _CIFAR:
        return _load_cifar(str(name), split, user_path(root or data_dir()), image_size)
    return _load_folder(_existing_folder(name), split, image_size)


def transform_for(name: str | Path) -> Transform:
    """Returns the normalization of a data set by its channel statistics; ImageNet's for a folder.

    Raises:
        ValueError: `name` is neither a known data set nor an existing folder.

    >>> transform_for("cifar100").mean
    (0.50708, 0.48655, 0.44092)
    """
    if name in _STATISTICS:
        return Transform(*_STATISTICS[str(name)])
    _existing_folder(name)
    return Transform(IMAGENET_MEAN, IMAGENET_STD)


def _load_digits(split: str, image_size: int) -> ImageSet:
    from sklearn.datasets import load_digits  # costs a second that other data sets need not pay

    digits = load_digits()
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 8×8 scans with values 0…16
    labels = torch.from_numpy(digits.target.astype(np.int64))
    chosen = _fixed_split(labels, split)
    images = _resized(torch.from_numpy(gray)[chosen, None].expand(-1, 3, -1, -1), image_size)
    checksum = hashlib.sha256(gray.tobytes() + labels.numpy().tobytes()).hexdigest()
    return ImageSet("digits", images, labels[chosen], tuple("0123456789"), checksum)


def _load_cifar(name: str, split: str, root: Path, image_size: int) -> ImageSet:
    source = _CIFAR[name]
    _provide_cifar(source, root)
    loaded = source(root, train=split == "train")
    images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
    files = source.train_list if split == "train" else source.test_list
    checksum = "-".join(md5 for _, md5 in files)
    labels = torch.tensor(loaded.targets, dtype=torch.int64)
    return ImageSet(name, _resized(images, image_size), labels, tuple(loaded.classes), checksum)


def _provide_cifar(source: type[CIFAR10], root: Path) -> None:
    """Makes sure that every file of the data set lies in `root` and has the known md5.

    Unpacks into a temporary folder and moves whole files, so that a killed download or unpacking
    leaves nothing that looks like data. A file that is there is never replaced.
    """
    known = dict(source.train_list + source.test_list)
    known[source.meta["filename"]] = source.meta["md5"]
    folder, archive = root / source.base_folder, root / source.filename
    missing = [file for file, md5 in known.items() if not _verified(folder / file, md5)]
    if not missing:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as partial:
            if _verified(archive, source.tgz_md5):
                extract_archive(str(archive), partial)
            else:
                source(partial, download=True)
            folder.mkdir(exist_ok=True)
            for file in missing:
                (Path(partial) / source.base_folder / file).replace(folder / file)
    except _CorruptFile:
        raise
    except (OSError, EOFError, RuntimeError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{source.__name__} is not in {root} and could not be fetched ({error}). Put "
            f"{source.filename} (md5 {source.tgz_md5}, from {source.url}) into {root}, which must "
            "be writable to unpack it, or set SIUTILS_DATA to a folder that holds "
            f"{source.base_folder}/"
        ) from error


class _CorruptFile(RuntimeError):
    """A file of a known data set whose checksum is not the published one."""


def _verified(path: Path, md5: str) -> bool:
    """True if the file is there; raises an error if its md5 is wrong, and never replaces it."""
    if not path.exists():
        return False
    if not check_integrity(path, md5):
        actual = calculate_md5(path) if path.is_file() else "no regular file"
        raise _CorruptFile(
            f"{path} is corrupt: md5 expected {md5}, found {actual}. Remove it to fetch it "
            "again, or set SIUTILS_DATA to a folder with an intact copy"
        )
    return True


def _existing_folder(name: str | Path) -> Path:
    folder = user_path(name)
    if not folder.is_dir():
        raise ValueError(
            f"name: no data set and no existing folder {str(name)!r}; known are "
            f"{', '.join(DATASETS)}; a path must be that of a folder of class folders"
        )
    return folder


def _load_folder(folder: Path, split: str, image_size: int) -> ImageSet:
    if is_divided(folder):
        return find_images(folder, split).load(image_size)
    files = find_images(folder)
    return files.load(image_size, chosen=_fixed_split(files.labels, split))


def _fixed_split(labels: Tensor, split: str) -> Tensor:
    train, test = train_val_split(labels, _TEST_FRACTION, _TEST_SEED)
    return train if split == "train" else test


def _resized(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 images, bilinear, in chunks, as float copies of all would not fit."""
    if images.shape[2:] == (size, size):
        return images.contiguous()
    out = images.new_empty(len(images), 3, size, size)
    for source, target in zip(images.split(1024), out.split(1024), strict=True):
        resized = F.interpolate(source.float(), (size, size), mode="bilinear", antialias=True)
        target.copy_(resized.round().clamp(0, 255))
    return out
