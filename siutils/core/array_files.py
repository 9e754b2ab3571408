"""Features and labels from files in the forms that people have. No file can run code."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from siutils.core.files import user_path
from siutils.core.inputs import column_names, in_order
from siutils.core.tables import (
    LABEL_NAMES,
    InputError,
    Samples,
    label_column,
    read_arrow,
    read_lines,
    read_text_table,
    text_suffix,
)

FEATURE_NAMES = (
    "features", "feature", "feats", "feat", "x", "embeddings", "embedding", "embeds", "emb",
    "img_emb", "image_embeds", "data", "vectors", "representations",
)  # fmt: skip
_TEXT, _ARROW = (".csv", ".tsv", ".txt"), (".parquet", ".feather", ".arrow")
_ARRAYS = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".safetensors")
_KNOWN = (*_TEXT, *_ARROW, *_ARRAYS)
_PICKLES = (".pkl", ".pickle", ".joblib")
_MAGIC = {  # beginnings of files, for what comes without a name
    b"\x93NUMPY": ".npy", b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\x89HDF": ".h5",
    b"\x1f\x8b": ".csv.gz", b"BZh": ".csv.bz2", b"\xfd7zXZ": ".csv.xz",
}  # fmt: skip


def read_samples(path: str | os.PathLike[str], label: str | None = None) -> Samples:
    """Reads the features of a file, and its labels if it holds them.

    * ``.npy``: the features, memory-mapped.
    * ``.npz .pt .pth .h5 .safetensors``: arrays under usual names, such as ``features`` and
      ``labels``, ``X`` and ``y``, ``embeddings`` and ``targets``, also nested or as lists of
      batches; or one array, the features; or a matrix and a vector of the same length.
    * ``.csv .tsv .txt`` with a header, also compressed, and ``.parquet .feather .arrow``: see
      `siutils.core.tables`.
    * A folder of shards, all of one of these formats, in the order of the numbers in their names.
    * ``-``: one of these from standard input.

    Args:
        path: the file; its suffix names its format.
        label: column or array of the labels.

    Raises:
        InputError: the file does not exist, has another suffix, is damaged or holds no features; or
            it cannot be told which column or array is what.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "two.csv"
    ...     _ = file.write_text("a,b,label\\n1,2,0\\n3,4,1\\n")
    ...     samples = read_samples(file)
    >>> samples.features.to_numpy().tolist(), samples.labels.tolist()
    ([[1, 2], [3, 4]], ['0', '1'])
    """
    if os.fspath(path) == "-":
        return _from_stdin(label)
    source = user_path(path)
    if source.is_dir():
        return _from_shards(source, label)
    samples = _read(source, label)
    if samples.features is None:
        raise InputError(f"{path}: no features in it")
    return samples


def read_labels(path: str | os.PathLike[str], n: int, label: str | None = None) -> Samples:
    """Reads the labels of n samples from a file of `read_samples`, or ``.txt`` or ``.json``.

    In ``.txt`` each line is a label, in ``.json`` there is a list; ``.csv`` may lack a header.

    Raises:
        InputError: as in `read_samples`, or the file holds no labels.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "y.txt").write_text("cat\\ndog\\n")
    ...     read_labels(Path(folder) / "y.txt", 2).labels.tolist()
    ['cat', 'dog']
    """
    source = user_path(path)
    if text_suffix(source) in (*_TEXT, ".json"):
        with _errors(source):
            return _json(source) if text_suffix(source) == ".json" else _column(source, n, label)
    samples = _read(source, label)
    if samples.labels is None:
        shape = np.shape(samples.features)
        if len(shape) > 1 and shape[-1] > 1:
            raise InputError(f"{path}: no labels in it")
        samples = Samples(None, samples.features)
    return samples


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns what reading a file may raise into an `InputError` that names the file."""
    try:
        if not path.is_file():
            raise InputError("no such file")
        yield
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or more than arrays in it; nothing was run") from error
    except (OSError, ValueError, EOFError, KeyError, RuntimeError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        start = "" if isinstance(error, InputError) else "cannot be read: "
        raise InputError(f"{path}: {start}{message[0]}") from error


def _read(path: Path, label: str | None) -> Samples:
    suffix = text_suffix(path)
    if suffix in _PICKLES:
        raise InputError(
            f"{path}: a pickle can run code and is never read; write it by numpy.savez"
        )
    if suffix not in _KNOWN:
        raise InputError(f"{path}: the suffix must be one of {', '.join(_KNOWN)}")
    with _errors(path):
        if suffix in _TEXT:
            return read_text_table(path, label)
        if suffix in _ARROW:
            return read_arrow(path, label)
        return _picked(_content(path, suffix), label)


def _content(path: Path, suffix: str) -> Any:
    if suffix == ".npy":
        # mode "c" copies on write: the file stays, and torch does not warn of read-only memory
        return np.load(path, mmap_mode="c", allow_pickle=False)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if suffix in (".pt", ".pth"):
        from siutils.core.foreign import load_foreign  # needs torch

        return load_foreign(path)
    package = "safetensors" if suffix == ".safetensors" else "h5py"
    try:
        if package == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import h5py
    except ImportError:
        raise InputError(f"this needs the package {package}: pip install siutils[files]") from None
    with h5py.File(path) as file:
        nodes: dict[str, Any] = {}
        file.visititems(nodes.__setitem__)
        arrays = {name: node for name, node in nodes.items() if isinstance(node, h5py.Dataset)}
        return {name.replace("/", "."): array[()] for name, array in arrays.items()}


def _picked(content: Any, label: str | None) -> Samples:
    """Features and labels among arrays, by their names, else by their shapes."""
    arrays = dict(_flat(_by_name(content)))
    if len(arrays) == 1 and label is None:
        ((name, array),) = arrays.items()
        return Samples(None, array) if _last(name) in LABEL_NAMES else Samples(array)
    features = [name for name in arrays if _last(name) in FEATURE_NAMES and name != label]
    labels = [name for name in arrays if _last(name) in LABEL_NAMES]
    if label is not None:
        labels = [str(label_column(list(arrays), label))]
    if not features:
        features = [name for name in arrays if _ndim(arrays[name]) == 2 and name not in labels]
    if not labels and all(re.fullmatch(r"(arr_)?\d+", name) for name in arrays):  # without names
        labels = [name for name in arrays if _ndim(arrays[name]) == 1]
    for names, hint in ((features, "features: keep one"), (labels, "labels: see --label-column")):
        if len(names) > 1:
            raise InputError(f"{', '.join(map(repr, names))} may all be the {hint}")
    if not features and not labels:
        raise InputError(f"no features in it; it holds {list(arrays)[:9]}: call them 'features'")
    first, second = (arrays[names[0]] if names else None for names in (features, labels))
    return Samples(first, second)


def _by_name(content: Any) -> Mapping[str, Any]:
    if isinstance(content, Mapping):
        return content
    if isinstance(content, list | tuple) and content:
        if all(isinstance(value, list | tuple) and len(value) == 2 for value in content):
            return {"features": [v[0] for v in content], "labels": [v[1] for v in content]}
        if isinstance(content, tuple) and [_ndim(value) for value in content] == [2, 1]:
            return {"features": content[0], "labels": content[1]}
    return {"features": content}


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif _ndim(value) > 0:
            yield f"{above}{name}", value


def _ndim(value: Any) -> int:
    """Axes of an array; of a list, which may have batches of different sizes, those of a batch."""
    if isinstance(value, list | tuple):
        return max(1, _ndim(value[0])) if value else 0
    return getattr(value, "ndim", 0)


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _from_shards(folder: Path, label: str | None) -> Samples:
    files = [path for path in folder.iterdir() if text_suffix(path) in _KNOWN and path.is_file()]
    kinds = sorted({text_suffix(path) for path in files if not path.name.startswith((".", "_"))})
    if len(kinds) != 1:
        raise InputError(f"{folder}: shards must be of one format; there are {kinds or 'none'}")
    files.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)] or [path.name])
    parts = [_read(path, label) for path in files]
    first, features = parts[0], []
    for part, path in zip(parts, files, strict=True):
        features.append(in_order(part.features, column_names(first.features), path.name))
        if np.shape(features[-1])[1:] != np.shape(first.features)[1:]:
            raise InputError(f"{path}: its features are not as many as those of {files[0].name}")
    labels = None if first.labels is None else np.concatenate([part.labels for part in parts])
    parts.clear()
    kind = np.result_type(*(np.asarray(part[:1]) for part in features))
    matrix, start = np.empty((sum(map(len, features)), np.shape(features[0])[1]), kind), 0
    names = column_names(features[0])
    while features:
        part = features.pop(0)  # gone as soon as it is copied
        matrix[start : start + len(part)] = part
        start += len(part)
    if names is None:
        return Samples(matrix, labels, None, first.written)
    import pandas as pd

    return Samples(pd.DataFrame(matrix, columns=names), labels, None, first.written)


