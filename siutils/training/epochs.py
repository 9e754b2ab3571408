"""The state of a training, and how an epoch changes it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from siutils.data import ImageSet
from siutils.networks import load_weights
from siutils.training.augmentation import augment
from siutils.training.evaluation import evaluate, transform_of
from siutils.training.optimization import averaged_model, make_optimizer
from siutils.training.precision import forward
from siutils.training.recipes import Recipe, learning_rate


class Run:
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
            self.best["model"] = copy_of_weights(self.kept)
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
            inputs = _resized(transform_of(self.model)(images), recipe.side(self.epoch))
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
        layers = [layer for layer in batchnorms(self.kept) if layer.track_running_stats]
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
            inputs = transform_of(self.model)(self.images[batch])
            self.kept(inputs.contiguous(memory_format=torch.channels_last))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _resized(inputs: Tensor, share: float) -> Tensor:
    if share == 1:
        return inputs
    size = [max(1, round(share * side)) for side in inputs.shape[2:]]
    return F.interpolate(inputs, size, mode="bilinear", antialias=True)


def _batches(model: nn.Module, order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Splits an order into batches; leaves out a last batch of one image if there is BatchNorm."""
    batches = order.split(batch_size)
    return batches[:-1] if len(batches[-1]) == 1 and batchnorms(model) else batches


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """Lists the layers of BatchNorm.

    >>> len(batchnorms(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())))
    1
    """
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies weights and buffers, so that further training does not change them.

    >>> list(copy_of_weights(nn.Linear(1, 1, bias=False)))
    ['weight']
    """
    return {name: value.clone() for name, value in model.state_dict().items()}


def _check_finite(row: dict[str, Any], *losses: str) -> None:
    for name in losses:
        if not math.isfinite(row[name]):
            raise RuntimeError(
                f"{name} is {row[name]} in epoch {row['epoch']} at a learning rate of "
                f"{row['lr']:.3g}; lower the recipe's lr"
            )


@contextmanager
def private_random_state(device: torch.device) -> Iterator[None]:
    """Restores torch's own generators, of the CPU and the device, after the block.

    >>> with private_random_state(torch.device("cpu")):
    ...     _ = torch.manual_seed(0)
    """
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.cuda.device(device), torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        yield
