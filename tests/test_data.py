"""Loading, splitting and transforming images: real digits, real files, a real local download."""

import functools
import hashlib
import pickle
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from siutils import data, paths
from siutils.data import (
    ImageSet,
    Transform,
    balanced_subset,
    load_dataset,
    train_val_split,
    transform_for,
)
from siutils.devices import resolve_device


def toy(labels=(0, 2, 1, 2), classes=("ant", "bee", "cat")) -> ImageSet:
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return ImageSet("toy", images, labels, classes, "abc")


# ImageSet


def test_subset_and_of_classes_keep_images_with_their_labels():
    part = toy().subset([3, 0])
    assert part.images[:, 0, 0, 0].tolist() == [3, 0]
    assert part.labels.tolist() == [2, 0]
    chosen = toy().of_classes([2, 0])
    assert chosen.images[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert chosen.labels.tolist() == [1, 0, 0]
    assert chosen.classes == ("cat", "ant")
    assert len(chosen) == 3
    assert chosen.checksum == "abc"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: toy().subset([4]), ValueError, "indices must be 0…3"),
        (lambda: toy().subset([-1]), ValueError, "indices must be 0…3"),
        (lambda: toy().subset([]), ValueError, "N ≥ 1"),
        (lambda: toy().subset(torch.tensor([True, False])), TypeError, "integers"),
        (lambda: toy().of_classes([3]), ValueError, "distinct labels from 0…2"),
        (lambda: toy().of_classes([1, 1]), ValueError, "distinct labels"),
        (lambda: toy(labels=(0, 0)).of_classes([1]), ValueError, "N ≥ 1"),
        (lambda: toy(labels=(0, 3)), ValueError, "labels must be 0…2"),
        (lambda: toy(labels=(0, -1)), ValueError, "labels must be 0…2"),
        (
            lambda: ImageSet("x", torch.zeros(1, 3, 2, 2), torch.tensor([0]), ("a",), ""),
            TypeError,
            "images must be a uint8",
        ),
        (
            lambda: ImageSet("x", toy().images[:, :1], toy().labels, toy().classes, ""),
            ValueError,
            r"images must be \(N, 3, H, W\)",
        ),
        (
            lambda: ImageSet("x", toy().images, toy().labels[:2], toy().classes, ""),
            ValueError,
            "labels must be",
        ),
        (
            lambda: ImageSet("x", toy().images, toy().labels.int(), toy().classes, ""),
            TypeError,
            "int64",
        ),
    ],
)
def test_image_set_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Transform


def test_transform_equals_the_definition_and_leaves_the_input_alone():
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    before = images.clone()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = Transform(mean, std)(images)
    pixels = images.numpy().astype(np.float64) / 255
    want = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
    assert got.dtype == torch.float32
    assert torch.equal(images, before)


