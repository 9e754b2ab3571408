"""What can be done with any network: put it in eval mode for a while, give it weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def inference(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts a model in eval mode on a device; afterwards its modules have their old mode and device.

    >>> model = nn.Dropout()
    >>> with inference(model, torch.device("cpu")):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = {module: module.training for module in model.modules()}
    tensor = next((t for group in (model.parameters(), model.buffers()) for t in group), None)
    home = device if tensor is None else tensor.device
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(home)
        for module, mode in modes.items():
            module.training = mode


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside of DataParallel or torch.compile, whose layers have plain names.

    Raises:
        TypeError: the model is scripted or exported: its layers cannot be looked at.

    >>> model = nn.Linear(1, 1)
    >>> unwrapped(nn.DataParallel(model)) is model
    True
    """
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, wrappers) else model._orig_mod  # type: ignore[assignment]
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is scripted, so that its layers cannot be read: pass the original")
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads a plain dictionary into a model, even if the model asks for the version of a module.

    torchvision's MNASNet is one; the version stands in an attribute that copies have lost.

    >>> model = nn.Linear(1, 1)
    >>> load_weights(model, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    >>> model(torch.tensor([3.0])).item()
    3.0
    """
    state = OrderedDict(weights)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)
