"""Training on labeled images: fit and evaluate, with checkpoints and exact resume.

Every random number of epoch e comes from (seed, e) alone: the order of the images and the
augmentation from a CPU generator of their own, dropout from torch's generators inside a fork. A run
that is killed and started again with the same cache therefore repeats the same batches and learning
rates, on a CPU to the last bit, and nothing outside sees a changed random state.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from siutils.core import code_key, resolve_device
from siutils.data import ImageSet, Transform
from siutils.networks import load_weights
from siutils.training.epochs import Run, batchnorms, copy_of_weights, private_random_state
from siutils.training.evaluation import check_outputs, evaluate
from siutils.training.files import RunFiles, finished_run, run_facts
from siutils.training.precision import training_dtype
from siutils.training.recipes import Recipe, get_recipe


def fit(
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    recipe: Recipe | str,
    *,
    transform: Transform,
    epochs: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    finished: Path | None = None,
    progress: Callable[[str], None] | None = None,
    snapshots: dict[int, dict[str, Tensor]] | None = None,
) -> pd.DataFrame:
    """Trains a model in place; it ends in eval mode with the weights of the best epoch.

    The best epoch has the highest validation accuracy; among equal ones the last counts, which has
    the lowest learning rate. With `recipe.average` the averaged weights are validated and kept. The
    model stays on the device, in channels-last layout, with `model.transform = transform`. The
    device holds all training images, and augments them.

    Args:
        model: maps float32 (B, 3, H, W) to logits (B, C).
        train: training images.
        val: validation images.
        recipe: a recipe or the name of one.
        transform: what turns uint8 images into the model's input.
        epochs: instead of the recipe's.
        seed: of the order of images, augmentation and dropout, not of the initial weights.
        device: "auto", "cpu", "cuda", …
        cache: a folder for checkpoints, or None. A finished run with the same model, images,
            recipe, seed, kind of device and code is loaded instead of trained again, an unfinished
            one resumed after the last epoch that was stored. It also keeps the dtype that was
            measured for a recipe whose dtype is "auto".
        finished: a folder of finished trainings by any code, or None. One with the same model,
            images, recipe and seed is taken instead of training, if it reproduces its recorded
            validation accuracy to the digit. Needs a cache, and comes before what that holds.
        progress: called with one line of text after each epoch.
        snapshots: a dictionary that has epochs as keys, from 1; the weights that are validated
            after these epochs, on the device, become its values. Other epochs are another run.

    Returns:
        One row per epoch: epoch (from 1), lr (mean over its steps), train_loss and train_accuracy
        (on augmented batches as they were trained on, before each step), val_loss, val_accuracy
        (NaN without a validation), seconds. With a cache, its ``attrs`` have the ``key`` of the run
        and the ``commit`` of the code that trained.

    Raises:
        ValueError: labels the model has no output for, batches of one image with BatchNorm, or a
            snapshot of an epoch that there is not.
        RuntimeError: the loss is not finite, a checkpoint is damaged, or a finished training does
            not reproduce its accuracy.
        OSError: a checkpoint cannot be written, and the previous one is intact; or there is no
            folder `finished`.

    >>> images = 255 * torch.eye(3, dtype=torch.uint8).reshape(3, 3, 1, 1)  # red, green, blue
    >>> data = ImageSet("colors", images, torch.arange(3), ("red", "green", "blue"), "")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    >>> recipe = Recipe("plain", epochs=30, lr=0.5, crop_padding=0)
    >>> history = fit(model, data, data, recipe, transform=Transform((0,) * 3, (1,) * 3))
    >>> len(history), float(history["val_accuracy"].iloc[-1])
    (30, 1.0)
    """
    opened = _open(
        model, train, val, recipe, transform, epochs, seed, device, cache, finished, snapshots
    )
    run, files, found, snapshots = opened
    recipe = run.recipe
    with private_random_state(run.images.device):
        while run.epoch < recipe.epochs:
            row = run.next_epoch(also_validate=run.epoch + 1 in snapshots)
            if run.epoch in snapshots:
                snapshots[run.epoch] = copy_of_weights(run.kept)
                if files is not None:
                    files.save_snapshot(run.epoch, snapshots[run.epoch])
            if files is not None:
                files.save(run.state(), run.best, finished=run.epoch == recipe.epochs)
            if progress is not None:
                progress(_progress_line(row, run))
    load_weights(model, run.best["model"])
    model.eval()
    history = pd.DataFrame(run.history)
    if files is not None:
        history.attrs |= files.source()
        if found is not None:
            _check_reproduced(model, val, run.best, found.folder)
    return history


def epochs_left(
    model: nn.Module, train: ImageSet, val: ImageSet, recipe: Recipe | str, **options: Any
) -> int:
    """Counts the epochs that `fit` would train with the same arguments.

    >>> images = 255 * torch.eye(3, dtype=torch.uint8).reshape(3, 3, 1, 1)
    >>> data = ImageSet("colors", images, torch.arange(3), ("red", "green", "blue"), "")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    >>> epochs_left(model, data, data, "study", transform=Transform((0,) * 3, (1,) * 3))
    200
    """
    names = ("epochs", "seed", "device", "cache", "finished", "snapshots")
    defaults = dict(zip(names, (None, 0, "auto", None, None, None), strict=True))
    run = _open(model, train, val, recipe, **defaults | options)[0]
    return run.recipe.epochs - run.epoch


def _open(
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    recipe: Recipe | str,
    transform: Transform,
    epochs: int | None,
    seed: int,
    device: str | torch.device,
    cache: Path | None,
    finished: Path | None,
    snapshots: dict[int, dict[str, Tensor]] | None,
) -> tuple[Run, RunFiles | None, RunFiles | None, dict[int, dict[str, Tensor]]]:
    """Checks the arguments of `fit` and goes on from what is stored.

    Returns:
        The run, its files, the same files if they are of a finished training by other code, and
        the snapshots.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    device, snapshots = resolve_device(device), {} if snapshots is None else snapshots
    for epoch in snapshots:
        if not 1 <= epoch <= recipe.epochs:
            raise ValueError(f"snapshots must have keys from 1 to {recipe.epochs}, got {epoch!r}")
    model.transform = transform  # type: ignore[assignment]
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_outputs(model, train, "train", device)
    check_outputs(model, val, "val", device)
    _check_batches(model, recipe, len(train))
    cache = None if cache is None else Path(cache)
    recipe = replace(recipe, dtype=training_dtype(model, train, recipe, device, cache))
    run, files, found = Run(model, train, val, recipe, seed, device), None, None
    if cache is not None:
        facts = run_facts(model, train, val, recipe, seed)
        found = None if finished is None else finished_run(finished, facts, snapshots, device)
        files = found or RunFiles.of(cache, facts, model, device, code_key(__name__), snapshots)
        run.resume(files.load())
        snapshots.update((e, files.snapshot(e)) for e in snapshots if e <= len(run.history))
    return run, files, found, snapshots


