"""Labels in whatever form they come: integers stay as they are, anything else becomes names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MISSING = {"na", "n/a", "nan", "none", "null", "<na>", "nat"}


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of N samples, one class each.

    Attributes:
        codes: int64 ``(N,)`` on the CPU: the labels, where they are integers, else places in names.
        names: the different labels in ascending order, a NumPy array ``(C,)`` of strings, booleans,
            dates or integers beyond int64; None where labels are integers.
    """

    codes: Tensor
    names: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def copy(self) -> Labels:
        """The same labels, whatever the caller changes afterwards."""
        return Labels(self.codes.clone(), self.names)

    def values(self, codes: Any) -> np.ndarray:
        """The labels behind codes, as the caller gave them: a NumPy array of the same shape."""
        codes = np.asarray(codes)
        return codes if self.names is None else self.names[codes]


def as_labels(values: Any, argument: str = "labels") -> Labels:
    """Takes labels by position from arrays, tensors, lists, Series, one-hot rows and tables.

    Integers and whole floats are integers; strings, bytes (UTF-8), booleans and dates are names.
    An index of a Series says nothing: samples and labels belong together by their positions.

    Args:
        values: ``(N,)``, N ≥ 1, or ``(N, 1)``; one-hot ``(N, C)``; a list of tensors, one for each
            sample or batch; a DataFrame with one column, or one-hot columns, which name the
            classes.
        argument: name of the argument, for error messages.

    Raises:
        TypeError: values that are no classes, such as fractions, or of several kinds.
        ValueError: another shape, no label, or a label that is missing or empty.

    >>> as_labels([3, 1]).codes, as_labels(["cat", "ant"]).codes, as_labels([[0, 1], [1, 0]]).codes
    (tensor([3, 1]), tensor([1, 0]), tensor([1, 0]))
    """
    if isinstance(values, Labels):
        return values
    array = _array(values, argument)
    if array.dtype.kind == "i" or (array.dtype.kind == "u" and array.dtype.itemsize < 8):
        # not copied, as they may be as many as no memory holds; torch warns of read-only ones
        return Labels(torch.from_numpy(array.astype(np.int64, copy=not array.flags.writeable)))
    import pandas as pd

    missing = pd.isna(array)
    kind = pd.api.types.infer_dtype(array[~missing])
    if kind in ("string", "bytes"):
        array = np.array([v.decode() if isinstance(v, bytes) else v for v in array], dtype=object)
        missing |= np.array([isinstance(v, str) and not v.strip() for v in array])
    _refuse_missing(missing, argument)
    if kind in ("floating", "mixed-integer-float", "integer"):
        array = _whole(array, argument)
    elif kind in ("string", "bytes", "boolean"):
        array = np.array(array.tolist())
    elif kind in ("date", "datetime", "datetime64", "timedelta64"):
        array = np.array(array, dtype=None if array.dtype.kind in "mM" else "datetime64")
    else:
        kind = kind.replace("mixed-integer", "integers and others")
        raise TypeError(f"{argument} must be integers or names, all of one kind; got {kind}")
    if array.dtype.kind in "iu" and int(array.max()) < 2**63:
        return Labels(torch.from_numpy(array.astype(np.int64)))
    names, codes = np.unique(array, return_inverse=True)
    return Labels(torch.from_numpy(codes.astype(np.int64)), names)


def joint_labels(first: Labels, second: Labels, *arguments: str) -> tuple[Labels, Labels]:
    """Gives the labels of two sets one coding; integers have one already.

    Raises:
        TypeError: names in one set, numbers in the other.

    >>> a, b = joint_labels(as_labels(["cat", "ant"]), as_labels(["bee", "cat"]), "train", "test")
    >>> a.codes, b.codes
    (tensor([2, 0]), tensor([1, 2]))
    """
    if first.names is None and second.names is None:
        return first, second
    a, b = (labels.values(labels.codes) for labels in (first, second))
    if len({"i" if values.dtype.kind in "iub" else values.dtype.kind for values in (a, b)}) > 1:
        raise TypeError(
            f"labels must be of one kind: {arguments[0]} hold {a.dtype.name}, such as {a[0]}, but "
            f"{arguments[1]} hold {b.dtype.name}, such as {b[0]}"
        )
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    parts = torch.from_numpy(codes.astype(np.int64)).split([len(a), len(b)])
    return Labels(parts[0], names), Labels(parts[1], names)


