"""Features: what named layers of a network give for a set of images, in memory or memory-mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from siutils.checkpoints import fingerprint, replacing
from siutils.devices import resolve_device
from siutils.layer_names import check_names
from siutils.training import inference

_CODE = ("data", "features", "images", "models")  # modules that determine features


def extract_features(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str] | None = None,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: Path | None = None,
) -> dict[str, Tensor]:
    """Outputs of named layers over all images in one pass, in eval mode, flattened.

    The layers are read by forward hooks, so a layer's features are what the module returns, before
    an in-place activation behind it changes them; of a module that is used more than once, what it
    returns last. The model's modes and device are as before afterwards.

    Args:
        model: any network that takes one batch of images.
        images: uint8 (N, 3, H, W) to be transformed, or float (N, …), passed on as float32.
        layers: names as in `model.named_modules()`; default: `model.feature_layer`.
        transform: for uint8 images; default: `model.transform`.
        batch_size: images per forward pass.
        device: where the network runs: "auto", "cpu", "cuda", …
        cache: a folder, or None for features in memory. With a folder, each batch is written to a
            file per layer, which is returned memory-mapped, so that features may be larger than
            memory; writing to a returned tensor does not change the file. Layers that the folder
            holds for the same weights, images, transform, kind of device and code are not
            computed again.

    Returns:
        {layer: float32 (N, D) on the CPU}, in the order asked for.

    Raises:
        ValueError: no such layer (the nearest names are given), no transform, no images, or a
            layer that is not used or returns no tensor with one row per image.
        RuntimeError: features that are not finite, or a damaged file in the cache.
        OSError: a cache file cannot be written; no half file is left.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.ReLU())
        >>> images = torch.tensor([[[1.0, -2.0]], [[-3.0, 4.0]]])
        >>> extract_features(model, images, ["0", "1"], device="cpu")["1"]
        tensor([[1., 0.],
                [0., 4.]])
    """
    layers = _wanted_layers(model, layers)
    transform = input_transform(model, images, transform)
    device = resolve_device(device)
    if cache is None:
        return _in_memory(model, images, layers, transform, batch_size, device)
    folder = Path(cache) / "features" / _key(model, images, transform, device)
    files = {layer: folder / f"{quote(layer, safe='')}.npy" for layer in layers}
    missing = {layer: file for layer, file in files.items() if not file.exists()}
    if missing:
        _to_files(model, images, missing, transform, batch_size, device)
    return {layer: _memory_map(file, len(images)) for layer, file in files.items()}


def _wanted_layers(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    if layers is None:
        layer = getattr(model, "feature_layer", None)
        if not isinstance(layer, str):
            raise ValueError("layers is needed: the model has no attribute feature_layer")
        return [layer]
    return check_names(model, layers)


def input_transform(
    model: nn.Module, images: Tensor, transform: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """What turns these images into the model's input, as `extract_features` does it.

    >>> input_transform(nn.ReLU(), torch.zeros(1, 2), None)(torch.ones(1).half()).dtype
    torch.float32
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if len(images) == 0:
        raise ValueError("images is empty")
    if images.is_floating_point():
        if transform is not None:
            raise ValueError("float images are passed as they are: leave transform out")
        return torch.Tensor.float
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 or float, got {images.dtype}")
    transform = transform or getattr(model, "transform", None)
    if transform is None:
        raise ValueError(
            "uint8 images need a transform: pass transform=…, set model.transform, or give float "
            "images that are already transformed"
        )
    return transform


def _for_each_batch(
    use: Callable[[slice, dict[str, Tensor]], None],
    model: nn.Module,
    images: Tensor,
    layers: list[str],
    transform: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
) -> None:
    """Call `use(rows, {layer: float32 (rows, D) on the CPU})` for one batch after the other."""
    with inference(model, device), _outputs_of(model, layers) as outputs:
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            outputs.clear()
            with torch.inference_mode():
                inputs = transform(images[rows].to(device))
                if inputs.dim() == 4:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                model(inputs)
            for layer in layers:
                _check_output(layer, outputs, rows)
            use(rows, outputs)


def _in_memory(
    model: nn.Module,
    images: Tensor,
    layers: list[str],
    transform: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}

    def use(rows: slice, outputs: dict[str, Tensor]) -> None:
        for layer, output in outputs.items():
            if layer not in arrays:
                arrays[layer] = torch.empty(len(images), output.shape[1])
            arrays[layer][rows] = output

    _for_each_batch(use, model, images, layers, transform, batch_size, device)
    return {layer: arrays[layer] for layer in layers}


def _to_files(
    model: nn.Module,
    images: Tensor,
    files: dict[str, Path],
    transform: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
) -> None:
    """Append each batch to one .npy file per layer; a failure leaves no file behind."""
    # not through a memory map: there a full disk kills the process instead of raising an error
    handles: dict[str, IO[bytes]] = {}

    def use(rows: slice, outputs: dict[str, Tensor]) -> None:
        for layer, output in outputs.items():
            if rows.start == 0:
                shape = (len(images), output.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(handles[layer], header)
            handles[layer].write(output.numpy().astype("<f4", order="C", copy=False).data)

    with contextlib.ExitStack() as stack:
        for layer, file in files.items():
            temporary = stack.enter_context(replacing(file))
            handles[layer] = stack.enter_context(temporary.open("wb"))
        _for_each_batch(use, model, images, list(files), transform, batch_size, device)


@contextlib.contextmanager
def _outputs_of(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Any]]:
    """A dictionary that each forward pass fills with {layer: copy of its output}."""
    outputs: dict[str, Any] = {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() > 0:
                output = output.flatten(1) if output.dim() > 1 else output[:, None]
                output = output.to("cpu", torch.float32, copy=True)
            outputs[layer] = output

        return hook

    modules = dict(model.named_modules())
    with contextlib.ExitStack() as stack:
        for layer in layers:
            handle = modules[layer].register_forward_hook(keep(layer))
            stack.callback(handle.remove)
        yield outputs


def _check_output(layer: str, outputs: dict[str, Any], rows: slice) -> None:
    n = rows.stop - rows.start
    if layer not in outputs:
        raise ValueError(f"layer {layer!r} is not used in the model's forward pass")
    output = outputs[layer]
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != n:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"layer {layer!r} must return one tensor with a row for each of the {n} images, got "
            f"{got}; ask for a layer inside it"
        )
    if not output.isfinite().all():
        raise RuntimeError(
            f"the features of layer {layer!r} are not finite in images {rows.start} to "
            f"{rows.stop - 1}; look at the model's weights and its input"
        )


def _memory_map(file: Path, n: int) -> Tensor:
    try:
        array = np.load(file, mmap_mode="c")  # copy on write: the file itself cannot be changed
        if array.dtype != np.float32 or array.ndim != 2 or len(array) != n:
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
    except (ValueError, EOFError) as error:
        raise RuntimeError(
            f"cannot read the features {file}: {error}. Delete this file to compute them again"
        ) from error
    return torch.from_numpy(array)


def _key(
    model: nn.Module, images: Tensor, transform: Callable[[Tensor], Tensor], device: torch.device
) -> str:
    """A key of everything that determines the features of all layers."""
    if " at 0x" in repr(transform):
        raise ValueError(
            f"a cache needs a transform whose repr() says what it does, got {transform!r}"
        )
    facts = (device.type, torch.__version__, torchvision.__version__, repr(transform))
    code = tuple(Path(__file__).with_name(f"{name}.py") for name in _CODE)
    return fingerprint(facts, code, repr(model), model.state_dict(), images)
