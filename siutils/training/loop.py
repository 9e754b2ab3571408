"""Training on labeled images: fit and evaluate, with checkpoints and exact resume.

Every random number of epoch e comes from (seed, e) alone: the order of the images and the
augmentation from a CPU generator of their own, dropout from torch's generators inside a fork. A run
that is killed and started again with the same cache therefore repeats the same batches and learning
rates, on a CPU to the last bit, and nothing outside sees a changed random state.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from siutils.core import code_key, resolve_device
from siutils.data import ImageSet, Transform
from siutils.networks import inference, load_weights
from siutils.training.augmentation import augment
from siutils.training.files import RunFiles, finished_run, run_facts
from siutils.training.optimization import averaged_model, make_optimizer
from siutils.training.precision import forward, training_dtype
from siutils.training.recipes import Recipe, get_recipe, learning_rate


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
    model stays on the device, in channels-last layout, with `model.transform = transform`. On CUDA
    the forward pass runs in bfloat16. The device holds all training images, and augments them.

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
            validation accuracy to the digit. Needs a cache.
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
        OSError: a checkpoint cannot be written; the previous one is intact.

    >>> images = 255 * torch.eye(3, dtype=torch.uint8).reshape(3, 3, 1, 1)  # red, green, blue
    >>> data = ImageSet("colors", images, torch.arange(3), ("red", "green", "blue"), "")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    >>> recipe = Recipe("plain", epochs=30, lr=0.5, crop_padding=0)
    >>> history = fit(model, data, data, recipe, transform=Transform((0,) * 3, (1,) * 3))
    >>> len(history), float(history["val_accuracy"].iloc[-1])
    (30, 1.0)
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    device, snapshots = resolve_device(device), {} if snapshots is None else snapshots
    for epoch in snapshots:
        if not 1 <= epoch <= recipe.epochs:
            raise ValueError(f"snapshots must have keys from 1 to {recipe.epochs}, got {epoch!r}")
    model.transform = transform  # type: ignore[assignment]
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_outputs(model, train, "train", device)
    _check_outputs(model, val, "val", device)
    _check_batches(model, recipe, len(train))
    cache = None if cache is None else Path(cache)
    recipe = replace(recipe, dtype=training_dtype(model, train, recipe, device, cache))
    run, files, found = _Run(model, train, val, recipe, seed, device), None, None
    if cache is not None:
        facts = run_facts(model, train, val, recipe, seed)
        found = None if finished is None else finished_run(finished, facts, snapshots, device)
        files = found or RunFiles.of(cache, facts, model, device, code_key(__name__), snapshots)
        run.resume(files.load())
        snapshots.update((e, files.snapshot(e)) for e in snapshots if e <= len(run.history))
    with _private_random_state(device):
        while run.epoch < recipe.epochs:
            row = run.next_epoch(also_validate=run.epoch + 1 in snapshots)
            if run.epoch in snapshots:
                snapshots[run.epoch] = _copy_of_weights(run.kept)
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


def evaluate(
    model: nn.Module, data: ImageSet, *, device: str | torch.device = "auto", batch_size: int = 256
) -> dict[str, float]:
    """Measures cross-entropy and accuracy over all images, in eval mode and float32.

    Returns:
        {"loss": mean cross-entropy in nats, "accuracy": share of correct images}.

    Raises:
        ValueError: labels the model has no output for, or a model without transform.

    >>> images = 255 * torch.eye(3, dtype=torch.uint8).reshape(3, 3, 1, 1)  # red, green, blue
    >>> data = ImageSet("colors", images, torch.tensor([0, 1, 1]), ("red", "green", "blue"), "")
    >>> model = nn.Flatten()  # logits are the color channels
    >>> model.transform = Transform((0, 0, 0), (1, 1, 1))
    >>> round(evaluate(model, data, device="cpu")["accuracy"], 2)
    0.67
    """
    device = resolve_device(device)
    transform = _transform_of(model)
    _check_outputs(model, data, "data", device)
    loss, correct = torch.zeros((), dtype=torch.float64), 0
    with inference(model, device), torch.inference_mode():
        for images, labels in zip(
            data.images.split(batch_size), data.labels.split(batch_size), strict=True
        ):
            logits = model(transform(images.to(device)))
            logits = logits.double().cpu()
            loss += F.cross_entropy(logits, labels.cpu(), reduction="sum")
            correct += int((logits.argmax(1) == labels.cpu()).sum())
    return {"loss": float(loss) / len(data), "accuracy": correct / len(data)}


class _Run:
    """The state of a training: what an epoch starts from, and the best epoch until then."""

    def __init__(
        self,
        model: nn.Module,
        train: ImageSet,
        val: ImageSet,
        recipe: Recipe,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.recipe, self.seed, self.val = model, recipe, seed, val
        self.images, self.labels = train.images.to(device), train.labels.to(device)
        self.optimizer = make_optimizer(model, recipe)
        self.average = averaged_model(model, recipe.average) if recipe.average else None
        self.kept = model if self.average is None else self.average.module  # what is validated
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    def state(self) -> dict[str, Any]:
        """Collects what the next epoch starts from; after the last, only history and model."""
        more = self.epoch < self.recipe.epochs
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None and more else None,
            "optimizer": self.optimizer.state_dict() if more else None,
            "history": self.history,
        }

    def resume(self, stored: tuple[dict[str, Any], dict[str, Any]] | None) -> None:
        """Goes back to a `state` of an earlier start and its best epoch."""
        if stored is None:
            return
        last, self.best = stored
        self.history = last["history"]
        if self.epoch < self.recipe.epochs:
            load_weights(self.model, last["model"])
            self.optimizer.load_state_dict(last["optimizer"])
            if self.average is not None:
                load_weights(self.average, last["average"])

    def next_epoch(self, also_validate: bool = False) -> dict[str, Any]:
        """Trains for an epoch and validates where the recipe says so; returns a row of history."""
        start = time.perf_counter()
        row = self._train()
        row |= {"val_loss": math.nan, "val_accuracy": math.nan}
        validates = also_validate or self.recipe.validates(row["epoch"])
        if validates:
            self._estimate_batchnorm()
            scores = evaluate(self.kept, self.val, device=self.images.device)
            row |= {"val_loss": scores["loss"], "val_accuracy": scores["accuracy"]}
        _check_finite(row, "train_loss", *(["val_loss"] if validates else []))
        if validates and row["val_accuracy"] >= self.best.get("val_accuracy", 0.0):
            self.best = {key: row[key] for key in ("epoch", "val_accuracy")}
            self.best["model"] = _copy_of_weights(self.kept)
        self.history.append(row | {"seconds": time.perf_counter() - start})
        return self.history[-1]

    def _train(self) -> dict[str, Any]:
        """Passes once over the training images."""
        device, recipe = self.images.device, self.recipe
        seed = self.seed * 1_000_003 + self.epoch
        generator = torch.Generator().manual_seed(seed)
        torch.default_generator.manual_seed(seed)  # dropout
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator)
        batches = _batches(self.model, order, recipe.batch_size)
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        rates = []
        self.model.train()
        for i, batch in enumerate(batches, start=self.epoch * len(batches)):
            rates.append(learning_rate(recipe, i, len(batches)))
            for group in self.optimizer.param_groups:
                group["lr"] = rates[-1]
            images = augment(self.images[batch.to(device)], recipe, generator)
            target = self.labels[batch.to(device)]
            inputs = _resized(_transform_of(self.model)(images), recipe.side(self.epoch))
            logits, loss = forward(self.model, inputs, target, recipe)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            loss_sum += loss.detach() * len(batch)
            correct += (logits.argmax(1) == target).sum()
        seen = sum(map(len, batches))
        return {
            "epoch": self.epoch + 1,
            "lr": statistics.fmean(rates),
            "train_loss": float(loss_sum) / seen,
            "train_accuracy": float(correct) / seen,
        }

    @torch.no_grad()
    def _estimate_batchnorm(self) -> None:
        """Sets the running statistics of BatchNorm to their mean over batches of training images.

        The images are the first `recipe.bn_images` in the order of the epoch, not augmented.
        """
        layers = [layer for layer in _batchnorms(self.kept) if layer.track_running_stats]
        if not self.recipe.bn_images or not layers:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)[: self.recipe.bn_images]
        momenta = [layer.momentum for layer in layers]
        self.kept.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean
            layer.train()
        for batch in _batches(self.kept, order.to(self.images.device), self.recipe.batch_size):
            inputs = _transform_of(self.model)(self.images[batch])
            self.kept(inputs.contiguous(memory_format=torch.channels_last))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _resized(inputs: Tensor, side: int | None) -> Tensor:
    if side is None or inputs.shape[2:] == (side, side):
        return inputs
    return F.interpolate(inputs, (side, side), mode="bilinear", antialias=True)


def _batches(model: nn.Module, order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Splits an order into batches; leaves out a last batch of one image if there is BatchNorm."""
    batches = order.split(batch_size)
    return batches[:-1] if len(batches[-1]) == 1 and _batchnorms(model) else batches


