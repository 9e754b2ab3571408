"""The scores of one layer: its reports, each sample's values, and the files that keep them."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from siutils.core import CannotWrite, load_checkpoint, replacing, save_checkpoint
from siutils.layers.transitions import LayerSamples
from siutils.separation import CrossSeparation, Lists, SeparationIndex, moments, rescale

MIN_ROOM = 1e8  # bytes of a batch's outputs, and of a search, however little memory is given


@dataclass(frozen=True)
class How:
    """How layers are scored."""

    order: int
    normalize: bool
    interval: bool
    device: torch.device
    batch_size: int
    memory: float
    samples: bool  # whether each sample's values are wanted
    search_memory: float = math.inf

    @property
    def copies(self) -> int:
        """Float64 copies of a layer in the memory of the CPU."""
        return int(self.normalize and self.device.type == "cpu")

    def room(self, taken: int) -> float:
        """Bytes that a search may take."""
        on_cpu = self.device.type == "cpu"
        return max(MIN_ROOM, self.memory - taken) if on_cpu else math.inf


Scored = tuple[pd.DataFrame, dict[str, LayerSamples]]  # of one layer; samples by split


def score(
    parts: list[Tensor], labels: list[Tensor], how: How, scratch: Path | None = None
) -> Scored:
    """Every report of a layer; with a folder `scratch` the scaled features lie there."""
    scale = moments(parts[0]) if scratch else None
    tables, samples = {}, {}
    index = _index(parts[0], labels[0], how, scratch, scale)
    tables["train"], samples["train"] = _report(index, how)
    if len(parts) == 1:
        return tables["train"].assign(normalize=how.normalize), samples if how.samples else {}
    queries = parts[1] if scale is None or scratch is None else _rescaled(parts[1], scale, scratch)
    cross = index.cross(queries, labels[1])
    cross_scores = _report(cross, how)
    del index, queries, cross  # before the next copy is made
    tables["test"], samples["test"] = _report(_index(parts[1], labels[1], how, scratch), how)
    tables["cross"], samples["cross"] = cross_scores
    for name, table in tables.items():
        table.insert(0, "split", name)
    table = pd.concat(tables.values(), ignore_index=True).assign(normalize=how.normalize)
    return table, samples if how.samples else {}


def _report(
    index: SeparationIndex | CrossSeparation, how: How
) -> tuple[pd.DataFrame, LayerSamples]:
    lists = None
    if how.samples and isinstance(index, SeparationIndex):
        index._lists(how.order)  # one search, deep enough for all
        lists = Lists(*(part.clone() for part in index._lists(1)))
    table = index.report(how.order, how.interval)
    separated, centered = (torch.as_tensor(f("sample")) == 1 for f in (index.si, index.center_si))
    hits = index._hits(how.order)[:, : how.order].clone()  # views would be saved as a whole
    return table, LayerSamples(index._labels, separated, lists, hits, centered)


def _index(
    features: Tensor,
    labels: Tensor,
    how: How,
    scratch: Path | None,
    scale: tuple[Tensor, Tensor] | None = None,
) -> SeparationIndex:
    if scratch is None:
        return SeparationIndex(
            features, labels, how.normalize, how.device, memory=how.search_memory
        )
    scaled = _rescaled(features, scale or moments(features), scratch)
    return SeparationIndex(scaled, labels, False, how.device, memory=how.search_memory)


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
    table, samples = scored
    if samples:
        parts = {k: s._asdict() | {"lists": s.lists and tuple(s.lists)} for k, s in samples.items()}
        save_checkpoint({"samples": parts}, file.with_suffix(".pt"))
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(table.to_dict("list")))  # Python's floats, to the last bit


def read_scores(file: Path, with_samples: bool) -> Scored:
    try:
        table = pd.DataFrame(json.loads(file.read_text()))
    except ValueError as error:
        raise RuntimeError(
            f"cannot read the scores {file}: {error}. Delete this file to compute them again"
        ) from error
    if not with_samples:
        return table, {}
    parts = load_checkpoint(file.with_suffix(".pt"), ("samples",), torch.device("cpu"))["samples"]
    return table, {
        k: LayerSamples(**s | {"lists": s["lists"] and Lists(*s["lists"])})
        for k, s in parts.items()
    }
