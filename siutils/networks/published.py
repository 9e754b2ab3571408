"""Any torchvision or timm network with published weights, a file's, or random ones.

Unlike those of `models`, the networks are unmodified and come with their own transform. Files are
loaded as tensors, never as code.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tvm
from efficientnet_pytorch import EfficientNet
from torch import nn
from torchvision.transforms import InterpolationMode

from siutils.core import did_you_mean, user_path
from siutils.networks.lite import LITE_MEAN, LITE_STD, LITES, lite, lite_weights
from siutils.networks.presets import make_preset, resized, timm_preset
from siutils.networks.weights import (
    fitting,
    from_hub,
    is_of_package,
    load,
    read,
    seeded,
    sha256,
    shortened,
    state_keys,
)

DEFAULT = "DEFAULT"  # as torchvision calls a network's best published weights
RANDOM = "random"
TIMM = "timm:"
FEATURES = "penultimate"  # the layer that a loaded network gets
_RANDOM_SOURCE = "random initialization"
_BUILD_OPTIONS = ("image_size", "transform_input", "aux_logits")  # what weights may change
_OWN_TRANSFORM = ("googlenet", "inception_v3")  # trained ones rescale their input in forward()


def load_model(
    name: str, weights: str | Path = DEFAULT, *, size: int = 0, seed: int = 0
) -> nn.Module:
    """Loads a network to look at its features: on the CPU, in eval mode, with its own classes.

    It has the plain attributes of a model of `create_model`: ``feature_layer``, ``head_layer``,
    ``transform`` (always there) and ``weights_source``; and ``source_classes``, the number of
    classes that its output tells apart, 0 if it is no trained classifier. The feature layer,
    ``penultimate``, is an identity that shows what enters the last linear layer or convolution,
    which some networks compute outside of any module.

    Args:
        name: a classification network of torchvision, an EfficientNet-Lite of `create_model`, or
            ``"timm:NAME"`` (needs the package timm).
        weights: ``"DEFAULT"`` for the best published ones, or the name of others, such as
            ``"IMAGENET1K_V1"``; torchvision's are looked for in ``torch.hub.get_dir()/checkpoints``
            and downloaded where absent, timm's as timm does it. The path of a checkpoint, for any
            number of classes, see `siutils.networks.weights.fitting`. ``"random"`` for none.
        size: side in pixels to which images are resized and cropped; 0: as the weights want it.
        seed: of random weights.

    Raises:
        ValueError: an unknown name, timm missing, or a file that does not fit or is unsafe.
        FileNotFoundError: no such file, or published weights neither there nor to be fetched.
        RuntimeError: a download has not the published hash.

    >>> model = load_model("squeezenet1_1", "random", size=64)
    >>> model.transform.resize_size, model.transform.crop_size
    ([64], [64])
    >>> model.weights_source, model.source_classes
    ('random initialization, seed 0', 0)
    """
    check_model(name, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torchvision, about its own defaults
        planned = _plan_timm if name.startswith(TIMM) else _plan_lite if name in LITES else _plan
        plan = planned(name, weights)
        with seeded(seed):
            model = plan.build().eval()
        preset = resized(plan.preset, size)
        head, source, classifier = _head(model, name, preset), plan.source, True
        if plan.content is not None:
            state, note = fitting(plan.content, model, head, name, plan.path)
            classifier = f"{head}.weight" in state
            classes = len(state[f"{head}.weight"]) if classifier else _outputs(model, head)
            if classes != _outputs(model, head):
                model = plan.build(num_classes=classes).eval()
            note += "; last layer random" * (bool(head) and not classifier)
            load(model, model.state_dict() | state, name, plan.path)
            source += note
    described = _described(model, head, preset, source, seed)
    if not classifier:
        described.__dict__["source_classes"] = 0
    return described


def untrained_twin(model: nn.Module, name: str, seed: int = 0) -> nn.Module:
    """Builds the network of `load_model` once more, with random weights and nothing else changed.

    Args:
        model: what `load_model` returned for `name`, trained.
        name: as there.
        seed: of the weights.

    Raises:
        ValueError: the weights of the model are random already, or its builder does not give the
            same network without weights.

    >>> model = load_model("squeezenet1_1", "random", size=64)
    >>> untrained_twin(model, "squeezenet1_1")
    Traceback (most recent call last):
        ...
    ValueError: untrained: the weights of squeezenet1_1 are random already
    """
    known: dict[str, Any] = vars(model)  # plain attributes, see load_model
    if known["weights_source"].startswith(_RANDOM_SOURCE):
        raise ValueError(f"untrained: the weights of {name} are random already")
    head, options = known["head_layer"], {}
    if head:
        options["num_classes"] = _outputs(model, head)
    if name.startswith(TIMM):
        build = partial(_timm_package(name).create_model, name.removeprefix(TIMM))
    elif name in LITES:
        build = partial(lite, name)
    else:
        build = partial(tvm.get_model, name, weights=None)
        options |= {key: known[key] for key in _BUILD_OPTIONS if key in known}
    with warnings.catch_warnings(), seeded(seed):
        warnings.simplefilter("ignore", FutureWarning)
        twin = build(**options).eval()
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, twin)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"untrained: {name} is built otherwise with weights than without them")
    return _described(twin, head, known["transform"], "", seed)


def check_model(name: str, weights: str | Path = DEFAULT) -> None:
    """Refuses an unknown name and a missing file, before anything is built.

    Raises:
        ValueError, FileNotFoundError: as `load_model`.

    >>> check_model("resnet81")
    Traceback (most recent call last):
        ...
    ValueError: unknown network 'resnet81'; did you mean 'resnet18' or 'resnet152' or 'resnet101'?
    """
    timm = _timm_package(name) if name.startswith(TIMM) else None
    short = name.removeprefix(TIMM)
    known = timm.list_models() if timm else [*tvm.list_models(module=tvm), *LITES]
    if short.partition(".")[0] not in known or ("." in short and not timm):
        raise ValueError(f"unknown network {name!r}{did_you_mean(short, known, 3, cutoff=0.3)}")
    if timm:
        try:
            timm.get_pretrained_cfg(short, allow_unregistered=False)
        except RuntimeError as error:
            raise ValueError(f"{name}: {error}") from None
    published = {DEFAULT}
    if not timm and name not in LITES:
        published |= tvm.get_model_weights(name).__members__.keys()
    if str(weights) not in published | {RANDOM} and not user_path(weights).is_file():
        choices = ", ".join(sorted(published | {RANDOM}))
        raise FileNotFoundError(
            f"weights: no file {str(weights)!r} for {name}; give the path of its state_dict, or "
            f"one of {choices}"
        )


def parse_models(models: Sequence[str], weights: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Parses ``NAME`` and ``NAME=WEIGHTS`` into {label: (name, weights)} of networks to compare.

    Args:
        models: networks; one may stand there several times with different weights.
        weights: ``NAME=WEIGHTS`` for those of `models` that do not say theirs.

    Raises:
        ValueError: a text without a name or weights, weights of a network that is not among the
            models, or the same twice.

    >>> parse_models(["resnet18", "resnet18=random"], ["resnet18=best.pt"])
    {'resnet18 (best)': ('resnet18', 'best.pt'), 'resnet18 (random)': ('resnet18', 'random')}
    """
    given: dict[str, str] = {}
    for text in weights:
        name, equals, source = (part.strip() for part in text.partition("="))
        if not name or not source:
            raise ValueError(f"weights {text!r}: write NAME=FILE, such as resnet18=best.pt")
        if name not in {model.partition("=")[0].strip() for model in models}:
            raise ValueError(f"weights {text!r}: {name!r} is not among the models")
        given[name] = source
    networks = []
    for text in models:
        name, equals, source = (part.strip() for part in text.partition("="))
        if not name or (equals and not source):
            raise ValueError(f"models: write NAME or NAME=WEIGHTS, got {text!r}")
        networks.append((name, source or given.get(name, DEFAULT)))
        if networks.count(networks[-1]) > 1:
            raise ValueError(f"models: {_label(*networks[-1], 1)} is there twice")
    depth = 1
    while len(labels := {_label(*network, depth): network for network in networks}) < len(networks):
        depth += 1
    return labels


