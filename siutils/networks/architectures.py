"""The networks by name, with the little in which they differ from torchvision's own.

torchvision's networks are made for 224×224 and shrink an image 32-fold, so that 32×32 pixels become
a single one long before the last stage. So the stem of the study's networks keeps the resolution.
EfficientNetV2-S and EfficientNet-Lite are as published, for images that are resized.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.models as tvm
from efficientnet_pytorch.model import MBConvBlock
from torch import Tensor, nn
from torchvision.models import efficientnet, resnet

from siutils.networks.lite import LITES, lite


def start_as_identity(model: nn.Module) -> None:
    """Makes every block with a shortcut start as the identity: its last BatchNorm gets weight 0.

    >>> model = BUILDERS["resnet18"](10).eval()
    >>> start_as_identity(model)
    >>> images = torch.rand(1, 64, 8, 8)
    >>> model.layer1[0](images).equal(images)
    True
    """
    for block in model.modules():
        if type(block) is resnet.BasicBlock:  # a subclass may have no shortcut
            last: Any = block.bn2
        elif isinstance(block, MBConvBlock) and _has_shortcut(block):
            last = block._bn2
        elif isinstance(block, _MBCONV) and block.use_res_connect:
            last = block.block[-1][1]
        else:
            continue
        nn.init.zeros_(last.weight)


def _has_shortcut(block: MBConvBlock) -> bool:
    args = block._block_args
    return args.id_skip and args.stride == 1 and args.input_filters == args.output_filters


_MBCONV = (efficientnet.MBConv, efficientnet.FusedMBConv)


def _vgg16(num_classes: int) -> nn.Module:
    with torch.device("meta"):  # torchvision's first linear layer alone would take 400 MB and 1 s
        model: Any = tvm.vgg16_bn(num_classes=num_classes)
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


class _NoShortcut(resnet.BasicBlock):
    """A block of ResNet18 without its shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


def _resnet18_no_shortcuts(num_classes: int) -> nn.Module:
    model = _resnet18(num_classes, _NoShortcut)
    for block in model.modules():
        if isinstance(block, _NoShortcut):
            block.downsample = None
    return model


def _resnet18(num_classes: int, block: type[resnet.BasicBlock] = resnet.BasicBlock) -> nn.Module:
    model = tvm.ResNet(block, [2, 2, 2, 2], num_classes)
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


class _StrideOne(tvm.EfficientNet):
    """EfficientNetV2-S whose stage 0 keeps the resolution."""

    def change(self) -> None:
        self.features[0][0].stride = (1, 1)


class _PlainStage1(tvm.EfficientNet):
    """EfficientNetV2-S without the shortcuts of stage 1, which leaves plain 3×3 convolutions.

    At expansion 1 a Fused-MBConv is a convolution and a shortcut, so the parameters are the same.
    """

    def change(self) -> None:
        for block in self.features[1]:
            block.use_res_connect = False


def _variant(kind: type[_StrideOne] | type[_PlainStage1], num_classes: int) -> nn.Module:
    model: Any = _efficientnet_v2_s(num_classes)
    model.__class__ = kind  # by its name the record of a training tells the variants apart
    model.change()
    return model


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "vgg16": _vgg16,
    "resnet18": _resnet18,
    "resnet18_no_shortcuts": _resnet18_no_shortcuts,
    "efficientnet_b0": _efficientnet_b0,
    "efficientnet_v2_s": _efficientnet_v2_s,
    "efficientnet_v2_s_stride1": partial(_variant, _StrideOne),
    "efficientnet_v2_s_plain_stage1": partial(_variant, _PlainStage1),
    **{name: partial(lite, name) for name in LITES},
}
MODELS = tuple(BUILDERS)
PARTS = {  # the layer of the features and the last layer
    **dict.fromkeys(("resnet18", "resnet18_no_shortcuts"), ("avgpool", "fc")),
    **{name: ("avgpool", "classifier.1") for name in MODELS if name.startswith("efficientnet_")},
    "vgg16": ("features", "classifier.6"),
    **dict.fromkeys(LITES, ("_avg_pooling", "_fc")),
}
