"""Features to search among: pixels, two short-trained networks, noise. All float32, all seeded.

The networks are trained by siutils itself on the first 8,000 training images of CIFAR-100, for
minutes only; checkpoints and features lie in the ordinary cache folder, so this happens once. Both
steps resume where they were stopped.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from siutils import create_model, extract_features, load_dataset
from siutils.core import cache_dir
from siutils.data import ImageSet, transform_for
from siutils.training import augment, fit, get_recipe

# network: epochs
TRAINING = {"resnet18": 3, "efficientnet_b0": 6}
WORKLOADS = ("pixels", *TRAINING, "low_rank", "noise")
TRAIN, VAL = slice(0, 8000), slice(49500, 50000)
STEP = 5000  # images whose features make one file of the cache
ABOUT = {
    "pixels": "CIFAR-100 training images/255, z-scored per pixel; beyond 50,000 augmented copies",
    "resnet18": "average pool of ResNet18 trained on 8,000 images of CIFAR-100 for 3 epochs",
    "efficientnet_b0": "average pool of EfficientNet-B0, as before, 6 epochs",
    "low_rank": "2,048 dimensions of rank 64 with decaying spectrum, and noise of 0.02",
    "noise": "isotropic Gaussian noise: nothing to prune by",
}


def make(name: str, n: int) -> Tensor:
    """(n, D) float32 features of a workload: the first n of its samples.

    Raises:
        ValueError: unknown workload, or more samples than it has.
    """
    if name == "noise":
        return torch.randn(n, 512, generator=torch.Generator().manual_seed(0))
    if name == "low_rank":
        return _low_rank(n)
    if name == "pixels":
        return _standardized(_images(n))
    if name not in TRAINING:
        raise ValueError(f"unknown workload {name!r}; choose one of {', '.join(WORKLOADS)}")
    return _features(name, n)


def _low_rank(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(64, 2048, generator=generator) / torch.arange(1, 65).sqrt()[:, None]
    x = torch.empty(n, 2048)
    for part in x.split(65_536):
        part.copy_(torch.randn(len(part), 64, generator=generator) @ axes)
        part += torch.randn(part.shape, generator=generator).mul_(0.02)
    return x


@functools.cache
def _cifar() -> ImageSet:
    return load_dataset("cifar100")


def _images(n: int) -> Tensor:
    """The training images, then copies of them, each shifted and mirrored by its own draw."""
    images = _cifar().images
    parts, generator = [images[:n]], torch.Generator().manual_seed(0)
    for start in range(len(images), n, len(images)):
        parts.append(augment(images[: n - start], get_recipe("study", rotation=0.0), generator))
    return torch.cat(parts)


def _standardized(images: Tensor) -> Tensor:
    # in steps: at 200,000 images a second copy in float64 would need 5 GB
    x = torch.empty(len(images), images[0].numel())
    for out, part in zip(x.split(4096), images.flatten(1).split(4096), strict=True):
        out.copy_(part).div_(255)
    std, mean = torch.std_mean(x, dim=0)
    return x.sub_(mean).div_(std + 1e-10)


def _features(name: str, n: int) -> Tensor:
    data, transform = _cifar(), transform_for("cifar100")
    if n > len(data):
        raise ValueError(f"{name} has {len(data)} samples; {n} were asked for")
    model = create_model(name, num_classes=100, seed=0, zero_init_residual=name != "resnet18")
    train, val = data.subset(range(50000)[TRAIN]), data.subset(range(50000)[VAL])
    recipe = get_recipe("fast", name, epochs=TRAINING[name])
    fit(
        model, train, val, recipe, transform=transform, seed=0, device="cpu", cache=cache_dir(),
        progress=print,
    )  # fmt: skip
    parts = []
    for start in range(0, n, STEP):
        images = data.images[start : start + STEP]
        found = extract_features(model, images, device="cpu", cache=cache_dir())
        parts.append(found[model.feature_layer])
        print(f"{name}: features of {min(start + STEP, n):,} images", flush=True)
    return torch.cat(parts)[:n]