def _label(name: str, source: str, depth: int) -> str:
    """Name and file of weights, with so many parts of its path that labels differ."""
    parts = Path(source).with_suffix("").parts
    return name if source == DEFAULT else f"{name} ({'/'.join(parts[-depth:])})"


@dataclass(frozen=True)
class _Plan:
    """How a network is built, which weights it gets then, and where they come from."""

    build: Callable[..., nn.Module]
    preset: Any  # torchvision's ImageClassification
    source: str = ""  # empty for random weights
    content: Any = None  # of a file
    path: Path = Path()


def _plan(name: str, weights: str | Path) -> _Plan:
    published = tvm.get_model_weights(name)
    member = published.__members__.get(str(weights))
    preset = (member or published.DEFAULT).transforms()
    build = partial(tvm.get_model, name, weights=None)
    if weights == RANDOM:
        return _Plan(build, preset)
    if member is not None:
        _, path = from_hub(member.url, member.get_state_dict)  # fetched, and proven to be tensors
        source = f"torchvision {member!r}, sha256 {sha256(path)[:8]}"
        return _Plan(partial(_published, name, member, path), preset, source)
    plan = _of_file(name, build, preset, weights)
    if name not in _OWN_TRANSFORM:
        return plan
    aux = any("aux1." in key or "AuxLogits." in key for key in state_keys(plan.content))
    build = partial(build, transform_input=True, init_weights=False, aux_logits=aux)
    return replace(plan, build=build)