def parse_labels(*columns: Sequence[str]) -> list[np.ndarray]:
    """Reads labels that were written as text, of several sets at once: all integers, or all names.

    They are integers if each is a whole number, such as ``7`` or ``7.0``, without leading zeros.
    Else they are names, ``NA``, ``nan`` and ``01`` too, unless numbers and missing values is all
    that there is.

    Raises:
        ValueError: an empty label, or one that is missing among numbers.
        TypeError: fractions.

    >>> parse_labels(["1", "2"], ["3"]), parse_labels(["01", "1"], ["2"])
    ([array([1, 2]), array([3])], [array(['01', '1'], dtype='<U2'), array(['2'], dtype='<U1')])
    """
    texts = [np.char.strip(np.array(list(column), dtype=str)) for column in columns]
    different = {str(text) for column in texts for text in np.unique(column)}
    numbers = different - {text for text in different if text.lower() in _MISSING}
    are_numbers = bool(numbers) and all(map(_is_number, numbers))
    for column in texts:
        _refuse_missing(~np.isin(column, list(numbers)) if are_numbers else column == "", "labels")
    if are_numbers:
        return [_whole(column.astype(float), "labels") for column in texts]
    return texts


def _is_number(text: str) -> bool:
    """True for a number without leading zeros."""
    return bool(re.fullmatch(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?", text))


def _array(values: Any, argument: str) -> np.ndarray:
    """Labels of any form as a NumPy array (N,) of whatever type."""
    if isinstance(values, Tensor):
        values = _numbers(values)
    elif hasattr(values, "columns") and values.shape[1] != 1:
        return values.columns.to_numpy()[_of_one_hot(values.to_numpy(), argument)]
    elif hasattr(values, "to_numpy"):  # pandas, without its index
        values = values.to_numpy()
    elif isinstance(values, str | bytes | dict | set | frozenset):
        kind = type(values).__name__
        raise TypeError(f"{argument} must be a sequence in the order of the samples; got {kind}")
    elif isinstance(values, Iterable) and not hasattr(values, "__array__"):
        values = _of_sequence(list(values))
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must be an array of integers or names: {error}") from None
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "iubf":
        array = _of_one_hot(array, argument)
    if array.ndim > 1 and array.size == len(array):
        array = array.reshape(-1)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{argument} must have shape (N,) with N ≥ 1; got {array.shape}")
    return array


def _numbers(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.double() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def _of_sequence(values: list[Any]) -> Any:
    if values and all(isinstance(v, Tensor | np.ndarray) for v in values):
        parts = [_numbers(v) if isinstance(v, Tensor) else v for v in values]
        batches = {part.ndim for part in parts} == {1}
        return np.concatenate(parts) if batches else np.array(parts)
    array = np.empty(len(values), dtype=object)
    array[:] = values  # np.array would turn numbers beside text into text
    return np.array(values) if any(isinstance(v, list | tuple) for v in values) else array


def _of_one_hot(rows: np.ndarray, argument: str) -> np.ndarray:
    known = rows.dtype.kind in "iubf" and bool(((rows == 0) | (rows == 1)).all())
    if not (known and (rows.sum(axis=1) == 1).all()):
        raise ValueError(
            f"{argument} must have shape (N,), or one-hot rows with a single 1; got {rows.shape} "
            "with other values"
        )
    return rows.argmax(axis=1)


def _whole(values: np.ndarray, argument: str) -> np.ndarray:
    if values.dtype.kind in "iu":
        return values
    if all(isinstance(v, int | np.integer) for v in values):  # also beyond the range of floats
        return np.array(values, dtype=np.uint64 if max(values) >= 2**63 else np.int64)
    floats = values.astype(float)
    bad = ~(np.abs(floats) < 2**63) | (floats != np.floor(floats))
    if bad.any():
        raise TypeError(
            f"{argument} must be integers or names; {argument}[{int(bad.argmax())}] is "
            f"{values[bad.argmax()]}, a fraction or too large"
        )
    return floats.astype(np.int64)


def _refuse_missing(missing: np.ndarray, argument: str) -> None:
    if missing.any():
        raise ValueError(
            f"{argument}[{int(missing.argmax())}] is missing or empty, as {int(missing.sum())} of "
            f"{len(missing)} labels are; leave these samples out or give them a class"
        )
