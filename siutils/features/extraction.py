"""Features: what named layers of a network give for a set of images, in memory or memory-mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from siutils.core import Labels, code_key, fingerprint, model_key, replacing, resolve_device
from siutils.data import (
    ImageFiles,
    all_images,
    image_batches,
    joined_labels,
    refuse_unreadable,
)
from siutils.features.files import check_room, job_file, memory_map, write_header
from siutils.features.layer_names import check_names
from siutils.features.pooling import Job, Pool, check_pools, main_output, pooled
from siutils.networks import inference, unwrapped

ImageTransform = Callable[[Tensor], Tensor]


def extract_features(
    model: nn.Module,
    images: Any,
    layers: Sequence[str] | None = None,
    *,
    transform: ImageTransform | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: Path | None = None,
    pool: Pool | Sequence[Pool] = None,
) -> Features:
    """Takes outputs of named layers over all images in one pass, in eval mode, flattened or pooled.

    The layers are read by forward hooks, so a layer's features are what the module returns, before
    an in-place activation behind it changes them; of a module that is used more than once, what it
    returns last; of a tuple, list, dictionary or dataclass, such as attention and LSTMs return, the
    first entry. The model's modes and device are as before afterwards.

    Args:
        model: any network that takes one batch of images; also in DataParallel or compiled, whose
            layers go by their plain names, quantized, or of another dtype, which the images get.
        images: uint8 (N, 3, H, W) to be transformed, or float (N, …), passed on as they are; also
            other forms of `siutils.data.image_batches`, such as a DataLoader, one batch of which is
            in memory at a time. One channel is repeated for a network that takes three.
        layers: names as in `model.named_modules()`; default: `model.feature_layer`.
        transform: for uint8 images; default: `model.transform`.
        batch_size: images per forward pass.
        device: where the network runs: "auto", "cpu", "cuda", …
        cache: a folder, or None for features in memory. With a folder, each batch is written to a
            file per layer, which is returned memory-mapped, so that features may be larger than
            memory; writing to a returned tensor does not change the file. Layers that the folder
            holds for the same weights, images, transform, kind of device and code are not
            computed again.
        pool: how each layer is pooled before its features are kept: None, `"mean"`, a side of a
            grid, see `pooled`; or a list of these, side by side from the same pass.

    Returns:
        {layer: float32 (N, D) on the CPU}, in the order asked for; with a list as pool
        {(layer, pool): float32 (N, D)}. Its attribute ``labels`` holds what came with the images,
        else None.

    Raises:
        ValueError: no such layer (the nearest names are given), no transform, no images, a wrong
            pool, or a layer that is not used or returns no tensor with one row per image.
        RuntimeError: features that are not finite, or a damaged file in the cache.
        OSError: a cache file cannot be written, or there is too little room; no half file is left.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.ReLU())
        >>> images = torch.tensor([[[1.0, -2.0]], [[-3.0, 4.0]]])
        >>> extract_features(model, images, ["0", "1"], device="cpu")["1"]
        tensor([[1., 0.],
                [0., 4.]])
    """
    model, target = unwrapped(model), resolve_device(device)
    layers, pools = _wanted_layers(model, layers), check_pools(pool)
    jobs = [(layer, p) for layer in layers for p in pools]
    if cache is not None:
        images, labels = all_images(images)
        once = Pass.of(model, images, transform, batch_size, target)
        features = once.features(jobs, Path(cache) / "features" / once.key())
    else:
        parts, labels_of_parts = [], []
        with inference(model, target):
            for batch, batch_labels in image_batches(images):
                once = Pass.of(model, batch, transform, batch_size, target)
                parts.append(once.features(jobs))
                labels_of_parts.append(batch_labels)
        if not parts:
            raise ValueError("images is empty")
        features, labels = joined(parts), joined_labels(labels_of_parts)
    several = isinstance(pool, list | tuple)
    result = Features({job if several else job[0]: matrix for job, matrix in features.items()})
    result.labels = labels
    return result


class Features(dict[Any, Tensor]):
    """Features of layers, and the labels that came with the images, or None."""

    labels: Labels | None = None


def joined(parts: Sequence[dict[Any, Tensor]]) -> dict[Any, Tensor]:
    """Features of all parts of the images, one behind the other.

    >>> joined([{"a": torch.zeros(1, 2)}, {"a": torch.ones(1, 2)}])["a"].shape
    torch.Size([2, 2])
    """
    if len(parts) == 1:
        return parts[0]
    return {job: torch.cat([part.pop(job) for part in parts]) for job in list(parts[0])}


def extract_from_files(
    model: nn.Module, files: ImageFiles, layers: Sequence[str], *, chunk: int = 512, **options: Any
) -> dict[Any, Tensor]:
    """Does what `extract_features` does for image files, `chunk` images at a time in memory.

    Args:
        model: a network of `load_model`: its transform says how the images are resized.
        files: the images.
        layers: names as in `model.named_modules()`.
        chunk: images to read at a time.
        options: of `extract_features`.

    Returns:
        As `extract_features`.

    Raises:
        ValueError, RuntimeError: as `extract_features`, or a file is no readable image.

    >>> import tempfile
    >>> from PIL import Image
    >>> from siutils.data import find_images
    >>> from siutils.networks import load_model
    >>> model = load_model("squeezenet1_1", "random", size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("ant", "bee"):
    ...         (Path(folder) / name).mkdir()
    ...         Image.new("RGB", (40, 40)).save(Path(folder) / name / "1.png")
    ...     found = extract_from_files(model, find_images(folder), ["penultimate"], pool="mean")
    >>> found["penultimate"].shape
    torch.Size([2, 512])
    """
    parts, preset = [], vars(model)["transform"]  # a plain attribute, see load_model
    for rows in torch.arange(len(files)).split(chunk):
        try:
            data = files.subset(rows).load(preset.resize_size[0], preset.interpolation)
        except ValueError:
            refuse_unreadable(files.readable().skipped)  # all, not only those of this part
            raise
        parts.append(extract_features(model, data.images, layers, **options))
    return joined(parts)


@dataclass(frozen=True)
class Pass:
    """One pass of images through a network, which gives the outputs of some of its layers.

    Attributes:
        model: any network that takes one batch of images.
        images: what `transform` takes.
        transform: from images to the network's input.
        batch_size: images per forward pass.
        device: where the network runs.

    >>> once = Pass(nn.ReLU(), torch.ones(2, 1, 2, 2), torch.Tensor.float, 1, torch.device("cpu"))
    >>> once.features([("", "mean")])
    {('', 'mean'): tensor([[1.],
            [1.]])}
    >>> once.needs([("", None), ("", 2)])
    ({('', None): 4, ('', 2): 4}, 8)
    """

    model: nn.Module
    images: Tensor
    transform: ImageTransform
    batch_size: int
    device: torch.device

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        transform: ImageTransform | None,
        batch_size: int,
        device: torch.device,
    ) -> Pass:
        """Makes a pass with the transform that the images need; see `extract_features`."""
        model = unwrapped(model)
        convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
        first = next(convolutions, None)
        if (
            first is not None
            and first.in_channels == 3
            and images.ndim == 4
            and images.shape[1] == 1
        ):
            images = images.expand(-1, 3, -1, -1)
        return cls(model, images, _input_transform(model, images, transform), batch_size, device)

    def key(self) -> str:
        """Makes a key of everything that determines the features of all layers."""
        how = repr(self.transform)
        if " at 0x" in how:
            raise ValueError(f"a cache needs a transform whose repr() says what it does, got {how}")
        facts = self.device.type, torch.__version__, torchvision.__version__, how
        return fingerprint(facts, code_key(__name__), model_key(self.model), self.images)

    def features(self, jobs: Sequence[Job], folder: Path | None = None) -> dict[Job, Tensor]:
        """Takes {job: float32 (N, D) on the CPU}, in memory or in one file of the folder per job.

        What the folder holds is taken from there; `job_file` names the files.
        """
        if folder is None:
            return self._in_memory(jobs)
        files = {job: job_file(folder, job) for job in jobs}
        missing = {job: file for job, file in files.items() if not file.exists()}
        if missing:
            self._to_files(missing)
        return {job: memory_map(file, len(self.images)) for job, file in files.items()}

    def needs(self, jobs: Sequence[Job]) -> tuple[dict[Job, int], int]:
        """Passes two images; returns D of each job, and the most numbers that a module holds.

        That is per image, of the module with most of them in its input and its output.

        Raises:
            ValueError, RuntimeError: what `extract_features` would find wrong with the layers.
        """
        most = 0

        def look(module: nn.Module, args: object, output: object) -> None:
            nonlocal most
            most = max(most, _numbers(args) + _numbers(output))

        two = replace(self, images=self.images[:2], batch_size=2)
        with contextlib.ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(module.register_forward_hook(look).remove)
            features = two.features(jobs)
        counts = {job: matrix.shape[1] for job, matrix in features.items()}
        return counts, -(-most // len(two.images))

    def _batches(self, jobs: Sequence[Job]) -> Generator[tuple[slice, dict[Job, Tensor]]]:
        """Yields rows and {job: float32 (rows, D) on the CPU} for one batch after the other."""
        n = len(self.images)
        floats = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        dtype = next(floats, torch.float32)
        with inference(self.model, self.device), _outputs_of(self.model, jobs) as outputs:
            for start in range(0, n, self.batch_size):
                rows = slice(start, min(start + self.batch_size, n))
                outputs.clear()
                with torch.inference_mode():
                    inputs = self.transform(self.images[rows].to(self.device))
                    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
                    if inputs.dim() == 4:
                        inputs = inputs.contiguous(memory_format=torch.channels_last)
                    self.model(inputs)
                for job in jobs:
                    _check_output(job, outputs, rows)
                yield rows, outputs

    def _in_memory(self, jobs: Sequence[Job]) -> dict[Job, Tensor]:
        arrays: dict[Job, Tensor] = {}
        for rows, outputs in self._batches(jobs):
            for job, output in outputs.items():
                if job not in arrays:
                    arrays[job] = torch.empty(len(self.images), output.shape[1])
                arrays[job][rows] = output
        return {job: arrays[job] for job in jobs}

    def _to_files(self, files: dict[Job, Path]) -> None:
        """Appends each batch to one .npy file per job; a failure leaves no file behind."""
        # not through a memory map: there a full disk kills the process instead of raising an error
        n, handles = len(self.images), {}
        with contextlib.ExitStack() as stack:
            for job, file in files.items():
                temporary = stack.enter_context(replacing(file))
                handles[job] = stack.enter_context(temporary.open("wb"))
            # closed at once where a file cannot be written: the model gets its modes back
            batches = stack.enter_context(contextlib.closing(self._batches(list(files))))
            for rows, outputs in batches:
                if rows.start == 0:
                    needed = sum(4 * n * output.shape[1] for output in outputs.values())
                    check_room(next(iter(files.values())).parent, needed)
                    for job, output in outputs.items():
                        write_header(handles[job], (n, output.shape[1]))
                for job, output in outputs.items():
                    handles[job].write(output.numpy().astype("<f4", order="C", copy=False).data)


def _wanted_layers(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    if layers is None:
        layer = getattr(model, "feature_layer", None)
        if not isinstance(layer, str):
            raise ValueError("layers is needed: the model has no attribute feature_layer")
        return [layer]
    return check_names(model, layers)


def _input_transform(
    model: nn.Module, images: Tensor, transform: ImageTransform | None
) -> ImageTransform:
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


@contextlib.contextmanager
def _outputs_of(model: nn.Module, jobs: Sequence[Job]) -> Iterator[dict[Job, Any]]:
    """Yields a dictionary that each forward pass fills with {job: copy of the pooled output}."""
    outputs: dict[Job, Any] = {}

    def keep(job: Job) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            output = main_output(output)
            if isinstance(output, Tensor) and output.dim() > 0:
                try:
                    output = pooled(output, job[1]).to("cpu", copy=True)
                except ValueError as error:
                    raise ValueError(f"layer {job[0]!r}: {error}") from None
            outputs[job] = output

        return hook

    modules = dict(model.named_modules())
    with contextlib.ExitStack() as stack:
        for job in jobs:
            handle = modules[job[0]].register_forward_hook(keep(job))
            stack.callback(handle.remove)
        yield outputs


def _check_output(job: Job, outputs: dict[Job, Any], rows: slice) -> None:
    n, layer = rows.stop - rows.start, job[0]
    if job not in outputs:
        raise ValueError(f"layer {layer!r} is not used in the model's forward pass")
    output = outputs[job]
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != n:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"layer {layer!r} must return a tensor with a row for each of the {n} images, alone or "
            f"first of several, got {got}; ask for a layer inside it"
        )
    if not output.isfinite().all():
        raise RuntimeError(
            f"the features of layer {layer!r} are not finite in images {rows.start} to "
            f"{rows.stop - 1}; look at the model's weights and its input"
        )


def _numbers(value: object) -> int:
    """Counts the numbers of all tensors in nested values."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, Mapping):
        value = list(value.values())
    return sum(map(_numbers, value)) if isinstance(value, tuple | list) else 0
