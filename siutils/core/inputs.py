"""Checks and conversion of features, for every function that takes them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

# dtypes for which torch lacks most operations, and a dtype that holds their values
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.float64}


def as_matrix(values: Any, argument: str) -> Tensor:
    """Turns features into a tensor (N, D), N and D ≥ 1; booleans become 0 and 1.

    Values stay as they are. Arrays that torch can use are not copied, not even memory maps; an
    array is copied if it is not contiguous or torch does not have its dtype.

    Args:
        values: a torch tensor, or anything that NumPy turns into an array, of any real dtype.
        argument: name of the argument, for error messages.

    Raises:
        TypeError: `values` are complex or not numeric.
        ValueError: `values` do not have two dimensions, or are empty.

    >>> as_matrix([[True, False]], "features")
    tensor([[1, 0]], dtype=torch.uint8)
    """
    if not isinstance(values, Tensor):
        try:
            array = np.asarray(values)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{argument} must be real numbers: {error}") from None
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{argument} must be real numbers; got {array.dtype}")
        with warnings.catch_warnings():  # torch warns of read-only arrays, but nothing writes
            warnings.simplefilter("ignore")
            values = torch.from_numpy(np.ascontiguousarray(array))
    values = values.detach()
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    values = values.to(_WIDER.get(values.dtype, values.dtype))
    if values.is_complex():
        raise TypeError(f"{argument} must be real numbers; got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        shape = tuple(values.shape)
        raise ValueError(f"{argument} must have shape (N, D), both > 0; got {shape}")
    return values


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
    parts = matrix.split(max(1, 2**22 // matrix.shape[1]))
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
