"""Checks of arguments that several packages need, and the hint "did you mean …?"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def as_integers(values: Any, argument: str) -> Tensor:
    """Turns integers, such as labels or indices, into an int64 tensor (N,), N ≥ 1.

    Raises:
        TypeError: `values` are not integers.
        ValueError: `values` do not have one dimension, or are empty.

    >>> as_integers([3, 1], "labels")
    tensor([3, 1])
    """
    try:
        tensor = torch.as_tensor(values, device=getattr(values, "device", None) or "cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{argument} must be an array of integers: {error}") from None
    if tensor.ndim != 1 or not len(tensor):
        raise ValueError(f"{argument} must have shape (N,) with N ≥ 1; got {tuple(tensor.shape)}")
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(
            f"{argument} must be integers; got {tensor.dtype}: convert class names to codes"
        )
    return tensor.to(torch.int64)


def check_positive(value: Any, argument: str) -> None:
    """Raises a ValueError unless `value` is an integer ≥ 1; True and False are not integers here.

    >>> check_positive(0, "k")
    Traceback (most recent call last):
        ...
    ValueError: k must be an integer ≥ 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{argument} must be an integer ≥ 1, got {value!r}")


def did_you_mean(name: object, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> str:
    """Ends an error message with the known names that resemble `name`; empty if there are none.

    >>> did_you_mean("resnet81", ["vgg16", "resnet18"])
    "; did you mean 'resnet18'?"
    """
    similar = difflib.get_close_matches(str(name), list(known), n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, similar))}?" if similar else ""