def _batchnorms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _private_random_state(device: torch.device) -> Iterator[None]:
    """Restores torch's own generators, of the CPU and the device, after the block."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.cuda.device(device), torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        yield


def _copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _transform_of(model: nn.Module) -> Transform:
    transform = getattr(model, "transform", None)
    if not callable(transform):
        raise ValueError("model.transform is not set: give it the transform that the model expects")
    return transform


def _check_outputs(model: nn.Module, data: ImageSet, what: str, device: torch.device) -> None:
    with inference(model, device), torch.inference_mode():
        logits = model(_transform_of(model)(data.images[:1].to(device)))
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"the labels of {what} run from {low} to {high}, but the model has {logits.shape[1]} "
            f"outputs, for labels 0 to {logits.shape[1] - 1}"
        )


def _check_batches(model: nn.Module, recipe: Recipe, n: int) -> None:
    if min(recipe.batch_size, n) == 1 and _batchnorms(model):
        raise ValueError(
            "BatchNorm cannot learn from batches of a single image: "
            f"batch_size={recipe.batch_size}, {n} training images"
        )


def _check_finite(row: dict[str, Any], *losses: str) -> None:
    for name in losses:
        if not math.isfinite(row[name]):
            raise RuntimeError(
                f"{name} is {row[name]} in epoch {row['epoch']} at a learning rate of "
                f"{row['lr']:.3g}; lower the recipe's lr"
            )


def _check_reproduced(model: nn.Module, val: ImageSet, best: dict[str, Any], folder: Path) -> None:
    accuracy = evaluate(model, val, device=next(model.parameters()).device)["accuracy"]
    if accuracy != best["val_accuracy"]:
        raise RuntimeError(
            f"the finished training {folder} does not reproduce its validation accuracy: "
            f"{best['val_accuracy']} is recorded, {accuracy} comes out; leave it out to train again"
        )


def _progress_line(row: dict[str, Any], run: _Run) -> str:
    epochs, validated = run.recipe.epochs, ""
    left = (epochs - run.epoch) * statistics.fmean(row["seconds"] for row in run.history)
    if not math.isnan(row["val_accuracy"]):
        validated = f", validation loss {row['val_loss']:.3f} ({row['val_accuracy']:.1%})"
    return (
        f"epoch {row['epoch']}/{epochs}: lr {row['lr']:.4f}, train loss {row['train_loss']:.3f} "
        f"({row['train_accuracy']:.1%}){validated}, {row['seconds']:.1f} s, "
        f"{left / 60:.0f} min left"
    )
