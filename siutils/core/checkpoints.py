"""Checkpoints: files that hold tensors and plain values, never code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from siutils.core.files import replacing


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes tensors and plain values to `path`, whole or not at all.

    Raises:
        CannotWrite: see `replacing`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint({"epoch": 3}, Path(folder) / "last.pt")
    ...     load_checkpoint(Path(folder) / "last.pt", ("epoch",), torch.device("cpu"))
    {'epoch': 3}
    """
    with replacing(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # how PyTorch's archive writer reports a full disk
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path, keys: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """Reads a checkpoint with `weights_only=True`: a file that contains code is refused.

    Raises:
        RuntimeError: the file is damaged, refused, or lacks one of the keys.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint({"weights": torch.ones(2)}, Path(folder) / "best.pt")
    ...     load_checkpoint(Path(folder) / "best.pt", ("weights",), torch.device("cpu"))
    {'weights': tensor([1., 1.])}
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        missing = [key for key in keys if key not in content]
        if missing:
            raise KeyError(f"it lacks {', '.join(missing)}")
    except Exception as error:  # pickle, zip and torch errors, one for each kind of damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"cannot load the checkpoint {path}: {reason} Delete the folder {path.parent} to train "
            "again from the start"
        ) from error
    return content