def _plan_lite(name: str, weights: str | Path) -> _Plan:
    side = LITES[name].side
    preset = make_preset(
        crop_size=side,
        resize_size=side + 32,  # as the authors evaluate it
        mean=LITE_MEAN,
        std=LITE_STD,
        interpolation=InterpolationMode.BICUBIC,
    )
    build = partial(lite, name)
    if weights == RANDOM:
        return _Plan(build, preset)
    return _of_file(name, build, preset, lite_weights(name) if weights == DEFAULT else weights)


def _published(name: str, member: Any, path: Path) -> nn.Module:
    """Uses torchvision's builder, as a few networks have options and key names of their own."""
    try:
        return tvm.get_model(name, weights=member)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} does not fit {name}: {shortened(error)}") from error


def _plan_timm(name: str, weights: str | Path) -> _Plan:
    timm, short = _timm_package(name), name.removeprefix(TIMM)
    build = partial(timm.create_model, short)
    config = timm.get_pretrained_cfg(short)
    preset = timm_preset(name, timm.data.resolve_data_config(pretrained_cfg=config.to_dict()))
    if weights == RANDOM:
        return _Plan(build, preset)
    if weights == DEFAULT:
        origin = config.hf_hub_id or config.url or config.file
        source = f"timm {version('timm')} {config.architecture}.{config.tag}, {origin}"
        return _Plan(partial(_published_by_timm, build, name, origin), preset, source)
    return _of_file(name, build, preset, weights)


def _timm_package(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(
            f"{name!r} needs the package timm: pip install timm, or install siutils[timm]"
        ) from None
    return timm


def _published_by_timm(build: Callable[..., nn.Module], name: str, origin: str) -> nn.Module:
    try:
        return build(pretrained=True)
    except Exception as error:  # network, disk, hub: each with errors of its own
        raise FileNotFoundError(
            f"weights of {name}: {origin or 'none are published and so'} could not be fetched "
            f"({shortened(error)}). Download its model.safetensors and give the path"
        ) from error


def _of_file(name: str, build: Callable[..., nn.Module], preset: Any, file: str | Path) -> _Plan:
    path = user_path(file)
    content = read(path)
    size = re.fullmatch(r"efficientnet_b(\d)", name)
    if size and is_of_package(content):
        build = partial(EfficientNet.from_name, f"efficientnet-b{size[1]}")
    return _Plan(build, preset, f"file {path.name} sha256 {sha256(path)}", content, path)


def _head(model: nn.Module, name: str, preset: Any) -> str:
    """Finds the last linear layer or convolution of a forward pass; empty if there are no classes.

    Raises:
        ValueError: the network does not take images of this size.
    """
    last = [""]

    def note(layer: str, *_: object) -> None:
        last[0] = layer

    side = preset.crop_size[0]
    with contextlib.ExitStack() as stack:
        for layer, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                handle = module.register_forward_hook(partial(note, layer))
                stack.callback(handle.remove)
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 3, side, side))
        except Exception as error:  # each network has its own
            raise ValueError(
                f"size: {name} takes no images of {side}×{side} pixels: {shortened(error)}"
            ) from error
    return "" if getattr(model, "num_classes", None) == 0 else last[0]


def _described(model: nn.Module, head: str, preset: Any, source: str, seed: int) -> nn.Module:
    model.__dict__.update(  # plain attributes, as in create_model
        feature_layer=_show_features(model, head),
        head_layer=head,
        transform=preset,
        weights_source=source or f"{_RANDOM_SOURCE}, seed {seed}",
        source_classes=_outputs(model, head) if source else 0,
    )
    return model


def _outputs(model: nn.Module, head: str) -> int:
    return len(model.get_submodule(head).get_parameter("weight")) if head else 0


def _show_features(model: nn.Module, head: str) -> str:
    """Adds an identity layer that the input of the head passes through, and returns its name."""
    if not head:
        return head  # without a classifier a network returns its features
    identity = nn.Identity()
    model.add_module(FEATURES, identity)
    model.get_submodule(head).register_forward_pre_hook(partial(_pass_through, identity))
    return FEATURES


def _pass_through(identity: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return identity(args[0]), *args[1:]
