"""Training on labeled images: fit and evaluate, with checkpoints and exact resume.

Every random number of epoch e comes from (seed, e) alone: the order of the images and the
augmentation from a CPU generator of their own, dropout from torch's generators inside a fork. A run
that is killed and started again with the same cache therefore repeats the same batches and learning
rates, on a CPU to the last bit, and nothing outside sees a changed random state.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from siutils.core import code_key, resolve_device
from siutils.data import ImageSet, Transform
from siutils.networks import inference, load_weights
from siutils.training.augmentation import augment
from siutils.training.files import RunFiles
from siutils.training.optimization import averaged_model, make_optimizer
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
            one resumed after the last epoch that was stored.
        progress: called with one line of text after each epoch.
        snapshots: a dictionary that has epochs as keys, from 1; the weights that are validated
            after these epochs, on the device, become its values. Other epochs are another run.

    Returns:
        One row per epoch: epoch (from 1), lr (mean over its steps), train_loss and train_accuracy
        (on augmented batches as they were trained on, before each step), val_loss, val_accuracy,
        seconds.

    Raises:
        ValueError: labels the model has no output for, batches of one image with BatchNorm, or a
            snapshot of an epoch that there is not.
        RuntimeError: the loss is not finite, or a checkpoint is damaged.
        OSError: a checkpoint cannot be written; the previous one is intact.

    >>> images = 255 * torch.eye(3, dtype=torch.uint8).reshape(3, 3, 1, 1)  # red, green, blue
    >>> data = ImageSet("colors", images, torch.arange(3), ("red", "green", "blue"), "")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    >>> recipe = get_recipe("one_cycle", lr=0.5, crop_padding=0, bn_images=0)
    >>> history = fit(model, data, data, recipe, transform=Transform((0,) * 3, (1,) * 3), epochs=30)
    >>> len(history), float(history["val_accuracy"].iloc[-1])
    (30, 1.0)
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = dataclasses.replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    device, snapshots = resolve_device(device), {} if snapshots is None else snapshots
    for epoch in snapshots:
        if not 1 <= epoch <= recipe.epochs:
            raise ValueError(f"snapshots must have keys from 1 to {recipe.epochs}, got {epoch!r}")
    model.transform = transform  # type: ignore[assignment]
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_outputs(model, train, "train", device)
    _check_outputs(model, val, "val", device)
    _check_batches(model, recipe, len(train))
    files = None
    if cache is not None:
        code = code_key(__name__)
        files = RunFiles(
            Path(cache), model, train, val, recipe, seed, device, code, tuple(snapshots)
        )

    optimizer = make_optimizer(model, recipe)
    average = averaged_model(model, recipe.average) if recipe.average else None
    history, best = _resume(files, model, average, optimizer, recipe)
    if files is not None:
        snapshots.update((e, files.snapshot(e)) for e in snapshots if e <= len(history))
    images, labels = train.images.to(device), train.labels.to(device)
    kept = model if average is None else average.module
    with _private_random_state(device):
        for epoch in range(len(history), recipe.epochs):
            start = time.perf_counter()
            row = _train_epoch(model, average, images, labels, recipe, optimizer, epoch, seed)
            val_scores = evaluate(kept, val, device=device)
            row["val_loss"], row["val_accuracy"] = val_scores["loss"], val_scores["accuracy"]
            row["seconds"] = time.perf_counter() - start
            _check_finite(row)
            history.append(row)
            if not best or row["val_accuracy"] >= best["val_accuracy"]:
                best = {
                    "epoch": epoch + 1,
                    "val_accuracy": row["val_accuracy"],
                    "model": _copy_of_weights(kept),
                }
            if epoch + 1 in snapshots:
                snapshots[epoch + 1] = _copy_of_weights(kept)
                if files is not None:
                    files.save_snapshot(epoch + 1, snapshots[epoch + 1])
            if files is not None:
                last = _state(model, average, optimizer, history, recipe)
                files.save(last, best, finished=epoch + 1 == recipe.epochs)
            if progress is not None:
                progress(_progress_line(row, recipe.epochs))
    load_weights(model, best["model"])
    model.eval()
    return pd.DataFrame(history)


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


def _train_epoch(
    model: nn.Module,
    average: AveragedModel | None,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    seed: int,
) -> dict[str, Any]:
    device, transform = images.device, _transform_of(model)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    torch.default_generator.manual_seed(seed * 1_000_003 + epoch)  # dropout
    if device.type == "cuda":
        torch.cuda.manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    batches = _batches(model, order, recipe.batch_size)
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    rates = []
    model.train()
    for i, batch in enumerate(batches):
        step = epoch * len(batches) + i
        rates.append(learning_rate(recipe, step, len(batches), recipe.epochs))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        batch = batch.to(device)
        target = labels[batch]
        inputs = transform(augment(images[batch], recipe, generator))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=_in_bfloat16(device)):
            logits = model(inputs)
        smoothing = recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), target, label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        loss_sum += loss.detach() * len(batch)
        correct += (logits.argmax(1) == target).sum()
    if recipe.bn_images:
        chosen = images[order[: recipe.bn_images].to(device)]
        kept = model if average is None else average.module
        _estimate_batchnorm(kept, chosen, transform, recipe.batch_size)
    seen = sum(map(len, batches))
    return {
        "epoch": epoch + 1,
        "lr": statistics.fmean(rates),
        "train_loss": float(loss_sum) / seen,
        "train_accuracy": float(correct) / seen,
    }


def _in_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda"


def _batches(model: nn.Module, order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Splits an order into batches; leaves out a last batch of one image if there is BatchNorm."""
    batches = order.split(batch_size)
    return batches[:-1] if len(batches[-1]) == 1 and _batchnorms(model) else batches


def _batchnorms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def _estimate_batchnorm(
    model: nn.Module, images: Tensor, transform: Transform, batch_size: int
) -> None:
    """Sets the running statistics of BatchNorm to their mean over batches of these images."""
    layers = [layer for layer in _batchnorms(model) if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean
        layer.train()
    for batch in _batches(model, torch.arange(len(images)), batch_size):
        model(transform(images[batch.to(images.device)]))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@contextmanager
def _private_random_state(device: torch.device) -> Iterator[None]:
    """Restores torch's own generators, of the CPU and the device, after the block."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.cuda.device(device), torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        yield


def _state(
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, Any]],
    recipe: Recipe,
) -> dict[str, Any]:
    """Collects what the next epoch starts from; after the last, only history and model."""
    more = len(history) < recipe.epochs
    return {
        "model": model.state_dict(),
        "average": average.state_dict() if average is not None and more else None,
        "optimizer": optimizer.state_dict() if more else None,
        "history": history,
    }


def _resume(
    files: RunFiles | None,
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Restores the last state of an earlier start; returns its history and best weights."""
    stored = None if files is None else files.load()
    if stored is None:
        return [], {}
    last, best = stored
    if len(last["history"]) < recipe.epochs:
        load_weights(model, last["model"])
        optimizer.load_state_dict(last["optimizer"])
        if average is not None:
            load_weights(average, last["average"])
    return last["history"], best


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


def _check_finite(row: dict[str, Any]) -> None:
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(row[name]):
            raise RuntimeError(
                f"{name} is {row[name]} in epoch {row['epoch']} at a learning rate of "
                f"{row['lr']:.3g}; lower the recipe's lr"
            )


def _progress_line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: lr {row['lr']:.4f}, train loss {row['train_loss']:.3f} "
        f"({row['train_accuracy']:.1%}), validation loss {row['val_loss']:.3f} "
        f"({row['val_accuracy']:.1%}), {row['seconds']:.1f} s"
    )
