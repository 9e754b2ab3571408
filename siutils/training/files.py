"""The files of a training run: their folder, what is in them, and when they are written."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
from torch import nn

from siutils.core import (
    commit_text,
    fingerprint,
    git_state,
    home_dir,
    load_checkpoint,
    model_key,
    replacing,
    save_checkpoint,
    write_file,
)
from siutils.data import ImageSet
from siutils.training.recipes import Recipe


def run_facts(
    model: nn.Module, train: ImageSet, val: ImageSet, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Collects what determines a training, but for the code and where it runs.

    >>> images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    >>> data = ImageSet("black", images, torch.zeros(2).long(), ("black",), "")
    >>> model = nn.Flatten()
    >>> model.transform = torch.Tensor.float
    >>> run_facts(model, data, data, Recipe("plain", epochs=1), seed=0)["train"]
    'black, 2 images of 1 classes'
    """
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "start": fingerprint(model.state_dict()),
        "train": f"{train.name}, {len(train)} images of {len(train.classes)} classes",
        "val": f"{val.name}, {len(val)} images",
        "data": fingerprint(train.images, train.labels, val.images, val.labels),
        "recipe": dataclasses.asdict(recipe),
        "transform": repr(model.transform),
        "seed": seed,
    }


def finished_run(
    folder: Path, facts: dict[str, Any], snapshots: Iterable[int], device: torch.device
) -> RunFiles | None:
    """Finds a finished training with these facts, whatever code made it; None if there is none.

    Raises:
        FileNotFoundError: there is no such folder.
        RuntimeError: a file of a run is damaged.

    >>> finished_run(Path("nowhere"), {}, (), torch.device("cpu"))
    Traceback (most recent call last):
        ...
    FileNotFoundError: finished: no folder 'nowhere' of finished trainings
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"finished: no folder {str(folder)!r} of finished trainings")
    facts = json.loads(json.dumps(facts))  # tuples are lists in a file
    for file in sorted(folder.glob("**/meta.json")):
        try:
            meta = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RuntimeError(f"cannot read {file}: {error}. Delete its folder") from error
        if all(meta.get(key) == value for key, value in facts.items()):
            files = RunFiles(file.parent, device)
            stored = files.load()
            whole = all((file.parent / f"epoch{epoch}.pt").exists() for epoch in snapshots)
            if whole and stored and len(stored[0]["history"]) == facts["recipe"]["epochs"]:
                return files
    return None


class RunFiles:
    """The folder of a run, named by a key of everything that determines the run's result.

    It holds `meta.json`, `history.csv`, `last.pt` (what the next epoch starts from), `bestN.pt`
    (weights of epoch N, the best until then) and `epochN.pt` (weights after the epochs to be kept).
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self._next_save = 0.0
        self._best_epoch: int | None = None  # that this process has written

    @classmethod
    def of(
        cls,
        cache: Path,
        facts: dict[str, Any],
        model: nn.Module,
        device: torch.device,
        code: str,
        snapshots: Iterable[int],
    ) -> RunFiles:
        """Opens the folder of a run in a cache, and makes it if it is not there."""
        place = {
            "device": device.type,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "code": code,
        }
        key = fingerprint(facts, place, model_key(model), tuple(sorted(snapshots)))
        files = cls(cache / "training" / key, device)
        meta = facts | place | {"commit": commit_text(git_state(home_dir()))}
        if not (files.folder / "meta.json").exists():
            write_file(files.folder / "meta.json", json.dumps(meta, indent=2) + "\n")
        return files

    def source(self) -> dict[str, str]:
        """Says where the weights come from: the key of the run and the commit of its code."""
        meta = json.loads((self.folder / "meta.json").read_text())
        return {"key": self.folder.name, "commit": meta.get("commit", "unknown")}

    def save(self, last: dict[str, Any], best: dict[str, Any], finished: bool) -> None:
        """Writes what a new start needs, unless the last writing is too recent.

        Where writing takes more than 0.1 s, it waits until twenty times as much has passed. A run
        that is killed in between repeats some epochs.
        """
        start = time.monotonic()
        if start < self._next_save and not finished:
            return
        # last.pt comes last: killed in between, the run goes on from the old one and its best epoch
        written = self.folder / f"best{best.get('epoch')}.pt"
        if best and best["epoch"] != self._best_epoch:
            save_checkpoint(best, written)
            self._best_epoch = best["epoch"]
        with replacing(self.folder / "history.csv") as temporary:
            pd.DataFrame(last["history"]).to_csv(temporary, index=False)
        save_checkpoint(last, self.folder / "last.pt")
        for old in set(self.folder.glob("best*.pt")) - {written}:
            old.unlink()
        now = time.monotonic()
        self._next_save = now + 20 * (now - start) if now - start > 0.1 else 0.0

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Reads `last` and `best` of an earlier start; None if there was none."""
        if not (self.folder / "last.pt").exists():
            return None
        state = ("model", "average", "optimizer", "history")
        last = load_checkpoint(self.folder / "last.pt", state, self.device)
        validated = [(row["val_accuracy"], row["epoch"]) for row in last["history"]]
        accuracy, epoch = max(validated, key=lambda pair: (pair[0] == pair[0], *pair))
        if math.isnan(accuracy):
            return last, {}
        kept = ("epoch", "val_accuracy", "model")
        return last, load_checkpoint(self.folder / f"best{epoch}.pt", kept, self.device)

    def save_snapshot(self, epoch: int, weights: dict[str, torch.Tensor]) -> None:
        """Keeps the weights after an epoch; call it before `save`."""
        save_checkpoint({"model": weights}, self.folder / f"epoch{epoch}.pt")

    def snapshot(self, epoch: int) -> dict[str, torch.Tensor]:
        """Reads the weights after an epoch that was kept."""
        return load_checkpoint(self.folder / f"epoch{epoch}.pt", ("model",), self.device)["model"]
