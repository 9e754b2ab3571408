"""Names in figures are text, whatever they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

import pandas as pd
from matplotlib.figure import Figure

from siutils.core import in_figure

P = ParamSpec("P")


def with_names_as_text(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a function draw each text among its arguments as `siutils.core.in_figure` writes it.

    >>> with_names_as_text(lambda name: name)("$x$")
    '\\\\$x\\\\$'
    """

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> Figure:
        return draw(*map(_plain, args), **_plain(kwargs))

    return drawing


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return in_figure(value)
    if isinstance(value, pd.DataFrame):
        texts = value.apply(lambda c: c if pd.api.types.is_numeric_dtype(c) else c.map(_plain))
        return texts.rename(columns=_plain)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