def _check_batches(model: nn.Module, recipe: Recipe, n: int) -> None:
    if min(recipe.batch_size, n) == 1 and batchnorms(model):
        raise ValueError(
            "BatchNorm cannot learn from batches of a single image: "
            f"batch_size={recipe.batch_size}, {n} training images"
        )


def _check_reproduced(model: nn.Module, val: ImageSet, best: dict[str, Any], folder: Path) -> None:
    accuracy = evaluate(model, val, device=next(model.parameters()).device)["accuracy"]
    if accuracy != best["val_accuracy"]:
        raise RuntimeError(
            f"the finished training {folder} does not reproduce its validation accuracy: "
            f"{best['val_accuracy']} is recorded, {accuracy} comes out; leave it out to train again"
        )


def _progress_line(row: dict[str, Any], run: Run) -> str:
    epochs, validated = run.recipe.epochs, ""
    left = (epochs - run.epoch) * statistics.fmean(row["seconds"] for row in run.history)
    if not math.isnan(row["val_accuracy"]):
        validated = f", validation loss {row['val_loss']:.3f} ({row['val_accuracy']:.1%})"
    return (
        f"epoch {row['epoch']}/{epochs}: lr {row['lr']:.4f}, train loss {row['train_loss']:.3f} "
        f"({row['train_accuracy']:.1%}){validated}, {row['seconds']:.1f} s, "
        f"{left / 60:.0f} min left"
    )
