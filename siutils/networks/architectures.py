"""Torchvision's architectures for 32×32 images, as a table of the little that has to change.

They are made for 224×224 and shrink an image 32-fold, so that 32×32 pixels become a single one long
before the last stage. So the stem keeps the resolution: its convolution has stride 1, a 7×7 kernel
becomes 3×3, and the max-pool behind it goes. The rest is torchvision's own, but for one module
without parameters in front of the last layer where there is none: it shows the features.
SqueezeNet's classifier averages before its last convolution, and has no ReLU behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torchvision.models as tvm
from torch import nn
from torchvision.models import efficientnet, mnasnet, mobilenetv2, mobilenetv3, regnet, resnet


class Architecture(NamedTuple):
    """Says what changes in a network of torchvision, and the names of its parts afterwards.

    Attributes:
        build: torchvision's function.
        stem: the first convolution, which loses its stride.
        pool: the max-pool of the stem, which goes; empty where there is none.
        features: the layer that returns the representation, pooled.
        head: the last layer, with one output per class.
    """

    build: Callable[..., nn.Module]
    stem: str
    pool: str
    features: str
    head: str


ARCHITECTURES = {
    "resnet34": Architecture(tvm.resnet34, "conv1", "maxpool", "avgpool", "fc"),
    "regnet_y_400mf": Architecture(tvm.regnet_y_400mf, "stem.0", "", "avgpool", "fc"),
    "densenet121": Architecture(
        tvm.densenet121, "features.conv0", "features.pool0", "classifier.0", "classifier.1"
    ),
    "mobilenet_v2": Architecture(
        tvm.mobilenet_v2, "features.0.0", "", "classifier.0", "classifier.1"
    ),
    "mobilenet_v3_small": Architecture(
        tvm.mobilenet_v3_small, "features.0.0", "", "avgpool", "classifier.3"
    ),
    "mnasnet0_5": Architecture(tvm.mnasnet0_5, "layers.0", "", "classifier.0", "classifier.1"),
    "shufflenet_v2_x0_5": Architecture(
        tvm.shufflenet_v2_x0_5, "conv1.0", "maxpool", "fc.0", "fc.1"
    ),
    "shufflenet_v2_x1_0": Architecture(
        tvm.shufflenet_v2_x1_0, "conv1.0", "maxpool", "fc.0", "fc.1"
    ),
    "squeezenet1_1": Architecture(
        tvm.squeezenet1_1, "features.0", "", "classifier.0", "classifier.2"
    ),
}

CHEAP = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "mobilenet_v2")


def adapted(name: str, num_classes: int) -> nn.Module:
    """Builds a network of `ARCHITECTURES` for 32×32 images, randomly initialized.

    >>> import torch
    >>> model = adapted("mobilenet_v2", 10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape, model.features[0](torch.zeros(2, 3, 32, 32)).shape
    (torch.Size([2, 10]), torch.Size([2, 32, 32, 32]))
    """
    about = ARCHITECTURES[name]
    model = about.build(num_classes=num_classes)
    stem = model.get_submodule(about.stem)
    assert isinstance(stem, nn.Conv2d)
    side = stem.kernel_size[0]
    if side > 3:  # the middle, scaled to the variance that torchvision draws for a 3×3 kernel
        cut = (side - 3) // 2
        stem.weight = nn.Parameter(stem.weight.detach()[:, :, cut:-cut, cut:-cut] * (side / 3))
        stem.kernel_size = (3, 3)
    stem.stride, stem.padding = (1, 1), (1, 1)
    if about.pool:
        model.set_submodule(about.pool, nn.Identity())
    last = about.features.partition(".")[0]
    if isinstance(model, tvm.SqueezeNet):
        # its logits are averaged behind a ReLU, which can leave a class without gradient for good
        dropout, final = model.classifier[:2]
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), dropout, final)
    elif isinstance(model.get_submodule(last), nn.Linear):
        model.set_submodule(last, nn.Sequential(nn.Identity(), model.get_submodule(last)))
    return model


def start_as_identity(model: nn.Module) -> None:
    """Makes every block with a shortcut start as the identity: its last BatchNorm gets weight 0.

    >>> import torch
    >>> model = adapted("mobilenet_v2", 10).eval()
    >>> start_as_identity(model)
    >>> images = torch.rand(1, 24, 8, 8)
    >>> model.features[3](images).equal(images)
    True
    """
    for block in model.modules():
        if isinstance(block, resnet.BasicBlock):
            last: Any = block.bn2
        elif isinstance(block, regnet.ResBottleneckBlock):
            last = block.f.c[1]
        elif isinstance(block, mobilenetv2.InvertedResidual) and block.use_res_connect:
            last = block.conv[-1]
        elif isinstance(block, mnasnet._InvertedResidual) and block.apply_residual:
            last = block.layers[-1]
        elif isinstance(block, _MBCONV) and block.use_res_connect:
            last = block.block[-1][1]
        else:
            continue
        nn.init.zeros_(last.weight)


_MBCONV = (efficientnet.MBConv, efficientnet.FusedMBConv, mobilenetv3.InvertedResidual)
