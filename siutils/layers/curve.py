"""The Separation Index layer by layer: where in a network the classes come apart."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import pandas as pd
import torch
from torch import nn

from siutils.core import (
    Labels,
    as_labels,
    check_same_length,
    code_key,
    fingerprint,
    remove_leftovers,
    resolve_device,
)
from siutils.data import all_images
from siutils.features import (
    ImageTransform,
    Job,
    Pass,
    Pool,
    check_names,
    check_pools,
    check_room,
    free_bytes,
    job_file,
    layer_names,
    mark_scratch,
    pool_name,
    remove_scratch,
)
from siutils.layers.plan import SHARE, Step, is_large, plan_steps, room_needed
from siutils.layers.scores import MIN_ROOM, How, Scored, read_scores, score, write_scores
from siutils.networks import unwrapped
from siutils.separation import Record

P = ParamSpec("P")


class LayerScores(NamedTuple):
    """The table of `layer_curve`, and a record by layer, pool and split.

    The keys are as in the table; without a second set the split is ``train``.
    """

    table: pd.DataFrame
    records: dict[tuple[str, str, str], Record]

    def of(self, split: str = "train", pool: str = "flattened") -> dict[str, Record]:
        """Layer → its record in one split and pool, in the order of the layers."""
        return {key[0]: record for key, record in self.records.items() if key[1:] == (pool, split)}

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
            index: a name of ``siutils.separation.INDICES``.
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
            known = sorted({f"{s}, {p}" for _, p, s in self.records})
            raise ValueError(f"no layer has split {split!r}, pool {pool!r}; there are {known}")
        columns = {
            layer: np.asarray(record.value(index, order, per)) for layer, record in chosen.items()
        }
        classes, _ = next(iter(chosen.values())).classes_and_codes
        rows = pd.Index(classes, name="label") if per == "class" else None
        return pd.DataFrame(columns, index=rows)


def layer_scores(
    model: nn.Module,
    images: Any,
    labels: Any = None,
    layers: str | Sequence[str] = "stages",
    *,
    order: int = 2,
    normalize: bool = True,
    transform: ImageTransform | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    pool: Pool | Sequence[Pool] = None,
    memory: float = 4e9,
    test: Any = None,
    interval: bool = False,
) -> LayerScores:
    """Every index of the outputs of layers as a table, and a record of each layer.

    Paired tests of layers (`siutils.layers.paired_tests` and others) take the records; they need
    ``interval=True``. Arguments, table and errors are those of `layer_curve`.

    >>> model, images = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.tensor([[-9.0], [1.0], [0.0]])
    >>> scores = layer_scores(model, images, torch.tensor([0, 1, 1]), ["0", "1"], device="cpu")
    >>> {layer: record.separated.tolist() for layer, record in scores.of("train").items()}
    {'0': [False, True, True], '1': [False, False, False]}
    """
    if not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    how = How(order, normalize, interval, resolve_device(device), memory)
    sources = []
    model = unwrapped(model)
    pairs = {"": (images, labels)}
    if test is not None:
        pairs["test "] = test if isinstance(test, tuple) else (test, None)
    for which, (given, known) in pairs.items():
        loaded, along = all_images(given)
        if known is None and along is None:
            raise ValueError(f"{which}labels are needed: none came with the images")
        known = as_labels(along if known is None else known, f"{which}labels")
        check_same_length(loaded, known, f"{which}images", f"{which}labels")
        once = Pass.of(model, loaded, transform, batch_size, how.device)
        sources.append(_Source(once, known))
    if isinstance(layers, str):
        inputs = sources[0].once.transform(images[:2].to(how.device))
        layers = layer_names(model, layers, inputs)
    layers, pools = check_names(model, layers), check_pools(pool)
    jobs = [(layer, p) for layer in layers for p in pools]
    with _workplace(cache) as folder:
        finished = _Run(sources, how, folder, cache is not None).score(jobs)
    parts: list[pd.DataFrame] = []
    records: dict[tuple[str, str, str], Record] = {}
    for layer, p in jobs:
        table, by_split = finished[layer, p]
        table.insert(0, "layer", layer)
        table.insert(1, "depth", layers.index(layer))
        table.insert(2, "pool", pool_name(p))
        parts.append(table)
        records |= {(layer, pool_name(p), split): record for split, record in by_split.items()}
    return LayerScores(pd.concat(parts, ignore_index=True), records)


def _with_arguments_of(
    function: Callable[P, Any],
) -> Callable[[Callable[..., pd.DataFrame]], Callable[P, pd.DataFrame]]:
    """A decorator that gives a function the signature of another."""

    def decorate(target: Callable[..., pd.DataFrame]) -> Callable[P, pd.DataFrame]:
        shown = inspect.signature(function).replace(return_annotation="pd.DataFrame")
        target.__signature__ = shown  # type: ignore[attr-defined]
        return target

    return decorate


@_with_arguments_of(layer_scores)
def layer_curve(*arguments: Any, **options: Any) -> pd.DataFrame:
    """All indices of the outputs of layers, from as few passes over the images as memory allows.

    Args:
        model: any network.
        images: as in `siutils.extract_features`; all of them are in memory.
        labels: ``(N,)``, see `siutils.core.as_labels`; not needed if they come with the images.
        layers: ``"stages"``, ``"blocks"`` or ``"all"``, see `siutils.features.layer_names`;
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
            by side; see `siutils.features.pooling.pooled`.
        memory: bytes that features, their scaled copies and the search may take, beyond images and
            model; see `siutils.layers.plan.plan_steps`. At least a quarter is left for the
            forward pass and the search, which need some hundred MB however little is given. On
            CUDA, layers are scored on the card, whose memory this does not bound. Files lie in
            cache or else in the system folder for temporary files, until their layer is scored.
        test: images and labels of a second set, or images with labels, scored by itself and among
            the first set, by `siutils.SeparationIndex.cross`. SI grows with N: compare rows of
            equal ``n``.
        interval: adds the columns of confidence intervals.

    Returns:
        DataFrame: ``layer``, ``depth`` (0, 1, …) and ``pool`` (``flattened``, ``mean``, ``2×2``)
        before the columns of `siutils.SeparationIndex.report`; with ``test`` also ``split``:
        ``train`` (the first set), ``test`` and ``cross``.

    Raises:
        ValueError: as `siutils.extract_features` and `siutils.SeparationIndex`.
        OSError: too little disk, with the bytes needed and free; known before the work starts.

    >>> model, images = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.tensor([[-9.0], [1.0], [0.0]])
    >>> table = layer_curve(model, images, torch.tensor([0, 1, 1]), ["0", "1"], device="cpu")
    >>> table.loc[table["index"] == "si", ["depth", "layer", "value"]].round(2).to_numpy().tolist()
    [[0, '0', 0.67], [1, '1', 0.0]]
    """
    return layer_scores(*arguments, **options).table


@dataclass(frozen=True)
class _Source:
    """Labeled images on their way through the network."""

    once: Pass
    labels: Labels


def _plain(names: np.ndarray | None) -> list[Any] | None:
    return None if names is None else names.tolist()


@contextlib.contextmanager
def _workplace(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield Path(cache)
    else:
        with tempfile.TemporaryDirectory(prefix="siutils-") as folder:
            yield Path(folder)


@dataclass
class _Run:
    """One call of `layer_scores`: where it reads and writes, and what it does in which order."""

    sources: list[_Source]
    how: How
    root: Path
    keep: bool  # scores, and features that are cheap to keep, outlast the call

    def __post_init__(self) -> None:
        keys, how = [str(i) for i in range(len(self.sources))], self.how
        if self.keep:
            keys = [source.once.key() for source in self.sources]
            labels = tuple((s.labels.codes, _plain(s.labels.names)) for s in self.sources)
            options = how.order, how.normalize, how.interval, code_key("siutils.layers.scores")
            self.scores = self.root / "layers" / fingerprint(tuple(keys), labels, options)
        self.folders = [self.root / "features" / key for key in keys]

    def score(self, jobs: list[Job]) -> dict[Job, Scored]:
        """Scores of each job: read from the folder that keeps them, or made and written there."""
        files = {job: job_file(self.scores, job, "pt") for job in jobs if self.keep}
        finished = {job: read_scores(file) for job, file in files.items() if file.exists()}
        missing = [job for job in jobs if job not in finished]
        try:
            for step, batch_size in self._steps(missing) if missing else ():
                for job, scored in self._score_step(step, batch_size):
                    if self.keep:
                        write_scores(scored, files[job])
                    finished[job] = scored
        except Exception as error:
            if self.keep and finished:
                error.add_note(
                    f"{len(finished)} of {len(jobs)} layers are finished and kept in "
                    f"{self.scores}; the same call goes on from there"
                )
            raise
        return finished

    def _steps(self, jobs: list[Job]) -> list[tuple[Step, int]]:
        """What to do, with the batch size of each; a dry run shows the need of memory and disk."""
        how, first = self.how, self.sources[0].once
        n = sum(len(source.labels) for source in self.sources)
        counts, held = first.needs(jobs)

        def batch(jobs: Sequence[Job]) -> int:
            """No more images than what a forward pass holds of them and of these outputs fits."""
            spare = max(MIN_ROOM, (1 - SHARE) * how.memory)
            most = spare / (4 * (held + sum(counts[job] for job in jobs)))
            return max(1, int(min(first.batch_size, most)))

        def seconds() -> float:
            one_batch = replace(first, images=first.images[: batch(jobs[:1])])
            start = time.perf_counter()
            one_batch.features(jobs[:1])
            return (time.perf_counter() - start) * n / len(one_batch.images)

        sizes = {job: 4 * n * d for job, d in counts.items()}
        present = {job for job in jobs if all(job_file(f, job).exists() for f in self.folders)}
        for folder in self.folders:
            remove_leftovers(folder)  # of a killed run: they would count as taken
        free = free_bytes(self.folders[0])
        steps = plan_steps(sizes, how.memory, how.copies, free, seconds, self.keep, present)
        check_room(self.folders[0], room_needed(steps))
        return [(step, batch(step.jobs)) for step in steps]

    def _score_step(self, step: Step, batch_size: int) -> Iterator[tuple[Job, Scored]]:
        """Takes the features of a step from one forward pass, and scores its layers one by one."""
        files = {job: [job_file(folder, job) for folder in self.folders] for job in step.jobs}
        if step.files and not step.keep:
            mark_scratch(file for parts in files.values() for file in parts)
        how, folders = self.how, self.folders if step.files else repeat(None)
        features = [
            replace(source.once, batch_size=batch_size).features(step.jobs, folder)
            for source, folder in zip(self.sources, folders, strict=False)
        ]
        matrices = [matrix for by_job in features for matrix in by_job.values()]
        held = 0 if step.files else sum(4 * matrix.numel() for matrix in matrices)
        del matrices
        for job in step.jobs:
            parts = [by_job.pop(job) for by_job in features]
            size = sum(4 * part.numel() for part in parts)
            large = how.copies and is_large(size, how.copies, how.memory)
            copy = 0 if large else 2 * how.copies * size
            limited = replace(how, search_memory=how.room(held + copy))
            labels = [source.labels for source in self.sources]
            scored = score(parts, labels, limited, self.folders[0] if large else None)
            del parts
            remove_scratch(files[job])
            yield job, scored