def test_shifted_images_are_the_old_ones_moved_by_up_to_so_many_pixels():
    images = torch.randint(1, 256, (60, 3, 6, 5), dtype=torch.uint8)
    toys = ImageSet("toy", images, torch.zeros(60, dtype=torch.int64), ("a",), "")
    moved = toys.shifted(2, seed=3)
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for old, new in zip(padded, moved.images, strict=True):
        places = [
            (y, x) for y in range(5) for x in range(5) if new.equal(old[:, y : y + 6, x : x + 5])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 15  # of 25
    assert moved.images.equal(toys.shifted(2, seed=3).images)
    assert not moved.images.equal(toys.shifted(2, seed=4).images)
    assert toys.shifted(0) is toys
    with pytest.raises(ValueError, match="pixels must be an integer"):
        toys.shifted(-1)


def test_transform_resizes_with_antialias():
    board = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    board[..., ::2, ::2] = 255
    small = Transform((0, 0, 0), (1, 1, 1), size=2)(board)
    want = F.interpolate(board.double() / 255, (2, 2), mode="bilinear", antialias=True)
    torch.testing.assert_close(small.double(), want, atol=1e-6, rtol=0)
    assert small.shape == (1, 3, 2, 2)


@pytest.mark.parametrize(
    ("mean", "std", "size"), [((0,) * 3, (1, 0, 1), None), ((0,) * 3, (1,) * 3, 0), ((0,), (1,), 8)]
)
def test_transform_refuses(mean, std, size):
    with pytest.raises(ValueError, match=r"mean|size"):
        Transform(mean, std, size)


def test_transform_refuses_floats():
    with pytest.raises(TypeError, match="uint8"):
        Transform((0,) * 3, (1,) * 3)(torch.zeros(1, 3, 2, 2))


# digits


def test_digits_are_the_bundled_scans():
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    source = load_digits()
    # Every bundled scan is found exactly once: 4×4 upsampled pixels average to the scan inside.
    gray = torch.cat([train.images, test.images])
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert gray.shape[1:] == (3, 32, 32)
    upsampled = F.interpolate(
        torch.from_numpy(np.rint(source.images * 255 / 16))[:, None], (32, 32), mode="bilinear"
    )
    want = {
        (image.round().byte().numpy().tobytes(), int(label))
        for image, label in zip(upsampled[:, 0], source.target, strict=True)
    }
    labels = torch.cat([train.labels, test.labels])
    got = {(i.numpy().tobytes(), int(y)) for i, y in zip(gray[:, 0], labels, strict=True)}
    assert got == want
    assert train.checksum == test.checksum
    assert len(train.checksum) == 64


@pytest.mark.parametrize("size", [8, 16])
def test_digits_at_another_size(size):
    assert load_dataset("digits", "test", image_size=size).images.shape == (359, 3, size, size)


def test_digits_statistics_are_those_of_the_training_images():
    pixels = load_dataset("digits").images[:, 0].double() / 255
    t = transform_for("digits")
    assert t.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-5)
    assert t.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-5)


