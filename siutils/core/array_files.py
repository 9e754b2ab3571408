"""Features and labels from files: .npz, .npy, .pt, .parquet, .csv. No file can run code."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = (".npz", ".npy", ".pt", ".parquet", ".csv")
_ONLY = ""  # key of an array that has no name


class InputError(ValueError):
    """A file that cannot be read or lacks what was asked for; the message names the file."""


def read_features(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Features of a file, and its labels where it holds them.

    ``.npz`` and ``.pt`` hold arrays named ``features`` and ``labels``, or one array, the features;
    ``.npy`` holds the features and is memory-mapped; in ``.csv`` (with a header) and ``.parquet``
    the column ``label`` holds the labels, every other column a feature.

    Args:
        path: the file; its suffix says what it is.

    Returns:
        Features, NumPy or torch ``(N, D)``, and labels ``(N,)`` or None. Only that they are there
        is checked, not their shapes.

    Raises:
        InputError: no such file, another suffix, a damaged file, no features in it, a feature
            column that is not numeric, or Parquet without pyarrow.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "two.csv"
    ...     _ = file.write_text("a,b,label\\n1,2,0\\n3,4,1\\n")
    ...     read_features(file)
    (array([[1, 2],
           [3, 4]]), array([0, 1]))
    """
    found = _arrays(Path(path))
    features = found.get("features", found.get(_ONLY))
    if features is None:
        raise InputError(f"{path}: no features in it; it holds {_names(found)}")
    if not isinstance(features, np.ndarray) and hasattr(features, "columns"):
        for column, kind in features.dtypes.items():
            if kind.kind not in "iuf":
                raise InputError(f"{path}: column {column!r} must be numeric; it is {kind}")
        features = _writable(features)
    return features, found.get("labels")


def read_labels(path: str | os.PathLike[str]) -> Any:
    """Labels of a file: its ``labels`` or column ``label``, else its only array or column.

    Raises:
        InputError: as `read_features`, or no labels in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "y.npy", [3, 1])
    ...     print(read_labels(Path(folder) / "y.npy"))
    [3 1]
    """
    found = _arrays(Path(path))
    if "labels" in found:
        return found["labels"]
    if _ONLY in found:
        return found[_ONLY]
    table = found.get("features")
    if table is not None and hasattr(table, "columns") and len(table.columns) == 1:
        return _writable(table.iloc[:, 0])
    raise InputError(f"{path}: no labels in it; it holds {_names(found)}")


def label_codes(*labels: Any) -> list[Any]:
    """Labels of several sets in one coding: class names become numbers, integers stay.

    >>> [codes.tolist() for codes in label_codes(np.array(["cat", "ant"]), np.array(["cat"]))]
    [[1, 0], [1]]
    """
    arrays = [np.asarray(each) for each in labels]
    if all(array.dtype.kind in "OUST" for array in arrays):
        names = np.unique(np.concatenate([array.astype(str) for array in arrays]))
        return [np.searchsorted(names, array.astype(str)) for array in arrays]
    return arrays


def _arrays(path: Path) -> dict[str, Any]:
    """What a file holds, by name; a table's features remain a DataFrame."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: the suffix must be one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if suffix in (".npy", ".npz"):
            return _numpy(path)
        return _torch(path) if suffix == ".pt" else _table(path, suffix)
    except (OSError, ValueError, EOFError, KeyError, RuntimeError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read: {message[0]}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or more than arrays in it; nothing was run") from error


def _numpy(path: Path) -> dict[str, Any]:
    # copy on write: memory-mapped, never written, and torch takes it without a warning
    found = np.load(path, mmap_mode="c", allow_pickle=False)
    if isinstance(found, np.ndarray):
        return {_ONLY: found}
    with found:
        return _named({name: found[name] for name in found.files})


def _torch(path: Path) -> dict[str, Any]:
    import torch

    with warnings.catch_warnings():  # what is not safe is an error, which says enough
        warnings.simplefilter("ignore")
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, torch.Tensor):
        return {_ONLY: found}
    if not isinstance(found, dict):
        raise ValueError(f"a tensor or a dict of tensors was expected, got {type(found).__name__}")
    return _named(found)


def _table(path: Path, suffix: str) -> dict[str, Any]:
    import pandas as pd

    if suffix == ".csv":
        frame = pd.read_csv(path)
        if all(_is_number(name) for name in frame.columns):
            raise ValueError("the first line must name the columns, but holds numbers")
    else:
        try:
            frame = pd.read_parquet(path, engine="pyarrow")
        except ImportError:
            raise ValueError("Parquet needs the package pyarrow: pip install pyarrow") from None
    found: dict[str, Any] = {}
    if "label" in frame:
        if frame["label"].isna().any():
            raise ValueError(f"label is missing in row {int(frame['label'].isna().argmax())}")
        found["labels"] = _writable(frame.pop("label"))
    if len(frame.columns):
        found["features"] = frame
    return found


def _named(arrays: dict[str, Any]) -> dict[str, Any]:
    if len(arrays) == 1 and not arrays.keys() & {"features", "labels"}:
        return {_ONLY: next(iter(arrays.values()))}
    return arrays


def _writable(table: Any) -> np.ndarray:
    """As an array that is copied only if pandas keeps it read-only, of which torch would warn."""
    return np.require(table.to_numpy(), requirements="W")


def _names(found: dict[str, Any]) -> str:
    return ", ".join(repr(name) if name else "one array" for name in found) or "nothing"


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
