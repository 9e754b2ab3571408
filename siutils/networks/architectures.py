"""The networks by name: torchvision's for 32×32 images, with the little that has to change.

They are made for 224×224 and shrink an image 32-fold, so that 32×32 pixels become a single one long
before the last stage. So the stem keeps the resolution: its convolution has stride 1, a 7×7 kernel
becomes 3×3, and the max-pool behind it goes. The rest is torchvision's own, but for one module
without parameters in front of the last layer where there is none: it shows the features.
SqueezeNet's classifier averages before its last convolution, and has no ReLU behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torchvision.models as tvm
from efficientnet_pytorch.model import MBConvBlock
from torch import Tensor, nn
from torchvision.models import efficientnet, mnasnet, mobilenetv2, mobilenetv3, regnet, resnet

from siutils.networks.lite import LITES, lite


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
    parts = ARCHITECTURES[name]
    model = parts.build(num_classes=num_classes)
    stem = model.get_submodule(parts.stem)
    assert isinstance(stem, nn.Conv2d)
    side = stem.kernel_size[0]
    if side > 3:  # the middle, scaled to the variance that torchvision draws for a 3×3 kernel
        cut = (side - 3) // 2
        stem.weight = nn.Parameter(stem.weight.detach()[:, :, cut:-cut, cut:-cut] * (side / 3))
        stem.kernel_size = (3, 3)
    stem.stride, stem.padding = (1, 1), (1, 1)
    if parts.pool:
        model.set_submodule(parts.pool, nn.Identity())
    last = parts.features.partition(".")[0]
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
        if type(block) is resnet.BasicBlock:  # a subclass may have no shortcut
            last: Any = block.bn2
        elif isinstance(block, MBConvBlock) and _has_shortcut(block):
            last = block._bn2
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


def _has_shortcut(block: MBConvBlock) -> bool:
    args = block._block_args
    return args.id_skip and args.stride == 1 and args.input_filters == args.output_filters


_MBCONV = (efficientnet.MBConv, efficientnet.FusedMBConv, mobilenetv3.InvertedResidual)


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


class _NoShortcut(resnet.BasicBlock):
    """A block of ResNet18 and ResNet34 without its shortcut."""

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


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "vgg16": partial(_vgg, tvm.vgg16_bn),
    "resnet18": _resnet18,
    "resnet18_no_shortcuts": _resnet18_no_shortcuts,
    "efficientnet_b0": _efficientnet_b0,
    "efficientnet_v2_s": _efficientnet_v2_s,
    "vgg11": partial(_vgg, tvm.vgg11_bn),
    "vgg13": partial(_vgg, tvm.vgg13_bn),
    **{name: partial(adapted, name) for name in ARCHITECTURES},
    **{name: partial(lite, name) for name in LITES},
}
MODELS = tuple(BUILDERS)
PARTS = {  # the layer of the features and the last layer
    **dict.fromkeys(("resnet18", "resnet18_no_shortcuts"), ("avgpool", "fc")),
    "efficientnet_b0": ("avgpool", "classifier.1"),
    "efficientnet_v2_s": ("avgpool", "classifier.1"),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16"), ("features", "classifier.6")),
    **{name: (parts.features, parts.head) for name, parts in ARCHITECTURES.items()},
    **dict.fromkeys(LITES, ("_avg_pooling", "_fc")),
}