# CIFAR: a small stand-in goes through torchvision's own download, verification and unpacking


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A server folder with a small CIFAR-10 archive that torchvision takes for the real one."""
    source = tmp_path / "server" / CIFAR10.base_folder
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    batches = {}
    for name in [f for f, _ in CIFAR10.train_list + CIFAR10.test_list]:
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        batches[name] = pixels
        (source / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    names = [f"class {i}" for i in range(10)]
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    archive = source.parent / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, CIFAR10.base_folder)

    for kind in ("train_list", "test_list"):
        known = [[f, md5(source / f)] for f, _ in getattr(CIFAR10, kind)]
        monkeypatch.setattr(CIFAR10, kind, known)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(source / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:9/{CIFAR10.filename}")
    return archive, batches


@pytest.fixture
def served(cifar10, monkeypatch):
    archive, batches = cifar10

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(archive.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    yield batches
    server.shutdown()
    server.server_close()


def test_cifar_is_downloaded_verified_and_loaded(served, tmp_path):
    root = tmp_path / "data"
    train = load_dataset("cifar10", "train", root=root)
    want = np.concatenate([served[f] for f, _ in CIFAR10.train_list]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), want)
    assert train.labels.tolist() == list(range(10)) * 5
    assert train.classes[9] == "class 9"
    assert train.checksum == "-".join(m for _, m in CIFAR10.train_list)
    assert [p.name for p in root.iterdir()] == [CIFAR10.base_folder]  # no partial folder is left


def test_cifar_offline_says_what_to_put_where(cifar10, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cifar10", root=tmp_path / "data")
    for part in (str(tmp_path / "data"), CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.url):
        assert part in str(caught.value)
    assert "SIUTILS_DATA" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_cifar_archive_put_there_by_hand_is_unpacked(cifar10, tmp_path, monkeypatch):
    archive, batches = cifar10
    monkeypatch.setenv("SIUTILS_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive.name).write_bytes(archive.read_bytes())
    test = load_dataset("cifar10", "test")
    assert np.array_equal(test.images.numpy().reshape(10, -1), batches["test_batch"])


@pytest.mark.parametrize("broken", ["cifar-10-batches-py/data_batch_3", CIFAR10.filename])
def test_cifar_corrupt_file_is_named_and_kept(served, tmp_path, broken):
    path = tmp_path / "data" / broken
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not what it was")
    with pytest.raises(RuntimeError) as caught:
        load_dataset("cifar10", root=tmp_path / "data")
    expected = {**dict(CIFAR10.train_list), CIFAR10.filename: CIFAR10.tgz_md5}[path.name]
    for part in (str(path), expected, md5(path)):
        assert part in str(caught.value)
    assert path.read_bytes() == b"not what it was"


def test_cifar_missing_file_is_added_beside_the_others(served, tmp_path):
    load_dataset("cifar10", root=tmp_path / "data")
    folder = tmp_path / "data" / CIFAR10.base_folder
    (folder / "data_batch_2").unlink()
    kept = (folder / "data_batch_1").stat().st_mtime_ns
    assert len(load_dataset("cifar10", root=tmp_path / "data")) == 50
    assert (folder / "data_batch_1").stat().st_mtime_ns == kept


def test_cifar_unwritable_root(cifar10, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileNotFoundError, match=CIFAR10.filename):
        load_dataset("cifar10", root=tmp_path / "file" / "data")


@pytest.mark.cifar100
def test_real_cifar100():
    train, test = load_dataset("cifar100"), load_dataset("cifar100", "test")
    assert train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [500] * 100
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert (train.classes[0], train.classes[99]) == ("apple", "worm")
    assert train.checksum == "16019d7e3df5f24257cddd939b257f8d"
    image, label = CIFAR100(paths.data_dir(), train=True)[123]
    assert torch.equal(train.images[123], torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert int(train.labels[123]) == label
    t = transform_for("cifar100")
    pixels = train.images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(t.mean, abs=2e-5)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(t.std, abs=2e-5)


# folders of images


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
    assert np.array_equal(train.images[1].permute(1, 2, 0).numpy(), source)
    assert train.checksum != test.checksum
    assert transform_for(tmp_path) == Transform(data.IMAGENET_MEAN, data.IMAGENET_STD)


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


def test_folder_empty_class_is_named(tmp_path):
    write_images(tmp_path / "cat", 2)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog is an empty class"):
        load_dataset(tmp_path)


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


def test_unknown_names_and_arguments(tmp_path):
    for call in (load_dataset, transform_for):
        with pytest.raises(ValueError, match=r"'cifar'; known are digits, cifar10, cifar100"):
            call("cifar")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load_dataset("digits", "val")
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="image_size"):
            load_dataset("digits", image_size=size)


# splits and subsets


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9, 1 - 1e-12])
def test_split_is_a_stratified_partition(fraction):
    labels = np.repeat([3, -1, 7, 4], [50, 33, 2, 1])
    np.random.default_rng(0).shuffle(labels)
    train, val = train_val_split(labels, fraction, seed=1)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(86))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)
    for label, count in ((3, 50), (-1, 33), (7, 2)):
        share = int((labels[val] == label).sum())
        assert abs(share - count * fraction) < 1
        assert share < count
    assert not (labels[val] == 4).any()  # the single sample is for training


def test_split_sizes_of_cifar100_are_exact():
    labels = torch.arange(50_000) % 100
    train, val = train_val_split(labels)
    assert (len(train), len(val)) == (40_000, 10_000)
    assert torch.bincount(labels[val]).tolist() == [100] * 100


def test_split_total_is_exact_where_class_shares_are_fractions():
    labels = np.repeat(np.arange(10), 7)  # 1.4 of each class, 14 in all
    _, val = train_val_split(labels, 0.2)
    assert len(val) == 14
    assert sorted(np.bincount(labels[val])) == [1] * 6 + [2] * 4


VAL = [4, 8, 15, 17, 27, 28]
CHOSEN = [1, 10, 15, 17, 26, 27]


def test_choices_are_the_same_on_every_platform_and_leave_global_seeds_alone():
    labels = torch.arange(30) % 3
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _, val = train_val_split(labels, seed=42)
    chosen = balanced_subset(labels, 2, seed=42)
    assert val.tolist() == VAL
    assert chosen.tolist() == CHOSEN
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert train_val_split(labels, seed=43)[1].tolist() != VAL


def test_balanced_subset_is_balanced_and_inside():
    labels = torch.tensor([9] * 20 + [-4] * 8 + [100] * 5)
    chosen = balanced_subset(labels, 5, seed=3)
    assert labels[chosen].unique(return_counts=True)[1].tolist() == [5, 5, 5]
    assert len(chosen.unique()) == 15
    assert torch.equal(chosen, chosen.sort().values)


def test_balanced_subset_draws_every_sample_equally_often():
    labels = torch.zeros(10, dtype=torch.int64)
    counts = sum(
        torch.bincount(balanced_subset(labels, 5, seed=s), minlength=10) for s in range(400)
    )
    assert counts.sum() == 2000
    assert (counts - 200).abs().max() < 50  # 200 ± 10 each; five standard deviations


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: balanced_subset([0, 0, 8], 2), ValueError, "class 8 has only 1 sample"),
        (lambda: balanced_subset([0], 0), ValueError, "per_class"),
        (lambda: balanced_subset([0.0], 1), TypeError, "labels must be integers"),
        (lambda: balanced_subset([[0]], 1), ValueError, r"labels must be \(N,\)"),
        (lambda: balanced_subset([0], 1, seed=-1), ValueError, "seed"),
        (lambda: train_val_split([0, 0], 1.0), ValueError, "val_fraction"),
        (lambda: train_val_split([0, 0], 0), ValueError, "val_fraction"),
        (lambda: train_val_split([0, 1, 2]), ValueError, "leave none for validation"),
        (lambda: train_val_split([]), ValueError, "N ≥ 1"),
    ],
)
def test_splits_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


# folders and devices


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SIUTILS_DATA", raising=False)
    monkeypatch.delenv("SIUTILS_CACHE", raising=False)
    assert paths.data_dir() == paths.home_dir() / "data"
    assert paths.cache_dir() == paths.home_dir() / "data" / "cache"
    monkeypatch.setenv("SIUTILS_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("SIUTILS_CACHE", str(tmp_path / "c"))
    assert (paths.data_dir(), paths.cache_dir()) == (tmp_path / "d", tmp_path / "c")


def test_home_is_the_checkout_or_a_cache_folder(monkeypatch, tmp_path):
    package = tmp_path / "siutils"
    package.mkdir()
    monkeypatch.setattr(paths, "__file__", str(package / "paths.py"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert paths.home_dir() == tmp_path / "user" / ".cache" / "siutils"
    (tmp_path / "pyproject.toml").touch()
    assert paths.home_dir() == tmp_path


def test_resolve_device():
    auto = resolve_device()
    assert auto.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(RuntimeError, match=r"device='cuda:99'.*use device='auto'"):
        resolve_device("cuda:99")
    for wrong in ("gpu", "meta", None):
        with pytest.raises(ValueError, match="device must be"):
            resolve_device(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent():
    with pytest.raises(RuntimeError, match="sees 0 CUDA device"):
        resolve_device("cuda")


@pytest.mark.cuda
def test_transform_on_cuda_equals_the_cpu():
    images = load_dataset("digits", "test", image_size=32).images[:64]
    for transform in (transform_for("digits"), Transform((0.5,) * 3, (0.2,) * 3, size=20)):
        on_gpu = transform(images.cuda())
        assert on_gpu.device == resolve_device("cuda")
        torch.testing.assert_close(on_gpu.cpu(), transform(images), atol=1e-5, rtol=0)
