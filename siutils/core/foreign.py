"""Files of PyTorch that others wrote: tensors, NumPy arrays and plain values, never code."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load_foreign(path: Path) -> Any:
    """Reads a file with ``weights_only=True``, which also takes NumPy's values and a Namespace.

    Raises:
        UnpicklingError: it holds anything else; nothing of it was run.
        Exception: many others, if it is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"accuracy": np.float64(0.5)}, Path(folder) / "a.pt")
    ...     load_foreign(Path(folder) / "a.pt")
    {'accuracy': np.float64(0.5)}
    """
    safe: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    safe += [type(np.dtype(code)) for code in "?bBhHiIlLefdU"]
    safe += [np.zeros(1).__reduce__()[0], np.float64().__reduce__()[0]]
    with warnings.catch_warnings():  # unsafe content raises an error, which suffices
        warnings.simplefilter("ignore")
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
