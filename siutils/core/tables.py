"""Tables of samples, as text or in Arrow's formats: which column is what, and their values.

One rule for all. The column of the labels is the one that was named, or the only one with such a
name as ``label`` or ``target``. A column of lists holds the features; without one, every column of
numbers is a feature. An index that pandas saved, and columns of unique numbers called ``id`` or
``index``, are no features; neither are file names, which name the samples. Everything else is
refused.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siutils.core.checks import did_you_mean

LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes", "category", "y")
_INDEX_NAMES = ("", "index", "id", "idx", "sample_id", "image_id")
_FILE_NAMES = (
    "file", "filename", "file_name", "path", "filepath", "image", "image_path", "key", "url",
)  # fmt: skip
_MAYBE_LABELS = (  # taken for nothing unless named
    "class_id", "class_name", "label_id", "label_name", "fine_label", "coarse_label", "target_name",
    "category_id", "category_name", "split", "fold",
)  # fmt: skip
_PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0")
_FILE = re.compile(r"[^\n]*(/|\\|\.\w{2,5})[^\n]*")
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_HEAD = 2**16  # bytes that show how a text is written


class InputError(ValueError):
    """A file cannot be read or lacks features or labels; the message names the file."""


class Samples(NamedTuple):
    """What a file holds about N samples.

    Attributes:
        features: ``(N, D)``, or a DataFrame where features have names; None in a file of labels.
        labels: ``(N,)``, or None.
        names: of the samples, such as file names, or None.
        written: whether labels are text as it was written, for `siutils.core.parse_labels`.
    """

    features: Any
    labels: Any = None
    names: Any = None
    written: bool = False


def text_suffix(path: Path) -> str:
    """The suffix of a file, without that of its compression, in lower case.

    >>> text_suffix(Path("a.CSV.gz")), text_suffix(Path("b.npy"))
    ('.csv', '.npy')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = len(suffixes) > 1 and suffixes[-1] in _OPEN
    return suffixes[-2] if compressed else "".join(suffixes[-1:])


def read_lines(path: Path) -> list[str]:
    """Lines of a text, compressed or not, in UTF-8 or UTF-16 with a byte-order mark, or Latin-1.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.txt").write_bytes("é\\nb\\n".encode("latin-1"))
    ...     read_lines(Path(folder) / "a.txt")
    ['é', 'b']
    """
    with _OPEN.get(path.suffix.lower(), open)(path, "rb") as file:
        content = file.read()
    return content.decode(_encoding(content)).splitlines()


def read_text_table(path: Path, label: str | None) -> Samples:
    """Samples from a text with a header, separated by commas, semicolons, tabs or bars.

    Decimal commas are understood where commas do not separate.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.csv").write_text("x;class\\n0,5;01\\n1,5;1\\n")
    ...     samples = read_text_table(Path(folder) / "a.csv", None)
    >>> samples.features["x"].tolist(), samples.labels.tolist()
    ([0.5, 1.5], ['01', '1'])
    """
    with _OPEN.get(path.suffix.lower(), open)(path, "rb") as file:
        head = file.read(_HEAD)
    encoding = _encoding(head)
    lines = head.decode(encoding, errors="ignore").lstrip("\ufeff").splitlines()
    separator = _separator(lines[0]) if lines else ","
    names = next(csv.reader(lines[:1], delimiter=separator), [])
    if not names or all(_is_number(name, separator) for name in names):
        what = "but holds numbers" if names else "but there is none"
        raise InputError(f"the first line must name the columns, {what}")
    label = label_column(names, label)
    import pandas as pd

    place = None if label is None else names.index(label)
    how: dict[str, Any] = {"sep": separator, "encoding": encoding, "index_col": False}
    labels = None
    if place is not None:  # as they were written: "NA" and "01" are names
        column = pd.read_csv(path, usecols=[place], dtype=str, keep_default_na=False, **how)
        labels = column.iloc[:, 0].to_numpy(object)
    commas = separator != "," and _has_decimal_commas(lines[1:], separator)
    rest = [i for i in range(len(names)) if i != place]
    frame = pd.read_csv(path, usecols=rest, decimal="," if commas else ".", **how)
    frame.columns = [names[i] for i in rest]
    return _sorted_out(frame, labels, written=True)


