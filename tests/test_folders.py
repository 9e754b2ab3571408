"""Folders of images: which files are taken, and that their pixels are what a transform wants."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models as tvm
from digit_folders import write_digits
from PIL import Image
from torchvision.transforms import InterpolationMode

from siutils.core.splits import balanced_subset, capped_subset
from siutils.data.datasets import IMAGENET_MEAN, IMAGENET_STD, load_dataset, transform_for
from siutils.data.folders import find_halves, find_images
from siutils.data.images import Transform


def write_images(folder: Path, count: int, size=(40, 32), mode="RGB") -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")


def test_folder_with_train_and_val(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        write_images(tmp_path / part / "cat", count)
        write_images(tmp_path / part / "dog", count + 1, mode="L")
    train, test = load_dataset(tmp_path), load_dataset(str(tmp_path), "test")
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0] * 3 + [1] * 4
    assert test.labels.tolist() == [0] * 2 + [1] * 3
    # 40×32 has its shorter side already: only the middle 32 columns remain.
    source = np.array(Image.open(tmp_path / "train" / "cat" / "1.png"))[:, 4:36]
    assert np.array_equal(train.images[1].permute(1, 2, 0), source)
    assert train.checksum != test.checksum
    assert transform_for(tmp_path) == Transform(IMAGENET_MEAN, IMAGENET_STD)


def test_folder_without_split_is_split_once_and_for_all(tmp_path):
    write_images(tmp_path / "a", 10, size=(16, 24))
    write_images(tmp_path / "b", 5, size=(8, 8))
    train, test = load_dataset(tmp_path, image_size=8), load_dataset(tmp_path, "test", image_size=8)
    assert torch.bincount(train.labels).tolist() == [8, 4]
    assert torch.bincount(test.labels).tolist() == [2, 1]
    whole = torch.cat([train.images, test.images]).flatten(1)
    assert len(whole.unique(dim=0)) == 15
    assert torch.equal(load_dataset(tmp_path, image_size=8).images, train.images)


def test_folder_checksum_follows_the_files(tmp_path):
    write_images(tmp_path / "a", 5)
    first = load_dataset(tmp_path).checksum
    assert load_dataset(tmp_path, image_size=8).checksum == first
    (tmp_path / "a" / "4.png").rename(tmp_path / "a" / "5.png")
    assert load_dataset(tmp_path).checksum != first


def test_folder_unreadable_image_is_named(tmp_path):
    write_images(tmp_path / "cat", 5)
    for broken in (b"no image", (tmp_path / "cat" / "0.png").read_bytes()[:200]):
        for path in (tmp_path / "cat").iterdir():
            path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"\d\.png is no readable image"):
            load_dataset(tmp_path)


def test_folder_faults(tmp_path):
    with pytest.raises(ValueError, match="holds no class folders"):
        load_dataset(tmp_path)
    write_images(tmp_path / "train" / "cat", 2)
    with pytest.raises(ValueError, match="neither test/ nor val/"):
        load_dataset(tmp_path, "test")
    write_images(tmp_path / "test" / "cow", 2)
    with pytest.raises(ValueError, match="cow"):
        load_dataset(tmp_path, "test")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog is an empty class"):
        load_dataset(tmp_path)


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
    direct = torch.stack([preset(Image.open(path).convert("RGB")) for path in files.paths])
    for interpolation in (preset.interpolation, InterpolationMode.NEAREST):
        found = preset(files.load(24, interpolation).images)
        assert found.equal(direct) == (interpolation == preset.interpolation)


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
