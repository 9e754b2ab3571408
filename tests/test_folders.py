"""Folders of images: which files are taken, and that their pixels are what a transform wants."""

import numpy as np
import pytest
import torch
import torchvision.models as tvm
from digit_folders import write_digits
from PIL import Image
from torchvision.transforms import InterpolationMode

from siutils.folders import find_halves, find_images
from siutils.sampling import balanced_subset, capped_subset


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_loaded_images_give_what_the_transform_gives_for_the_files(tmp_path, how):
    rng = np.random.default_rng(0)
    for i, (size, mode) in enumerate([((41, 30), "RGB"), ((17, 50), "L"), ((24, 24), "P")]):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        (tmp_path / f"class{i}").mkdir()
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"class{i}" / "x.png")
    preset = tvm.ResNet18_Weights.DEFAULT.transforms(
        crop_size=20, resize_size=24, interpolation=InterpolationMode(how)
    )
    files = find_images(tmp_path)
    loaded = files.load(24, preset.interpolation)
    direct = torch.stack([preset(Image.open(path).convert("RGB")) for path in files.paths])
    assert torch.equal(preset(loaded.images), direct)
    other = files.load(24, InterpolationMode.NEAREST)
    assert not torch.equal(preset(other.images), direct)


def test_a_divided_folder_gives_its_training_part(tmp_path):
    write_digits(tmp_path / "train", 4)
    write_digits(tmp_path / "val", 2, first=4)
    files = find_images(tmp_path)
    assert files.counts() == [4, 4, 4]
    assert {path.parts[-3] for path in files.paths} == {"train"}
    assert find_images(tmp_path / "train").paths == files.paths
    train, test = find_halves(tmp_path)
    assert train.counts() == test.counts() == [2, 2, 2]
    assert {path.parts[-3] for path in test.paths} == {"val"}
    assert set(train.paths) <= set(files.paths)


def test_halves_are_disjoint_and_equal_class_by_class(tmp_path):
    write_digits(tmp_path, 7)
    (tmp_path / "one" / "000.png").unlink()
    train, test = find_halves(tmp_path, seed=1)
    assert train.counts() == test.counts() == [3, 3, 3]
    assert not set(train.paths) & set(test.paths)
    assert find_halves(tmp_path, seed=1)[0].paths == train.paths
    assert find_halves(tmp_path, seed=2)[0].paths != train.paths
    assert find_halves(tmp_path, per_class=2)[1].counts() == [2, 2, 2]
    for path in sorted((tmp_path / "two").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="class 'two' has 1 image"):
        find_halves(tmp_path)


def test_a_cap_takes_what_there_is():
    labels = torch.tensor([3, 3, 3, 5, 7, 7])
    chosen = capped_subset(labels, 2, seed=1)
    assert labels[chosen].tolist() == [3, 3, 5, 7, 7]
    assert torch.equal(capped_subset(labels, 1, seed=1), balanced_subset(labels, 1, seed=1))
    assert labels[capped_subset(labels, [3, 1, 1])].tolist() == [3, 3, 3, 5, 7]
    for most, message in ((0, "most must be an integer"), ([1, 2], "one number per class")):
        with pytest.raises(ValueError, match=message):
            capped_subset(labels, most)