def _from_stdin(label: str | None) -> Samples:
    content = sys.stdin.buffer.read()
    suffix = next((s for magic, s in _MAGIC.items() if content.startswith(magic)), ".csv")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"standard input{suffix}"
        file.write_bytes(content)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                torch = any(name.endswith("data.pkl") for name in archive.namelist())
            file = file.rename(file.with_suffix(".pt" if torch else ".npz"))
        samples = _read(file, label)
    return samples  # also a memory map: its file lives on without a name


def _json(path: Path) -> Samples:
    content = json.loads("\n".join(read_lines(path)))
    if isinstance(content, dict):
        content = next((content[name] for name in content if name.lower() in LABEL_NAMES), content)
    if not isinstance(content, list):
        raise InputError("a list of labels was expected, alone or under 'labels'")
    return Samples(None, content)


def _column(path: Path, n: int, label: str | None) -> Samples:
    """Labels of a text with one column, with a header or without; or of a table."""
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    several = any(mark in line for line in lines[:1] for mark in ",;\t")
    if label is not None or (several and text_suffix(path) != ".txt"):
        samples = read_text_table(path, label)
        if samples.labels is None:
            raise InputError("no column of labels in it: name it with --label-column")
        return samples
    if len(lines) == n + 1 or (
        lines and len(lines) != n and lines[0].strip().lower() in LABEL_NAMES
    ):
        lines = lines[1:]
    return Samples(None, np.array([line.strip().strip('"') for line in lines]), written=True)
