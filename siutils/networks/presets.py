"""Presets: the transform of a published network, torchvision's ImageClassification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torchvision.models as tvm
from torchvision.transforms import InterpolationMode

from siutils.core import check_positive


def make_preset(**options: Any) -> Any:
    """Makes torchvision's ImageClassification, which has no public name.

    >>> make_preset(crop_size=64).resize_size
    [256]
    """
    return tvm.ResNet18_Weights.DEFAULT.transforms(**options)


def resized(old: Any, size: int) -> Any:
    """Makes a preset with the same normalization for images of `size` pixels; 0 changes nothing.

    >>> resized(make_preset(crop_size=64), 32).resize_size
    [32]
    """
    if not size:
        return old
    check_positive(size, "size")
    same = {key: getattr(old, key) for key in ("mean", "std", "interpolation")}
    return make_preset(crop_size=size, resize_size=size, **same)


def timm_preset(name: str, config: Mapping[str, Any]) -> Any:
    """Makes the preset of a timm network from its data configuration.

    Raises:
        ValueError: the network wants other than square color images, cropped at the center.

    >>> config = {"input_size": (3, 32, 32), "crop_mode": "center", "crop_pct": 0.5}
    >>> config |= {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic"}
    >>> timm_preset("a network", config).resize_size
    [64]
    """
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["crop_mode"] != "center":
        raise ValueError(
            f"{name} wants images of shape {config['input_size']}, crop mode "
            f"{config['crop_mode']!r}; only square color images cropped at the center are supported"
        )
    return make_preset(
        crop_size=height,
        resize_size=math.floor(height / config["crop_pct"]),  # as timm's own transform
        mean=config["mean"],
        std=config["std"],
        interpolation=InterpolationMode(config["interpolation"]),
    )


def transform_text(preset: Any) -> str:
    """Describes the transform of a loaded network in one line.

    >>> transform_text(tvm.ResNet18_Weights.DEFAULT.transforms()).split("; ")[:2]
    ['shorter side 256, bilinear', 'center 224']
    """
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (preset.mean, preset.std))
    return (
        f"shorter side {preset.resize_size[0]}, {preset.interpolation.value}; "
        f"center {preset.crop_size[0]}; mean {mean}, std {std}"
    )
