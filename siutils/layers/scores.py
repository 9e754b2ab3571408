"""The scores of one layer: a table, a record per split, and the file that keeps both."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils.core import CannotWrite, Labels, load_checkpoint, save_checkpoint
from siutils.neighbors import Neighbors
from siutils.separation import CrossSeparation, Record, SeparationIndex, moments, rescale

MIN_ROOM = 1e8  # bytes of a batch's outputs, and of a search, however little memory is given


@dataclass(frozen=True)
class How:
    """How layers are scored."""

    order: int
    normalize: bool
    interval: bool
    device: torch.device
    memory: float
    search_memory: float = math.inf

    @property
    def copies(self) -> int:
        """Float64 copies of a layer in the memory of the CPU."""
        return int(self.normalize and self.device.type == "cpu")

    def room(self, taken: int) -> float:
        """Bytes that a search may take."""
        on_cpu = self.device.type == "cpu"
        return max(MIN_ROOM, self.memory - taken) if on_cpu else math.inf


Scored = tuple[pd.DataFrame, dict[str, Record]]  # table and records of one layer, by split


def score(
    parts: list[Tensor], labels: list[Labels], how: How, scratch: Path | None = None
) -> Scored:
    """Scores a layer; with a folder `scratch` the scaled features lie there."""
    scale = moments(parts[0]) if scratch else None
    index = _index(parts[0], labels[0], how, scratch, scale)
    scored = {"train": _scored(index, how)}
    if len(parts) == 2:
        queries = parts[1]
        if scale is not None and scratch is not None:
            queries = _rescaled(queries, scale, scratch)
        cross = index.cross(queries, labels[1])
        across = _scored(cross, how)
        del index, queries, cross  # before the next copy is made
        scored["test"] = _scored(_index(parts[1], labels[1], how, scratch), how)
        scored["cross"] = across
    table = pd.concat({split: table for split, (table, _) in scored.items()}, names=["split"])
    table = table.reset_index("split")
    if len(parts) == 1:
        table = table.drop(columns="split")
    return table.reset_index(drop=True), {split: record for split, (_, record) in scored.items()}


def _scored(index: SeparationIndex | CrossSeparation, how: How) -> tuple[pd.DataFrame, Record]:
    record = index.record(how.order, center=True, lists=how.interval)
    return index.report(how.order, how.interval), record


def _index(
    features: Tensor,
    labels: Labels,
    how: How,
    scratch: Path | None,
    scale: tuple[Tensor, Tensor] | None = None,
) -> SeparationIndex:
    normalize = how.normalize
    if scratch is not None:
        scale = scale or moments(features)
        features, normalize = _rescaled(features, scale, scratch), False
    index = SeparationIndex(
        features, labels, normalize, how.device, memory=how.search_memory, copy=False
    )
    if scratch is not None and scale is not None:
        index.normalize, index.n_constant = True, int((scale[1] == 0).sum())
    return index


def _rescaled(features: Tensor, scale: tuple[Tensor, Tensor], folder: Path) -> Tensor:
    """As `rescale`, but in a file that is gone with the tensor."""
    n, d = features.shape
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name: a kill leaves nothing
            for part in features.split(max(1, 2**20 // d)):
                file.write(rescale(part, *scale).numpy().data)
            file.flush()
            return torch.from_numpy(np.memmap(file, np.float64, "c", shape=(n, d)))
    except OSError as error:
        raise CannotWrite(f"cannot write scaled features in {folder}: {error}") from error


def write_scores(scored: Scored, file: Path) -> None:
    """Writes what `score` returns, to the last bit."""
    table, records = scored
    parts = {split: vars(record) | _as_plain(record) for split, record in records.items()}
    for part in parts.values():
        part.pop("classes_and_codes", None)  # computed
    save_checkpoint({"table": table.to_dict("list"), "records": parts}, file)


def _as_plain(record: Record) -> dict[str, Any]:
    """Tuples and lists for named tuples and arrays: a checkpoint holds no classes."""
    names, plain = record.names, None
    if names is not None:
        dates = names.dtype.kind in "Mm"
        plain = (names.astype(str) if dates else names).tolist(), str(names.dtype)
    return {
        "neighbors": tuple(record.neighbors),
        "choice": None if record.choice is None else tuple(record.choice),
        "names": plain,
    }


def read_scores(file: Path) -> Scored:
    """Reads what `write_scores` wrote.

    Raises:
        RuntimeError: the file is damaged.
    """
    try:
        content = load_checkpoint(file, ("table", "records"), torch.device("cpu"))
    except RuntimeError as error:
        raise RuntimeError(
            f"cannot read the scores {file}: {error.__cause__}. Delete this file to compute them "
            "again"
        ) from error
    records = {}
    for split, part in content["records"].items():
        names = None if part["names"] is None else np.array(*part["names"])
        named = {"neighbors": Neighbors(*part["neighbors"]), "names": names}
        records[split] = Record(**part | named)
    return pd.DataFrame(content["table"]), records
