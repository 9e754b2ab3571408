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
_ONLY = ""  # key of the only array in a file, unless it is named features or labels


class InputError(ValueError):
    """A file cannot be read or lacks features or labels; the message names the file."""


def read_features(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Reads the features of a file, and its labels if it holds them.

    ``.npz`` and ``.pt`` hold arrays named ``features`` and ``labels``, or one array, the features;
    ``.npy`` holds the features and is memory-mapped; in ``.csv`` (with a header) and ``.parquet``
    the column ``label`` holds the labels, every other column a feature.

    Args:
        path: the file; its suffix names its format.

    Returns:
        Features, NumPy or torch ``(N, D)``, and labels ``(N,)`` or None. The shapes are not
        checked.

    Raises:
        InputError: the file does not exist, has another suffix, is damaged or holds no features;
            a feature column is not numeric; or pyarrow is missing for Parquet.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "two.csv"
    ...     _ = file.write_text("a,b,label\\n1,2,0\\n3,4,1\\n")
    ...     read_features(file)
    (array([[1, 2],
           [3, 4]]), array([0, 1]))
    """
    arrays = _arrays(Path(path))
    features = arrays.get("features", arrays.get(_ONLY))
    if features is None:
        raise InputError(f"{path}: no features in it; it holds {_names(arrays)}")
    if hasattr(features, "columns"):
        for column, kind in features.dtypes.items():
            if kind.kind not in "iuf":
                raise InputError(f"{path}: column {column!r} must be numeric; it is {kind}")
        features = _writable(features)
    return features, arrays.get("labels")


def read_labels(path: str | os.PathLike[str]) -> Any:
    """Reads the labels of a file: ``labels`` or column ``label``, else its only array or column.

    Raises:
        InputError: as in `read_features`, or the file holds no labels.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "y.npy", [3, 1])
    ...     print(read_labels(Path(folder) / "y.npy"))
    [3 1]
    """
    arrays = _arrays(Path(path))
    for name in ("labels", _ONLY):
        if name in arrays:
            return arrays[name]
    table = arrays.get("features")
    if table is not None and len(getattr(table, "columns", ())) == 1:
        return _writable(table.iloc[:, 0])
    raise InputError(f"{path}: no labels in it; it holds {_names(arrays)}")


def label_codes(*labels: Any) -> list[Any]:
    """Gives the labels of several sets one coding: class names become numbers, integers stay.

    >>> [codes.tolist() for codes in label_codes(np.array(["cat", "ant"]), np.array(["cat"]))]
    [[1, 0], [1]]
    """
    arrays = [np.asarray(each) for each in labels]
    if all(array.dtype.kind in "OUST" for array in arrays):
        names = np.unique(np.concatenate([array.astype(str) for array in arrays]))
        return [np.searchsorted(names, array.astype(str)) for array in arrays]
    return arrays


def _arrays(path: Path) -> dict[str, Any]:
    """Returns the arrays of a file by name; the features of a table stay a DataFrame."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: the suffix must be one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if suffix in (".npy", ".npz"):
            arrays = _numpy(path)
        else:
            arrays = _torch(path) if suffix == ".pt" else _table(path, suffix)
    except (OSError, ValueError, EOFError, KeyError, RuntimeError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read: {message[0]}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or more than arrays in it; nothing was run") from error
    if len(arrays) == 1 and not arrays.keys() & {"features", "labels"}:
        return {_ONLY: next(iter(arrays.values()))}
    return arrays


def _numpy(path: Path) -> dict[str, Any]:
    # mode "c" copies on write: the file never changes, and torch does not warn of read-only memory
    content = np.load(path, mmap_mode="c", allow_pickle=False)
    if isinstance(content, np.ndarray):
        return {_ONLY: content}
    with content:
        return dict(content)


def _torch(path: Path) -> dict[str, Any]:
    import torch

    with warnings.catch_warnings():  # unsafe content raises an error, which suffices
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        return {_ONLY: content}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"a tensor or a dict of tensors was expected, got {kind}")
    return content


def _table(path: Path, suffix: str) -> dict[str, Any]:
    import pandas as pd

    if suffix == ".csv":
        frame = pd.read_csv(path)
        if pd.to_numeric(pd.Series(frame.columns), errors="coerce").notna().all():
            raise ValueError("the first line must name the columns, but holds numbers")
    else:
        try:
            frame = pd.read_parquet(path, engine="pyarrow")
        except ImportError:
            raise ValueError("Parquet needs the package pyarrow: pip install pyarrow") from None
    arrays: dict[str, Any] = {}
    if "label" in frame:
        if frame["label"].isna().any():
            raise ValueError(f"label is missing in row {int(frame['label'].isna().argmax())}")
        arrays["labels"] = _writable(frame.pop("label"))
    if len(frame.columns):
        arrays["features"] = frame
    return arrays


def _writable(table: Any) -> np.ndarray:
    """Returns the values as an array; copies it if it is read-only, because torch warns of that."""
    return np.require(table.to_numpy(), requirements="W")


def _names(arrays: dict[str, Any]) -> str:
    return ", ".join(repr(name) if name else "one array" for name in arrays) or "nothing"
