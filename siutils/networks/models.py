"""Networks for 32×32 images as small adaptations of torchvision's own, and their weights.

Sources of weights: none (random), a checkpoint file, or ImageNet. ImageNet weights fit only the
unmodified network, so with them the stem stays torchvision's and only the last layer is new.
Every file is loaded with ``weights_only=True``: tensors, never code.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.hub
import torchvision.models as tvm
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from siutils.core import check_positive, did_you_mean
from siutils.data import IMAGENET_MEAN, IMAGENET_STD, Transform
from siutils.networks.architectures import ARCHITECTURES, adapted, start_as_identity
from siutils.networks.weights import from_hub, load, read, seeded, sha256, tensors

IMAGENET = "imagenet"
IMAGENET_PACKAGE = "imagenet:efficientnet_pytorch"


def create_model(
    name: str,
    num_classes: int,
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
        num_classes: at least 1.
        weights: None for random initialization; the path of a checkpoint (a state_dict, alone or
            under ``"model"`` or ``"state_dict"``) of this network and number of classes;
            ``"imagenet"`` for torchvision's IMAGENET1K_V1 weights with a fresh last layer, offered
            for the study's networks; for efficientnet_b0 also ``"imagenet:efficientnet_pytorch"``,
            that package's network and weights. ImageNet weights are looked for in
            ``torch.hub.get_dir()/checkpoints`` and downloaded where absent. As always in torch.hub,
            the hash in the file name is checked on download, not of a file that lies there already;
            `weights_source` states its sha256.
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
    if name not in _BUILDERS:
        hint = did_you_mean(name, MODELS, cutoff=0.0)
        raise ValueError(f"name: unknown network {name!r}{hint} Known: {MODELS}")
    check_positive(num_classes, "num_classes")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise ValueError(f"seed must be an integer or None, got {seed!r}")
    if not isinstance(weights, str | os.PathLike | None):
        raise TypeError(f"weights must be None, a path or 'imagenet', got {weights!r}")
    if zero_init_residual and weights is not None:
        raise ValueError("zero_init_residual would overwrite loaded weights: leave one of them out")
    with seeded(seed):
        if weights is None:
            model = _BUILDERS[name](int(num_classes))
            drawn = "seed not given" if seed is None else f"seed {seed}"
            if zero_init_residual:
                start_as_identity(model)
                drawn += ", residual blocks start as the identity"
            return _described(model, _PARTS[name], f"random initialization, {drawn}")
        if weights == IMAGENET:
            return _imagenet(name, int(num_classes))
        if weights == IMAGENET_PACKAGE:
            return _imagenet_from_package(name, int(num_classes))
        return _from_file(name, int(num_classes), Path(weights).expanduser())


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


def _vgg(build: Callable[..., Any], num_classes: int) -> nn.Module:
    with torch.device("meta"):  # torchvision's first linear layer alone would take 400 MB and 1 s
        model = build(num_classes=num_classes)
        model.avgpool = nn.Identity()  # five pools leave 1×1 of 32×32
        model.classifier[0] = nn.Linear(512, 4096)
    model.to_empty(device="cpu")
    for module in model.modules():  # the initialization of torchvision's VGG
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return model


def _resnet18(num_classes: int) -> nn.Module:
    model = tvm.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _efficientnet_b0(num_classes: int) -> nn.Module:
    # dropout only, as in the study: stochastic depth would slow the short trainings down
    model = tvm.efficientnet_b0(num_classes=num_classes, dropout=0.2, stochastic_depth_prob=0.0)
    # the study's strides: the sixth stage stays at 4×4, where torchvision's would end at 2×2
    for conv in (model.features[0][0], model.features[6][0].block[1][0]):
        conv.stride = (1, 1)
    return model


def _efficientnet_v2_s(num_classes: int) -> nn.Module:
    return tvm.efficientnet_v2_s(num_classes=num_classes, dropout=0.2)


_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "vgg16": partial(_vgg, tvm.vgg16_bn),
    "resnet18": _resnet18,
    "efficientnet_b0": _efficientnet_b0,
    "efficientnet_v2_s": _efficientnet_v2_s,
    "vgg11": partial(_vgg, tvm.vgg11_bn),
    "vgg13": partial(_vgg, tvm.vgg13_bn),
    **{name: partial(adapted, name) for name in ARCHITECTURES},
}
MODELS = tuple(_BUILDERS)
_PARTS = {  # the layer of the features and the last layer
    "resnet18": ("avgpool", "fc"),
    "efficientnet_b0": ("avgpool", "classifier.1"),
    "efficientnet_v2_s": ("avgpool", "classifier.1"),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16"), ("features", "classifier.6")),
    **{name: (about.features, about.head) for name, about in ARCHITECTURES.items()},
}
_TORCHVISION = {
    "vgg16": (tvm.vgg16_bn, tvm.VGG16_BN_Weights.IMAGENET1K_V1),
    "resnet18": (tvm.resnet18, tvm.ResNet18_Weights.IMAGENET1K_V1),
    "efficientnet_b0": (tvm.efficientnet_b0, tvm.EfficientNet_B0_Weights.IMAGENET1K_V1),
    "efficientnet_v2_s": (tvm.efficientnet_v2_s, tvm.EfficientNet_V2_S_Weights.IMAGENET1K_V1),
}


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
    state = tensors(content, path)
    classes = state.get(f"{_PARTS[name][1]}.bias", torch.empty(num_classes)).numel()
    if classes != num_classes:
        raise ValueError(f"weights: {path} has {classes} classes, but num_classes is {num_classes}")
    model = _BUILDERS[name](num_classes)
    load(model, state, name, path)
    return _described(model, _PARTS[name], f"file {path.name} sha256 {sha256(path)}")


def _imagenet(name: str, num_classes: int) -> nn.Module:
    if name not in _TORCHVISION:
        raise ValueError(
            f"weights: {IMAGENET!r} is for {', '.join(_TORCHVISION)}, not for {name!r}; give None "
            "or the path of a checkpoint"
        )
    build, weights = _TORCHVISION[name]
    state, path = from_hub(weights.url, weights.get_state_dict)
    model = build(num_classes=num_classes)
    load(model, _with_fresh_head(state, model, _PARTS[name][1]), name, path)
    return _described(model, _PARTS[name], *_imagenet_facts(repr(weights), path))


def _imagenet_from_package(name: str, num_classes: int) -> nn.Module:
    """Takes the package's network and address, not its loader, which unpickles anything."""
    if name != "efficientnet_b0":
        raise ValueError(f"weights: {IMAGENET_PACKAGE!r} is for efficientnet_b0, not for {name!r}")
    url = url_map["efficientnet-b0"]
    state, path = from_hub(url, partial(torch.hub.load_state_dict_from_url, url))
    model = EfficientNet.from_name("efficientnet-b0", num_classes=num_classes)
    model.set_swish(memory_efficient=False)  # plain SiLU, the form meant for tracing
    load(model, _with_fresh_head(state, model, "_fc"), name, path)
    source = f"efficientnet_pytorch {version('efficientnet_pytorch')} efficientnet-b0"
    return _described(model, ("_avg_pooling", "_fc"), *_imagenet_facts(source, path))


def _with_fresh_head(state: dict[str, Tensor], model: nn.Module, head: str) -> dict[str, Tensor]:
    """Replaces the last layer `head` of `state` by the model's own random one."""
    fresh = model.get_submodule(head).state_dict()
    return state | {f"{head}.{key}": value for key, value in fresh.items()}


def _imagenet_facts(source: str, path: Path) -> tuple[str, Transform]:
    source = f"ImageNet: {source}, sha256 {sha256(path)[:8]}"
    return source, Transform(IMAGENET_MEAN, IMAGENET_STD)
