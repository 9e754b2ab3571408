"""Features in files: one .npy file per layer and pooling, written in order, read memory-mapped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from siutils.core import CannotWrite
from siutils.features.pooling import Job

SCRATCH = ".scratch"  # beside a file that is to be deleted after use


def job_file(folder: Path, job: Job, suffix: str = "npy") -> Path:
    """Names the file of a job in a folder.

    >>> job_file(Path(), ("layer1.0", "mean")).name
    'layer1.0@mean.npy'
    """
    layer, pool = job
    return folder / f"{quote(layer, safe='')}{'' if pool is None else f'@{pool}'}.{suffix}"


def check_room(folder: Path, needed: int) -> None:
    """Refuses to fill a disk that has too little room for `needed` bytes.

    Raises:
        CannotWrite: says how many bytes are needed and free.

    >>> check_room(Path(), 0)
    """
    free = free_bytes(folder)
    if needed > free:
        raise CannotWrite(
            f"the features need {needed:,} bytes in {folder}, but {free:,} are free there. Free "
            "some space, choose another cache folder, fewer images or layers, or pool them"
        )


def free_bytes(folder: Path) -> int:
    """Counts the free bytes on the disk of a folder, which need not exist yet.

    >>> free_bytes(Path("new/folder")) > 0
    True
    """
    there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    return shutil.disk_usage(there).free


def write_header(handle: IO[bytes], shape: tuple[int, int]) -> None:
    """Writes the header of a .npy file of float32 with this shape.

    >>> import io
    >>> write_header(file := io.BytesIO(), (1, 2))
    >>> np.load(io.BytesIO(file.getvalue() + bytes(8))).tolist()
    [[0.0, 0.0]]
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)


def mark_scratch(files: Iterable[Path]) -> None:
    """Marks files, before they are written, for deletion after use, even by a later run.

    >>> mark_scratch([])
    """
    for file in files:
        if not file.exists():
            with contextlib.suppress(OSError):  # writing the file itself says what is wrong
                file.parent.mkdir(parents=True, exist_ok=True)
                file.with_suffix(SCRATCH).touch()


def remove_scratch(files: Iterable[Path]) -> None:
    """Deletes those of the files that were marked; files that may be used again stay.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = [Path(folder) / name for name in ("mine.npy", "yours.npy")]
    ...     files[1].touch()
    ...     mark_scratch(files)
    ...     files[0].touch()
    ...     remove_scratch(files)
    ...     [file.name for file in Path(folder).iterdir()]
    ['yours.npy']
    """
    for file in files:
        if file.with_suffix(SCRATCH).exists():
            file.unlink(missing_ok=True)
            file.with_suffix(SCRATCH).unlink(missing_ok=True)


def memory_map(file: Path, n: int) -> Tensor:
    """Maps the n float32 rows of a .npy file into memory; writing to them changes no file.

    Raises:
        RuntimeError: the file is damaged or holds something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "x.npy", np.ones((2, 1), np.float32))
    ...     memory_map(Path(folder) / "x.npy", 2).shape
    torch.Size([2, 1])
    """
    try:
        array = np.load(file, mmap_mode="c")  # copy on write: the file itself cannot be changed
        if array.dtype != np.float32 or array.ndim != 2 or len(array) != n:
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
    except (ValueError, EOFError) as error:
        raise RuntimeError(
            f"cannot read the features {file}: {error}. Delete this file to compute them again"
        ) from error
    return torch.from_numpy(array)
