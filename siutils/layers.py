"""The Separation Index layer by layer: where in a network the classes come apart."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from siutils import features as _features
from siutils._pairs import little_room
from siutils.checkpoints import (
    CannotWrite,
    fingerprint,
    load_checkpoint,
    remove_leftovers,
    replacing,
    save_checkpoint,
)
from siutils.cross import CrossSeparation
from siutils.devices import resolve_device
from siutils.feature_files import (
    check_room,
    free_bytes,
    job_file,
    mark_scratch,
    remove_scratch,
)
from siutils.features import Transform
from siutils.layer_names import check_names, layer_names
from siutils.layer_plan import SHARE, Step, is_large, plan_steps, room_needed
from siutils.pooling import Job, Pool, check_pools, pool_name
from siutils.separation import (
    SeparationIndex,
    check_same_length,
    integer_labels,
    moments,
    rescale,
)
from siutils.transitions import LayerSamples
from siutils.uncertainty import Lists

CPU = torch.device("cpu")
MIN_BATCH = 1e8  # bytes of a batch's outputs, and of a search, however little memory is given
_CODE = (  # modules that determine scores
    *("_pairs", "_screen", "_sketch", "cross", "family", "indices", "layers", "neighbors"),
    *("runs", "separation", "uncertainty"),
)


def layer_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: str | Sequence[str] = "stages",
    *,
    order: int = 2,
    normalize: bool = True,
    transform: Transform | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    pool: Pool | Sequence[Pool] = None,
    memory: float = 4e9,
    test: tuple[Tensor, Tensor] | None = None,
    interval: bool = False,
) -> pd.DataFrame:
    """All indices of the outputs of layers, from as few passes over the images as memory allows.

    Args:
        model: any network.
        images: uint8 or float ``(N, 3, H, W)``, as in :func:`siutils.extract_features`.
        labels: integers ``(N,)``.
        layers: ``"stages"``, ``"blocks"`` or ``"all"``, see `siutils.layer_names.layer_names`;
            or names as in ``model.named_modules()``, in the order wanted. Of a named layer that
            returns several tensors, the first is taken.
        order: highest order of high-order, soft-order and anti SI.
        normalize: z-score the features of each layer.
        transform: what the model expects; default ``model.transform``.
        batch_size: images per forward pass; fewer, if what it holds of them, with the outputs of
            the layers, takes over a quarter of memory.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        cache: folder that keeps the scores of finished layers, with everything that determines
            them as key: a call that was interrupted goes on at the layer where it stopped. Features
            are kept there, too, if those of all layers fit ``memory`` and the disk, and those that
            were there.
        pool: None for flattened features, ``"mean"``, the side of a grid, or a list of these side
            by side; see :func:`siutils.pooling.pooled`.
        memory: bytes that features, their scaled copies and the search may take, beyond images and
            model; see :func:`siutils.layer_plan.plan_steps`. At least a quarter is left for the
            forward pass and the search, which need some hundred MB however little is given. On
            CUDA, layers are scored on the card, whose memory this does not bound. Files lie in
            cache or else in the system folder for temporary files, until their layer is scored.
        test: images and labels of a second set, scored by itself and among the first set, by
            :meth:`siutils.SeparationIndex.cross`. SI grows with N: compare rows of equal ``n``.
        interval: adds the columns of confidence intervals.

    Returns:
        DataFrame: ``layer``, ``depth`` (0, 1, …) and ``pool`` (``flattened``, ``mean``, ``2×2``)
        before the columns of :meth:`siutils.SeparationIndex.report`; with ``test`` also ``split``:
        ``train`` (the first set), ``test`` and ``cross``.

    Raises:
        ValueError: as :func:`siutils.extract_features` and :class:`siutils.SeparationIndex`.
        OSError: too little disk, with the bytes needed and free; known before the work starts.

    >>> model, images = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.tensor([[-9.0], [1.0], [0.0]])
    >>> table = layer_curve(model, images, torch.tensor([0, 1, 1]), ["0", "1"], device="cpu")
    >>> table.loc[table["index"] == "si", ["depth", "layer", "value"]].round(2).to_numpy().tolist()
    [[0, '0', 0.67], [1, '1', 0.0]]
    """
    how = _how(order, normalize, interval, device, batch_size, memory)
    return _layer_scores(model, (images, labels), test, layers, pool, transform, cache, how).table


class LayerScores(NamedTuple):
    """The table of :func:`layer_curve`, and each sample's values by layer, pool and split.

    The keys are as in the table; without a second set the split is ``train``.
    """

    table: pd.DataFrame
    samples: dict[tuple[str, str, str], LayerSamples]

    def of(self, split: str = "train", pool: str = "flattened") -> dict[str, LayerSamples]:
        """Layer → its samples in one split and pool, in the order of the layers."""
        return {key[0]: found for key, found in self.samples.items() if key[1:] == (pool, split)}

    def values(
        self,
        index: str = "si",
        order: int = 1,
        per: str = "class",
        split: str = "train",
        pool: str = "flattened",
    ) -> pd.DataFrame:
        """One index of every class or sample at every layer.

        Args:
            index: a name of ``siutils.indices.INDICES``.
            order: the order of high-order, soft-order and anti SI, up to the ``order`` that was
                scored.
            per: ``"class"`` or ``"sample"``.
            split, pool: as in the table.

        Returns:
            DataFrame, a column per layer; a row per class, under its label, in ascending order, or
            a row per sample.

        Raises:
            ValueError: if one of these is unknown or was not scored.

        >>> model, x = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.tensor([[-9.0], [1.0], [0.0]])
        >>> scores = layer_scores(model, x, torch.tensor([0, 1, 1]), ["0", "1"], device="cpu")
        >>> scores.values("center_si").to_dict("list")
        {'0': [1.0, 1.0], '1': [1.0, 0.5]}
        """
        if per not in ("class", "sample"):
            raise ValueError(f"per must be class or sample; got {per!r}")
        chosen = self.of(split, pool)
        if not chosen:
            known = sorted({f"{s}, {p}" for _, p, s in self.samples})
            raise ValueError(f"no layer has split {split!r}, pool {pool!r}; there are {known}")
        columns = {layer: found.values(index, order).numpy() for layer, found in chosen.items()}
        table = pd.DataFrame(columns)
        if per == "sample":
            return table
        labels = next(iter(chosen.values())).labels.numpy()
        return table.groupby(labels).mean().rename_axis("label")


def layer_scores(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: str | Sequence[str] = "stages",
    *,
    order: int = 2,
    normalize: bool = True,
    transform: Transform | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    pool: Pool | Sequence[Pool] = None,
    memory: float = 4e9,
    test: tuple[Tensor, Tensor] | None = None,
    interval: bool = False,
) -> LayerScores:
    """As :func:`layer_curve`, with each sample's values, which paired tests need, too.

    See :meth:`LayerScores.values` and :mod:`siutils.transitions`.

    >>> model, images = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.tensor([[-9.0], [1.0], [0.0]])
    >>> scores = layer_scores(model, images, torch.tensor([0, 1, 1]), ["0", "1"], device="cpu")
    >>> {layer: found.separated.tolist() for layer, found in scores.of("train").items()}
    {'0': [False, True, True], '1': [False, False, False]}
    """
    how = _how(order, normalize, interval, device, batch_size, memory, samples=True)
    return _layer_scores(model, (images, labels), test, layers, pool, transform, cache, how)


def _layer_scores(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None,
    layers: str | Sequence[str],
    pool: Pool | Sequence[Pool],
    transform: Transform | None,
    cache: Path | None,
    how: _How,
) -> LayerScores:
    sources = [
        _Source.of(model, *given, transform, which)
        for which, given in {"": train, "test ": test}.items()
        if given is not None
    ]
    if isinstance(layers, str):
        layers = layer_names(model, layers, sources[0].inputs(how.device))
    layers, pools = check_names(model, layers), check_pools(pool)
    jobs = [(layer, p) for layer in layers for p in pools]
    with _workplace(cache) as folder:
        finished = _score_jobs(model, sources, jobs, how, folder, cache is not None)
    parts: list[pd.DataFrame] = []
    samples: dict[tuple[str, str, str], LayerSamples] = {}
    for layer, p in jobs:
        table, found = finished[layer, p]
        table.insert(0, "layer", layer)
        table.insert(1, "depth", layers.index(layer))
        table.insert(2, "pool", pool_name(p))
        parts.append(table)
        samples |= {(layer, pool_name(p), split): s for split, s in found.items()}
    return LayerScores(pd.concat(parts, ignore_index=True), samples)


@dataclass(frozen=True)
class _How:
    """How layers are scored."""

    order: int
    normalize: bool
    interval: bool
    device: torch.device
    batch_size: int
    memory: float
    samples: bool  # whether each sample's values are wanted

    @property
    def copies(self) -> int:
        """Float64 copies of a layer in the memory of the CPU."""
        return int(self.normalize and self.device.type == "cpu")

    def room(self, taken: int) -> float:
        """Bytes that a search may take."""
        on_cpu = self.device.type == "cpu"
        return max(MIN_BATCH, self.memory - taken) if on_cpu else math.inf


def _how(
    order: int,
    normalize: bool,
    interval: bool,
    device: str | torch.device,
    batch_size: int,
    memory: float,
    samples: bool = False,
) -> _How:
    if not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    return _How(order, normalize, interval, resolve_device(device), batch_size, memory, samples)


_Scored = tuple[pd.DataFrame, dict[str, LayerSamples]]  # of one layer; samples by split


@dataclass(frozen=True)
class _Source:
    """Labeled images on their way into the network."""

    images: Tensor
    labels: Tensor
    transform: Transform

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        transform: Transform | None,
        which: str = "",
    ) -> _Source:
        how = _features.input_transform(model, images, transform)
        labels = integer_labels(labels, f"{which}labels")
        check_same_length(images, labels, f"{which}images", f"{which}labels")
        return cls(images, labels, how)

    def inputs(self, device: torch.device) -> Tensor:
        return self.transform(self.images[:2].to(device))

    def features(
        self, model: nn.Module, jobs: Sequence[Job], how: _How, folder: Path | None
    ) -> dict[Job, Tensor]:
        given = self.transform, how.batch_size, how.device, folder
        return _features.collect(model, self.images, jobs, *given)


@contextlib.contextmanager
def _workplace(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield Path(cache)
    else:
        with tempfile.TemporaryDirectory(prefix="siutils-") as folder:
            yield Path(folder)


def _score_jobs(
    model: nn.Module, sources: list[_Source], jobs: list[Job], how: _How, root: Path, keep: bool
) -> dict[Job, _Scored]:
    """Scores of each job: from the folder, if it has them, or made and, to be kept, put there."""
    keys, rows = [str(i) for i in range(len(sources))], None
    if keep:
        keys = [_features.features_key(model, s.images, s.transform, how.device) for s in sources]
        rows = root / "layers" / _scores_key(keys, sources, how)
    folders = [root / "features" / key for key in keys]
    finished: dict[Job, _Scored] = {}
    if rows is not None:
        files = {job: job_file(rows, job, "json") for job in jobs}
        finished = {
            job: _read_scores(file, how.samples) for job, file in files.items() if file.exists()
        }
    missing = [job for job in jobs if job not in finished]
    try:
        for step, sized in _steps(model, sources, missing, how, folders, keep) if missing else ():
            for job, scored in _score_step(model, sources, step, sized, folders):
                if rows is not None:
                    _write_scores(scored, job_file(rows, job, "json"))
                finished[job] = scored
    except Exception as error:
        if rows is not None and finished:
            error.add_note(
                f"{len(finished)} of {len(jobs)} layers are finished and kept in {rows}; the same "
                "call goes on from there"
            )
        raise
    return finished


def _steps(
    model: nn.Module,
    sources: list[_Source],
    jobs: list[Job],
    how: _How,
    folders: list[Path],
    keep: bool,
) -> list[tuple[Step, _How]]:
    """What to do, after a dry run that shows the need of memory and disk."""
    first, n = sources[0], sum(len(s.images) for s in sources)
    counts, held = _features.dry_run(model, first.images, jobs, first.transform, how.device)

    def batch(jobs: Sequence[Job]) -> int:
        """No more images than what a forward pass holds of them and of these outputs fits."""
        spare = max(MIN_BATCH, (1 - SHARE) * how.memory)
        most = spare / (4 * (held + sum(counts[job] for job in jobs)))
        return max(1, int(min(how.batch_size, most)))

    def seconds() -> float:
        some = first.images[: batch(jobs[:1])]
        start = time.perf_counter()
        given = first.transform, len(some), how.device
        _features.collect(model, some, jobs[:1], *given)
        return (time.perf_counter() - start) * n / len(some)

    sizes = {job: 4 * n * d for job, d in counts.items()}
    present = {job for job in jobs if all(job_file(f, job).exists() for f in folders)}
    for folder in folders:
        remove_leftovers(folder)  # of a killed run: they would count as taken
    free = free_bytes(folders[0])
    steps = plan_steps(sizes, how.memory, how.copies, free, seconds, keep, present)
    check_room(folders[0], room_needed(steps))
    return [(step, replace(how, batch_size=batch(step.jobs))) for step in steps]


def _score_step(
    model: nn.Module, sources: list[_Source], step: Step, how: _How, folders: list[Path]
) -> Iterator[tuple[Job, _Scored]]:
    files = {job: [job_file(f, job) for f in folders] for job in step.jobs}
    if step.files and not step.keep:
        mark_scratch(file for parts in files.values() for file in parts)
    features = [
        source.features(model, step.jobs, how, folder if step.files else None)
        for source, folder in zip(sources, folders, strict=True)
    ]
    labels = [source.labels for source in sources]
    held = sum(4 * part.numel() for found in features for part in found.values() if not step.files)
    for job in step.jobs:
        parts = [found.pop(job) for found in features]
        size = sum(4 * part.numel() for part in parts)
        large = how.copies and is_large(size, how.copies, how.memory)
        copy = 0 if large else 2 * how.copies * size
        with little_room(how.room(held + copy)):
            scored = _score(parts, labels, how, folders[0] if large else None)
        del parts
        remove_scratch(files[job])
        yield job, scored


def _score(
    parts: list[Tensor], labels: list[Tensor], how: _How, scratch: Path | None = None
) -> _Scored:
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
    index: SeparationIndex | CrossSeparation, how: _How
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
    how: _How,
    scratch: Path | None,
    scale: tuple[Tensor, Tensor] | None = None,
) -> SeparationIndex:
    if scratch is None:
        return SeparationIndex(features, labels, how.normalize, how.device)
    scaled = _rescaled(features, scale or moments(features), scratch)
    return SeparationIndex(scaled, labels, False, how.device)


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


def _scores_key(keys: list[str], sources: list[_Source], how: _How) -> str:
    code = tuple(Path(__file__).with_name(f"{name}.py") for name in _CODE)
    labels = tuple(source.labels for source in sources)
    given = how.order, how.normalize, how.interval, how.samples
    return fingerprint(tuple(keys), labels, given, code)


def _write_scores(scored: _Scored, file: Path) -> None:
    table, samples = scored
    if samples:
        parts = {k: s._asdict() | {"lists": s.lists and tuple(s.lists)} for k, s in samples.items()}
        save_checkpoint({"samples": parts}, file.with_suffix(".pt"))
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(table.to_dict("list")))  # Python's floats, to the last bit


def _read_scores(file: Path, with_samples: bool) -> _Scored:
    try:
        table = pd.DataFrame(json.loads(file.read_text()))
    except ValueError as error:
        raise RuntimeError(
            f"cannot read the scores {file}: {error}. Delete this file to compute them again"
        ) from error
    if not with_samples:
        return table, {}
    parts = load_checkpoint(file.with_suffix(".pt"), ("samples",), CPU)["samples"]
    return table, {
        k: LayerSamples(**s | {"lists": s["lists"] and Lists(*s["lists"])})
        for k, s in parts.items()
    }
