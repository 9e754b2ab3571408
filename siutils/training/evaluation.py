"""Evaluation of a network on labeled images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from siutils.core import resolve_device
from siutils.data import ImageSet, Transform
from siutils.networks import inference


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
    transform = transform_of(model)
    check_outputs(model, data, "data", device)
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


def transform_of(model: nn.Module) -> Transform:
    """Returns the transform that a model has, or says that it has none.

    >>> model = nn.ReLU()
    >>> model.transform = Transform((0, 0, 0), (1, 1, 1))
    >>> transform_of(model).std
    (1, 1, 1)
    """
    transform = getattr(model, "transform", None)
    if not callable(transform):
        raise ValueError("model.transform is not set: give it the transform that the model expects")
    return transform


def check_outputs(model: nn.Module, data: ImageSet, what: str, device: torch.device) -> None:
    """Refuses labels that a model has no output for.

    >>> images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    >>> data = ImageSet("black", images, torch.tensor([1]), ("a", "b"), "")
    >>> model = nn.Flatten()
    >>> model.transform = Transform((0, 0, 0), (1, 1, 1))
    >>> check_outputs(model, data, "train", torch.device("cpu"))
    """
    with inference(model, device), torch.inference_mode():
        logits = model(transform_of(model)(data.images[:1].to(device)))
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"the labels of {what} run from {low} to {high}, but the model has {logits.shape[1]} "
            f"outputs, for labels 0 to {logits.shape[1] - 1}"
        )
