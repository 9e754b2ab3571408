"""The pretrained arm of question 1: networks with ImageNet weights, as far as they are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from siutils.networks import create_model

# The study's VGG16 of ImageNet has no batch norm, its EfficientNet-B0 is that of the package.
_AS_IN_THE_STUDY = {
    "vgg16": "imagenet:no_batchnorm",
    "efficientnet_b0": "imagenet:efficientnet_pytorch",
}
_BESIDE = {
    "vgg16 with batch norm": ("vgg16", "imagenet"),
    **{f"efficientnet_lite{i}": (f"efficientnet_lite{i}", "imagenet") for i in range(3)},
}


def imagenet_models(
    networks: Sequence[str], pretrained: str
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Loads the ImageNet weights of networks, for images of the size that they have.

    Args:
        networks: names of `siutils.create_model`.
        pretrained: ``"imagenet"``: those of all networks, as the study took them, VGG16 with batch
            norm, too, and EfficientNet-Lite0 to Lite2; ``"auto"``: those that are at hand or can be
            fetched; ``"upstream"``: EfficientNet-Lite0 only.

    Returns:
        Name of a row → model; name → why its weights are not at hand.

    Raises:
        FileNotFoundError: with ``"imagenet"``, weights that are not at hand.

    >>> models, absent = imagenet_models(["vgg16"], "upstream")
    >>> list(models), absent
    (['efficientnet_lite0'], {})
    """
    wanted = {name: (name, _AS_IN_THE_STUDY.get(name, "imagenet")) for name in networks} | _BESIDE
    if pretrained == "upstream":
        wanted = {"efficientnet_lite0": wanted["efficientnet_lite0"]}
    models: dict[str, nn.Module] = {}
    absent: dict[str, str] = {}
    for name, (network, weights) in wanted.items():
        try:
            model: Any = create_model(network, weights=weights)
        except FileNotFoundError as error:
            if pretrained == "imagenet":
                raise
            absent[name] = str(error)
            continue
        model.transform = replace(model.transform, size=None)
        models[name] = model.eval()
    return models, absent
