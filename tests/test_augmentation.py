"""Augmentation against torchvision or the definition, one image at a time."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import nn

from siutils.training.augmentation import augment
from siutils.training.recipes import get_recipe


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
    crops = nn.functional.pad(images, (2, 2, 2, 2)).unfold(2, 6, 1).unfold(3, 5, 1)
    both = torch.stack([crops, crops.flip(-1)], dim=1)  # of each image 2×3×5×5 of 6×5 pixels
    same = (both == result[:, None, :, None, None]).all(dim=(2, 5, 6))
    assert (same.sum(dim=(1, 2, 3)) == 1).all()
    assert same.any(dim=0).sum() > 40  # of 50 possible


def test_without_augmentation_images_stay():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    off = get_recipe("study", crop_padding=0, rotation=0, flip=False)
    assert augment(images, off, torch.Generator().manual_seed(0)).equal(images)


def test_cutout_is_a_black_square_whose_center_lies_in_the_image():
    images = torch.full((1000, 3, 7, 9), 5, dtype=torch.uint8)
    recipe = get_recipe("study", crop_padding=0, flip=False, rotation=0, cutout=4)
    black = augment(images, recipe, torch.Generator().manual_seed(0)) == 0
    assert black.any(1).equal(black.all(1))  # in all channels
    places = set()
    for mask in black[:, 0]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert mask.sum() == len(rows) * len(columns)  # a rectangle
        assert 2 <= len(rows) <= 4
        assert 2 <= len(columns) <= 4
        places.add((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    assert len(places) == 7 * 9


@pytest.mark.cuda
def test_augmentation_is_the_same_on_cuda():
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    recipe = get_recipe("study")
    there = augment(images.cuda(), recipe, torch.Generator().manual_seed(0)).cpu()
    here = augment(images, recipe, torch.Generator().manual_seed(0))
    assert (there == here).double().mean() > 0.999
