"""Augmentation: every operation against torchvision or the definition, one image at a time."""

import dataclasses
import math

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import ImageOps
from torch import nn

from siutils.augmentation import OPERATIONS, augment, cutmix, trivial_augment
from siutils.recipes import get_recipe


def test_rotation_equals_torchvisions():
    images = torch.randint(0, 256, (32, 3, 9, 12), dtype=torch.uint8)
    recipe = get_recipe("study", crop_padding=0, flip=False, rotation=40)
    rotated = augment(images, recipe, torch.Generator().manual_seed(3))
    angles = (2 * torch.rand(32, 4, generator=torch.Generator().manual_seed(3))[:, 0] - 1) * 40
    expected = [TF.rotate(x, float(a)) for x, a in zip(images, angles, strict=True)]
    assert (rotated == torch.stack(expected)).double().mean() > 0.999  # ties of the nearest pixel


def test_crop_and_flip_are_shifts_and_mirrors_of_the_padded_image():
    images = torch.randint(1, 256, (200, 3, 6, 5), dtype=torch.uint8)
    before = images.clone()
    recipe = get_recipe("study", crop_padding=2, rotation=0)
    result = augment(images, recipe, torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    crops = {(dy, dx): padded[:, :, dy : dy + 6, dx : dx + 5] for dy in range(5) for dx in range(5)}
    seen = set()
    for i in range(200):
        found = [(shift, False) for shift, c in crops.items() if torch.equal(c[i], result[i])]
        found += [
            (shift, True) for shift, c in crops.items() if torch.equal(c[i].flip(2), result[i])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 40  # of 50 possible


def test_without_augmentation_images_stay_and_flip_can_be_switched_off():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    off = get_recipe("one_cycle", crop_padding=0, flip=False)
    assert torch.equal(augment(images, off, generator), images)
    on = augment(images, dataclasses.replace(off, flip=True), generator)
    mirrored = [torch.equal(on[i], images[i].flip(2)) for i in range(50)]
    assert 10 < sum(mirrored) < 40


# TrivialAugment


def sheared_or_moved(image, move=(0, 0), slopes=(0, 0)):
    """As torchvision's TrivialAugmentWide does it, about the upper left corner."""
    degrees = [math.degrees(math.atan(slope)) for slope in slopes]
    return TF.affine(image, 0, list(move), 1.0, degrees, center=[0, 0])


def by_pillow(operation):
    return lambda image, level, signed: TF.pil_to_tensor(operation(TF.to_pil_image(image)))


ORACLES = {
    "identity": lambda image, level, signed: image,
    "shear_x": lambda image, level, signed: sheared_or_moved(image, slopes=(0.99 * signed, 0)),
    "shear_y": lambda image, level, signed: sheared_or_moved(image, slopes=(0, 0.99 * signed)),
    "translate_x": lambda image, level, signed: sheared_or_moved(image, (int(32 * signed), 0)),
    "translate_y": lambda image, level, signed: sheared_or_moved(image, (0, int(32 * signed))),
    "rotate": lambda image, level, signed: TF.rotate(image, 135 * signed),
    "brightness": lambda image, level, signed: TF.adjust_brightness(image, 1 + 0.99 * signed),
    "color": lambda image, level, signed: TF.adjust_saturation(image, 1 + 0.99 * signed),
    "contrast": lambda image, level, signed: TF.adjust_contrast(image, 1 + 0.99 * signed),
    "sharpness": lambda image, level, signed: TF.adjust_sharpness(image, 1 + 0.99 * signed),
    "posterize": lambda image, level, signed: TF.posterize(image, round(8 - 6 * level)),
    "solarize": lambda image, level, signed: TF.solarize(image, 255 * (1 - level)),
    "autocontrast": by_pillow(ImageOps.autocontrast),
    "equalize": by_pillow(ImageOps.equalize),
}


def photographs(n, height=32, width=32):
    """Smooth random images of low and high contrast, some with saturated or constant channels."""
    generator = torch.Generator().manual_seed(n)
    small = torch.rand(n, 3, 6, 6, generator=generator)
    large = nn.functional.interpolate(small, (height, width), mode="bicubic") * 300 - 20
    large *= torch.rand(n, 1, 1, 1, generator=generator)
    large[::7, 1] = 128
    noise = torch.randn(large.shape, generator=generator)
    return (large + 4 * noise).clamp(0, 255).to(torch.uint8)


def test_the_operations_are_those_of_the_paper():
    assert len(OPERATIONS) == 14
    assert OPERATIONS.keys() == ORACLES.keys()


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("size", [(32, 32), (10, 14)])
def test_an_operation_equals_its_oracle_at_every_strength(name, size):
    images = photographs(62, *size)
    before = images.clone()
    level = torch.arange(62) % 31 / 30
    signed = torch.where(torch.arange(62) < 31, level, -level)
    result = OPERATIONS[name](images, level[:, None, None, None], signed[:, None, None, None])
    assert torch.equal(images, before)
    assert result.dtype == torch.uint8
    each = zip(images, level.tolist(), signed.tolist(), strict=True)
    expected = torch.stack([ORACLES[name](*arguments) for arguments in each])
    difference = (result.int() - expected.int()).abs()
    least = {"autocontrast": 0.95, "rotate": 0.99}  # rounding; ties of two pixels, as at 45 degrees
    assert (difference == 0).double().mean() > least.get(name, 0.995)
    if name not in ("rotate", "shear_x", "shear_y"):
        assert difference.max() <= 1


def test_each_image_gets_its_own_operation_and_strength():
    images = photographs(3000, 8, 8)
    before = images.clone()
    result = trivial_augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    assert torch.equal(result, trivial_augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(result, trivial_augment(images, torch.Generator().manual_seed(2)))
    draws = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1))
    operations, seen = list(OPERATIONS.values()), []
    for image, draw, changed in zip(images, draws.tolist(), result, strict=True):
        kind, level = int(draw[0] * 14), int(draw[1] * 31)
        level, sign = torch.full((1, 1, 1, 1), level / 30), -1 if draw[2] < 0.5 else 1
        assert torch.equal(operations[kind](image[None], level, sign * level)[0], changed)
        seen.append((kind, round(30 * sign * level.item())))
    kinds = torch.tensor([kind for kind, _ in seen]).bincount(minlength=14)
    assert kinds.min() > 150  # of 214 expected
    assert {strength for _, strength in seen} == set(range(-30, 31))


# CutMix


def test_cutmix_pastes_a_rectangle_of_the_previous_image():
    images = torch.randint(0, 256, (40, 3, 6, 9), dtype=torch.uint8)
    before = images.clone()
    mixed, share = cutmix(images, 0.7, torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    draws = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).tolist()
    for i, (chosen, area, y, x) in enumerate(draws):
        expected, own = images[i].clone(), 0
        for row in range(6):
            for column in range(9):
                side = math.sqrt(area)
                inside = (
                    abs(row + 0.5 - 6 * y) < 3 * side and abs(column + 0.5 - 9 * x) < 4.5 * side
                )
                if inside and chosen < 0.7:
                    expected[:, row, column] = images[i - 1, :, row, column]
                else:
                    own += 1
        assert torch.equal(mixed[i], expected)
        assert share[i].item() == pytest.approx(own / 54)


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 400, 600)])
def test_cutmix_mixes_that_share_of_the_images(probability, low, high):
    images = torch.randint(0, 256, (1000, 3, 32, 32), dtype=torch.uint8)
    mixed, share = cutmix(images, probability, torch.Generator().manual_seed(0))
    assert low <= int((share < 1).sum()) <= high
    assert torch.equal(mixed[share == 1], images[share == 1])


@pytest.mark.cuda
def test_augmentation_is_the_same_on_cuda():
    images, recipe = photographs(200), get_recipe("study")
    for change in (
        lambda x, g: augment(x, recipe, g),
        trivial_augment,
        lambda x, g: cutmix(x, 0.5, g)[0],
    ):
        there = change(images.cuda(), torch.Generator().manual_seed(0)).cpu()
        here = change(images, torch.Generator().manual_seed(0))
        assert (there == here).double().mean() > 0.999
