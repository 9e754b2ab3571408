"""Names of the layers of a network worth looking at: its stages, its blocks, all its modules."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from siutils.core import did_you_mean, fingerprint
from siutils.networks import inference

WHICH = ("stages", "blocks", "all")
_PLAIN = (nn.Sequential, nn.ModuleList)  # of exactly these types: subclasses are parts of their own
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def layer_names(model: nn.Module, which: str = "stages", inputs: Tensor | None = None) -> list[str]:
    """Chooses names of layers, as in `model.named_modules()`, for features and layer curves.

    * ``"stages"``: the children of `features` where the model has it (8 for EfficientNetV2-S); if
      these are all single operations (VGG, AlexNet), the pools among them: each ends a stage. With
      `layer1` to `layer4` (ResNet, also timm's): the pool of the stem, these, and the pool behind.
      Otherwise the model's children; a single child is descended into, and so is a Sequential or
      ModuleList of several modules where it is the only one.
    * ``"blocks"``: what Sequentials and ModuleLists hold, and children of a class that several
      children have: residual and MBConv blocks, stem and head of EfficientNets (42 for
      EfficientNetV2-S), transformer blocks, Inception modules. Of plain operations, a convolution
      and the operations up to the next convolution or pool are a block, named by the last of them:
      the ReLU of conv-bn-relu in VGG, the stem of ResNet. Where there is no convolution, linear
      layers take that part. Only `features` is looked at where the model has it.
    * ``"all"``: every module; of a container that only hands on what its last part returned, that
      part.

    With inputs, one forward pass leaves out layers that are unused, used more than once (what they
    return last would stand for all), or that return anything but one tensor with a row for each
    input, and orders the rest by when they finish.

    Args:
        model: any network.
        which: `"stages"`, `"blocks"` or `"all"`.
        inputs: one batch as the model takes it, such as float (1, 3, H, W), on the device where the
            model is to run; needed for `"all"`.

    Raises:
        ValueError: an unknown `which`, inputs needed, or no such layer found.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> layer_names(model), layer_names(model, "blocks")
    (['0', '1', '2'], ['1', '2'])
    """
    if which not in WHICH:
        raise ValueError(
            f"layers must be a list of names or one of {', '.join(WHICH)}, got {which!r}"
            f"{did_you_mean(which, WHICH, cutoff=0.0)}"
        )
    if which == "all":
        if inputs is None:
            raise ValueError('"all" needs inputs: one forward pass shows which layers are used')
        names = [name for name, part in model.named_modules() if name or _is_leaf(part)]
    else:
        names = _stages(model) if which == "stages" else _blocks(model)
    if inputs is not None:
        names = _used_once(model, names, inputs)
    if not names:
        raise ValueError(
            f"the model {type(model).__name__} has no {which} that are used once and return one "
            "tensor with a row for each image; name the layers, as in model.named_modules()"
        )
    return names


def check_names(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Returns the names without repetitions; suggests the nearest names for a missing one.

    >>> check_names(nn.Sequential(nn.ReLU()), ["0", "0"])
    ['0']
    """
    if isinstance(layers, str) or not layers:
        raise ValueError(f'layers must be a list of names such as ["avgpool"], got {layers!r}')
    names = [name for name, _ in model.named_modules()]
    for layer in layers:
        if layer not in names:
            raise ValueError(f"the model has no layer {layer!r}{did_you_mean(layer, names, 4)}")
    return list(dict.fromkeys(layers))


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _is_plain(module: nn.Module) -> bool:
    return type(module) in _PLAIN and not _is_leaf(module)


def _stages(model: nn.Module) -> list[str]:
    children = dict(model.named_children())
    if "features" in children and not _is_leaf(children["features"]):
        parts = {f"features.{name}": part for name, part in children["features"].named_children()}
        pools = [name for name, part in parts.items() if isinstance(part, _POOLS)]
        operations = all(_is_leaf(part) for part in parts.values())
        return pools if operations and pools else list(parts)
    if all(f"layer{i}" in children for i in (1, 2, 3, 4)):
        order = ("maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "global_pool")
        return [name for name in order if name in children]
    prefix = ""
    while len(children) == 1 and not _is_leaf(next(iter(children.values()))):
        (name, module), *_ = children.items()
        prefix, children = f"{prefix}{name}.", dict(module.named_children())
    several = [n for n, m in children.items() if _is_plain(m) and len(list(m.children())) > 1]
    names = []
    for name, module in children.items():
        inner = [f"{name}.{n}" for n, _ in module.named_children()] if [name] == several else [name]
        names += [prefix + n for n in inner]
    return names


def _blocks(model: nn.Module) -> list[str]:
    features = getattr(model, "features", None)
    root, prefix = model, ""
    if isinstance(features, nn.Module) and not _is_leaf(features):
        root, prefix = features, "features."
    for start in (_ConvNd, nn.Linear):
        names = list(_walk(root, prefix, start))
        if names:
            return names
    return []


def _walk(parent: nn.Module, prefix: str, start: type[nn.Module]) -> Iterator[str]:
    """Yields the blocks below a module; an operation of type `start` begins a run of operations."""
    repeated = Counter(type(child) for child in parent.children() if not _is_leaf(child))
    group = None  # the last operation of the run
    for name, child in parent.named_children():
        if isinstance(child, nn.Identity):
            continue
        if _is_leaf(child):
            if isinstance(child, start) or "Pool" in type(child).__name__:
                if group:
                    yield group
                group = None
            if group or isinstance(child, start):
                group = prefix + name
            continue
        if group:
            yield group
            group = None
        if _is_plain(child) or _is_plain(getattr(child, "blocks", nn.Identity())):
            yield from _walk(child, f"{prefix}{name}.", start)
        elif (
            _is_plain(parent)
            or repeated[type(child)] > 1
            or not any(_is_plain(m) for m in child.modules())
        ):
            yield prefix + name
        else:
            yield from _walk(child, f"{prefix}{name}.", start)
    if group:
        yield group


def _used_once(model: nn.Module, names: list[str], inputs: Tensor) -> list[str]:
    """Keeps the layers that a forward pass uses once and that return a tensor with a row per input.

    A container is left out if the same numbers came from the part of it that finished just before.
    """
    uses: Counter[str] = Counter()
    good: list[tuple[str, str]] = []
    modules = dict(model.named_modules())  # of a module with two names, the first

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            uses[name] += 1
            if isinstance(output, Tensor) and output.dim() > 0 and len(output) == len(inputs):
                # numbers, not the tensor: operations in place may change it later
                good.append((name, name if output.is_meta else fingerprint(output)))

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            if name in modules:
                stack.callback(modules[name].register_forward_hook(count(name)).remove)
        with inference(model, inputs.device), torch.inference_mode():
            model(inputs)
    once = [(name, key) for name, key in good if uses[name] == 1]
    return [
        name
        for (inner, inner_key), (name, key) in pairwise([("", ""), *once])
        if not (inner.startswith(f"{name}.") and inner_key == key)
    ]