def read_arrow(path: Path, label: str | None) -> Samples:
    """Samples from Parquet, Feather, or Arrow's files and streams; needs the package pyarrow.

    >>> import tempfile
    >>> import pandas as pd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.parquet"
    ...     pd.DataFrame({"vector": [[1, 2], [3, 4]], "label": ["a", "b"]}).to_parquet(file)
    ...     read_arrow(file, None).features.tolist()
    [[1, 2], [3, 4]]
    """
    schema, n, batches = _opened(path)
    label = label_column(schema.names, label)
    lists = [field.name for field in schema if field.name != label and _is_list(field.type)]
    if len(lists) > 1:
        raise InputError(
            f"columns {', '.join(map(repr, lists))} all hold lists; keep that of the features"
        )
    columns = lists or [name for name in schema.names if name != label]
    parts: dict[str, list[Any]] = {name: [] for name in (*columns, *([label] if label else ()))}
    matrix, start = None, 0
    for batch in batches(list(parts), 2**22 // (1024 if lists else len(parts)) + 1):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name not in lists:
                parts[name].append(column.to_pandas())
                continue
            rows = _rows(column, name)
            matrix = np.empty((n, rows.shape[1]), rows.dtype) if matrix is None else matrix
            if rows.shape[1] != matrix.shape[1]:
                raise InputError(f"column {name!r} must hold lists of equally many numbers")
            matrix[start : start + len(rows)] = rows
            start += len(rows)
    labels = _joined(parts[label]).to_numpy() if label else None
    if lists:
        return Samples(matrix, labels)
    import pandas as pd

    frame = pd.DataFrame({name: _joined(parts[name]) for name in columns})
    return _sorted_out(frame, labels)


def _opened(path: Path) -> tuple[Any, int, Callable[[list[str], int], Iterable[Any]]]:
    """Schema, number of rows, and what gives batches of columns of so many rows."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError("this needs the package pyarrow: pip install siutils[files]") from None
    if path.suffix.lower() == ".parquet":
        file = parquet.ParquetFile(path)
        return (
            file.schema_arrow,
            file.metadata.num_rows,
            lambda columns, rows: file.iter_batches(rows, columns=columns),
        )
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    return (
        table.schema,
        table.num_rows,
        lambda columns, rows: table.select(columns).to_batches(rows),
    )


def _joined(parts: list[Any]) -> Any:
    import pandas as pd

    return pd.concat(parts, ignore_index=True)


def label_column(names: Sequence[str], label: str | None) -> str | None:
    """The column of the labels: the one that was named, else the one whose name says so.

    Raises:
        InputError: there is none of that name, several may be it, or a name is there twice.

    >>> label_column(["a", "Label"], None), label_column(["x", "y"], None)
    ('Label', None)
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"column {twice[0]!r} is there twice")
    if label is not None:
        if label not in names:
            raise InputError(
                f"no column {label!r}{did_you_mean(label, names)} There are {list(names)[:9]}"
            )
        return label
    known = LABEL_NAMES if "x" not in names else LABEL_NAMES[:-1]  # beside x, y is a coordinate
    likely = [name for name in names if name.strip().lower() in (*known, *_MAYBE_LABELS)]
    if len(likely) > 1 or any(name.strip().lower() in _MAYBE_LABELS for name in likely):
        raise InputError(
            f"columns {', '.join(map(repr, likely))} may all be the labels: name one with "
            "--label-column, or drop it"
        )
    return likely[0] if likely else None


def _sorted_out(frame: Any, labels: Any, written: bool = False) -> Samples:
    """Takes indices and names out of the features, or refuses what may be either."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    names = None
    for column in frame.columns:
        values, lower = frame[column], str(column).strip().lower()
        if lower in _INDEX_NAMES or _PANDAS_INDEX.fullmatch(str(column)):
            if not values.is_unique:
                raise InputError(
                    f"column {column!r} may be an index or a label: drop it, or name it with "
                    "--label-column"
                )
        elif is_numeric_dtype(values) or is_bool_dtype(values):
            continue
        elif lower not in _FILE_NAMES and not values.astype(str).str.fullmatch(_FILE).all():
            raise InputError(
                f"column {column!r} must be numeric to be a feature, but holds {values.iloc[0]!r}: "
                "drop it, or name it with --label-column"
            )
        names = values.to_numpy() if names is None or lower not in _INDEX_NAMES else names
        frame = frame.drop(columns=column)
    return Samples(frame if len(frame.columns) else None, labels, names, written)


def _rows(column: Any, name: str) -> np.ndarray:
    """Lists of equal length as a matrix (rows, D)."""
    if column.null_count:
        raise InputError(f"column {name!r} lacks the list of {column.null_count} rows")
    flat = column.flatten()
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if flat.null_count or len(lengths) > 1:
        raise InputError(f"column {name!r} must hold lists of equally many numbers")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(content) - 4 or len(content) != _HEAD:  # else a character was cut
            return "latin-1"
    return "utf-8-sig"


def _separator(line: str) -> str:
    return max(
        ",;\t|", key=lambda mark: (len(next(csv.reader([line], delimiter=mark))), mark == ",")
    )


def _has_decimal_commas(lines: Sequence[str], separator: str) -> bool:
    cells = [cell.strip() for line in lines[:-1] or lines for cell in line.split(separator)]
    return any(re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", cell) for cell in cells)


def _is_number(text: str, separator: str) -> bool:
    try:
        float(text.replace(",", ".") if separator != "," else text)
    except ValueError:
        return False
    return text.strip().lower() not in ("nan", "inf", "infinity")
