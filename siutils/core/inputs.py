"""Features in whatever form they come, as a matrix; and the checks that follow."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# dtypes for which torch lacks most operations, and a dtype that holds their values
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
_EXACT = 2**53  # integers up to here are float64 numbers
_PART = 2**22  # numbers looked at, or made dense, at once


def as_matrix(values: Any, argument: str) -> Tensor:
    """Turns features into a tensor (N, D), N and D ≥ 1; booleans become 0 and 1.

    Values stay as they are, but long double is rounded to float64. Arrays that torch can use are
    not copied, not even memory maps; an array is copied if it is not contiguous or torch does not
    have its dtype. Sparse matrices become dense, a part at a time.

    Args:
        values: of any real dtype: a tensor, an array, a DataFrame with a column per feature, a
            sparse matrix of SciPy or torch; a list or Series with a vector per sample; a list of
            tensors with a batch each. ``(N, D, 1, 1)``, as pooling layers return it, counts as
            ``(N, D)``.
        argument: name of the argument, for error messages.

    Raises:
        TypeError: `values` are complex or not numeric.
        ValueError: `values` do not have two dimensions, are empty, or are integers beyond 2⁵³,
            which distances in float64 would round.

    >>> as_matrix([[True, False]], "features")
    tensor([[1, 0]], dtype=torch.uint8)
    """
    if not isinstance(values, Tensor):
        values = _tensor(_dense_array(values, argument), argument)
    values = values.detach()
    if values.is_quantized:
        values = values.dequantize()
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.is_complex():
        raise TypeError(f"{argument} must be real numbers; got {values.dtype}")
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    if values.is_floating_point() and values.element_size() == 1:
        values = values.float()
    if values.ndim > 2 and values[:1].numel() == values.shape[1]:
        values = values.flatten(1)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{argument} must have shape (N, D), both > 0; got {tuple(values.shape)}"
            f"{_hint(values, argument)}"
        )
    if values.dtype in (torch.int64, torch.uint64):
        _check_exact(values, argument)
    return values.to(_WIDER.get(values.dtype, values.dtype))


def column_names(values: Any) -> list[str] | None:
    """Names of the features of a DataFrame; None of anything else.

    >>> column_names([[1.0]]) is None
    True
    """
    return [str(name) for name in values.columns] if hasattr(values, "columns") else None


def mapped_file(values: Any) -> np.memmap | None:
    """The memory-mapped file that a NumPy array lies in, which may be larger than memory, or None.

    Raises:
        ValueError: the file has become shorter, and reading it would kill the process.

    >>> mapped_file(np.ones(3))
    """
    while isinstance(values, np.ndarray) and not isinstance(values, np.memmap):
        values = values.base
    if not isinstance(values, np.memmap):
        return None
    needed, file = values.offset + values.nbytes, Path(str(values.filename))
    if file.exists() and file.stat().st_size < needed:  # a file without a name cannot shrink
        size = file.stat().st_size
        raise ValueError(f"{file} must hold {needed:,} bytes, but has {size:,} now")
    return values


def in_order(values: Any, names: list[str] | None, argument: str) -> Any:
    """Puts the columns of a DataFrame in the order of `names`, if both have names.

    Raises:
        ValueError: other names.

    >>> import pandas as pd
    >>> in_order(pd.DataFrame({"b": [1], "a": [2]}), ["a", "b"], "test_features").columns.tolist()
    ['a', 'b']
    """
    here = column_names(values)
    if here is None or names is None or here == names:
        return values
    if sorted(here) != sorted(names):
        lacks, other = sorted(set(names) - set(here)), sorted(set(here) - set(names))
        raise ValueError(
            f"{argument} must have the columns of features; it lacks {lacks[:5]} and has "
            f"{other[:5]} instead"
        )
    return values.iloc[:, [here.index(name) for name in names]]


def check_finite(matrix: Tensor, argument: str) -> None:
    """Refuses NaN and infinity in a tensor (N, D); checks a part at a time to save memory.

    Raises:
        ValueError: a row is not finite; the message names the first and counts them.

    >>> check_finite(torch.tensor([[1.0], [torch.nan]]), "features")
    Traceback (most recent call last):
        ...
    ValueError: features must be finite; row 1 has NaN or infinity, as 1 of 2 rows have
    """
    if not matrix.is_floating_point():
        return
    parts = matrix.split(max(1, _PART // matrix.shape[1]))
    bad = torch.cat([~part.isfinite().all(dim=1) for part in parts])
    if bool(bad.any()):
        raise ValueError(
            f"{argument} must be finite; row {int(bad.nonzero()[0])} has NaN or infinity, as "
            f"{int(bad.sum())} of {len(bad)} rows have"
        )


def check_same_length(first: Any, second: Any, *arguments: str) -> None:
    """Raises a ValueError unless two arguments have one entry for each sample.

    >>> check_same_length([1], [2], "features", "labels")
    """
    if len(first) != len(second):
        raise ValueError(
            f"{arguments[0]} and {arguments[1]} must have the same length; got {len(first)} and "
            f"{len(second)}"
        )


def _dense_array(values: Any, argument: str) -> np.ndarray | Tensor:
    if hasattr(values, "tocsr"):  # SciPy's sparse matrices
        rows, dense = values.tocsr(), np.empty(values.shape, values.dtype)
        step = max(1, _PART // max(1, dense.shape[1]))
        for start in range(0, len(dense), step):
            dense[start : start + step] = rows[start : start + step].toarray()
        return dense
    if hasattr(values, "columns"):
        return _of_table(values, argument)
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1:
        values = list(values)
    if isinstance(values, list | tuple) and values and all(isinstance(v, Tensor) for v in values):
        parts = [v.detach() for v in values]
        return torch.stack(parts) if parts[0].ndim < 2 else torch.cat(parts)
    if isinstance(values, list | tuple) and values and all(np.ndim(v) == 2 for v in values):
        values = np.concatenate(values)
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must be real numbers: {error}") from None


def _of_table(table: Any, argument: str) -> np.ndarray | Tensor:
    if table.shape[1] == 1 and table.iloc[:, 0].dtype == object:
        return _dense_array(table.iloc[:, 0], argument)  # a vector in each row
    for name, kind in table.dtypes.items():
        if getattr(kind, "kind", "O") not in "iufb":
            raise TypeError(f"{argument}: column {name!r} must be numeric; it is {kind}")
    if any(not isinstance(kind, np.dtype) for kind in table.dtypes):  # nullable
        return table.to_numpy(dtype=np.float64, na_value=np.nan)
    return table.to_numpy()


def _tensor(array: np.ndarray | Tensor, argument: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if (
        array.dtype.kind == "O"
        and array.ndim
        and not any(isinstance(v, str | bytes) for v in array.flat)
    ):
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{argument} must be real numbers; got {array.dtype}")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    with warnings.catch_warnings():  # torch warns of read-only arrays, but nothing writes
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.ascontiguousarray(array))


def _check_exact(values: Tensor, argument: str) -> None:
    for part in values.split(max(1, _PART // values.shape[1])):
        low, high = int(part.view(torch.int64).min()), int(part.view(torch.int64).max())
        if not -_EXACT <= low <= high <= _EXACT or (low < 0 and part.dtype == torch.uint64):
            raise ValueError(
                f"{argument} hold integers beyond 2^53, which float64 would round: subtract an "
                "offset or divide them first"
            )


def _hint(values: Tensor, argument: str) -> str:
    if values.ndim > 2 and 0 not in values.shape:
        return f": {argument}.reshape({len(values)}, -1) makes one row of each sample"
    if values.ndim == 1 and len(values):
        return f": {argument}.reshape(-1, 1) makes them samples with one feature"
    return ""
