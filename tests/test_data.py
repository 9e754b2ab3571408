"""Loading and transforming images: real digits, real files, a real local download."""

import functools
import hashlib
import pickle
import tarfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from siutils.core import files as paths
from siutils.core.devices import resolve_device
from siutils.data.datasets import load_dataset, transform_for
from siutils.data.images import ImageSet, Transform

BLACK = torch.zeros(4, 3, 2, 2)


def toy(labels=(0, 2, 1, 2), classes=("ant", "bee", "cat")) -> ImageSet:
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return ImageSet("toy", images, labels, classes, "abc")


def test_subset_and_of_classes_keep_images_with_their_labels():
    part, chosen = toy().subset([3, 0]), toy().of_classes([2, 0])
    assert part.images[:, 0, 0, 0].tolist() == [3, 0]
    assert part.labels.tolist() == [2, 0]
    assert chosen.images[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert chosen.labels.tolist() == [1, 0, 0]
    assert (len(chosen), chosen.classes, chosen.checksum) == (3, ("cat", "ant"), "abc")


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
        (lambda: toy().shifted(-1), ValueError, "pixels must be an integer"),
        (lambda: toy(labels=(0, 3)), ValueError, "labels must be 0…2"),
        (lambda: toy(labels=(0, -1)), ValueError, "labels must be 0…2"),
        (lambda: replace(toy(), images=BLACK), TypeError, "images must be a uint8"),
        (lambda: replace(toy(), images=toy().images[:, :1]), ValueError, r"be \(N, 3, H, W\)"),
        (lambda: replace(toy(), labels=toy().labels[:2]), ValueError, "labels must be"),
        (lambda: replace(toy(), labels=toy().labels.int()), TypeError, "int64"),
        (lambda: Transform((0,) * 3, (1, 0, 1)), ValueError, "mean"),
        (lambda: Transform((0,), (1,), 8), ValueError, "mean"),
        (lambda: Transform((0,) * 3, (1,) * 3, 0), ValueError, "size"),
        (lambda: Transform((0,) * 3, (1,) * 3)(BLACK), TypeError, "uint8"),
        (lambda: load_dataset("cifar"), ValueError, "'cifar'; known are digits, cifar10, cifar100"),
        (lambda: transform_for("cifar"), ValueError, "'cifar'; known are digits, cifar10"),
        (lambda: load_dataset("digits", "val"), ValueError, "must be 'train' or 'test', got 'val'"),
        (lambda: load_dataset("digits", image_size=0), ValueError, "image_size"),
        (lambda: load_dataset("digits", image_size=1.5), ValueError, "image_size"),
        (lambda: load_dataset("digits", image_size=True), ValueError, "image_size"),
    ],
)
def test_what_is_wrong_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_transform_equals_the_definition_and_leaves_the_input_alone():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = Transform(mean, std)(images)
    columns = [np.reshape(values, (3, 1, 1)) for values in (mean, std)]
    want = (images.numpy().astype(np.float64) / 255 - columns[0]) / columns[1]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
    assert got.dtype == torch.float32
    assert images.equal(before)


def test_shifted_images_are_the_old_ones_moved_by_up_to_so_many_pixels():
    images = torch.randint(1, 256, (60, 3, 6, 5), dtype=torch.uint8)
    toys = ImageSet("toy", images, torch.zeros(60, dtype=torch.int64), ("a",), "")
    moved = toys.shifted(2, seed=3)
    crops = F.pad(images, (2, 2, 2, 2)).unfold(2, 6, 1).unfold(3, 5, 1)  # 5×5 of each image
    same = (crops == moved.images[:, :, None, None]).all(dim=(1, 4, 5))
    assert (same.sum(dim=(1, 2)) == 1).all()
    assert same.any(dim=0).sum() > 15  # of 25
    assert moved.images.equal(toys.shifted(2, seed=3).images)
    assert not moved.images.equal(toys.shifted(2, seed=4).images)
    assert toys.shifted(0) is toys


def test_transform_resizes_with_antialias():
    board = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    board[..., ::2, ::2] = 255
    small = Transform((0, 0, 0), (1, 1, 1), size=2)(board)
    want = F.interpolate(board.double() / 255, (2, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(small.double(), want, atol=1e-6, rtol=0)


def test_digits_are_the_bundled_scans():
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    assert images.shape[1:] == (3, 32, 32)
    assert images[:, 0].equal(images[:, 1])
    source = load_digits()
    scans = torch.from_numpy(np.rint(source.images * 255 / 16))[:, None]
    scans = F.interpolate(scans, (32, 32), mode="bilinear").round().byte()

    def pairs(grays, classes):
        return {(g.numpy().tobytes(), int(c)) for g, c in zip(grays, classes, strict=True)}

    assert pairs(images[:, 0], labels) == pairs(scans[:, 0], source.target)
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
    """A small CIFAR-10 archive that torchvision takes for the real one, but cannot reach."""
    source = tmp_path / "server" / CIFAR10.base_folder
    source.mkdir(parents=True)
    rng, batches = np.random.default_rng(0), {}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        batches[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        content = {"data": batches[name], "labels": list(range(10))}
        (source / name).write_bytes(pickle.dumps(content))
    names = [f"class {i}" for i in range(10)]
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    archive = source.parent / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, CIFAR10.base_folder)
    for kind in ("train_list", "test_list"):
        known = [[name, md5(source / name)] for name, _ in getattr(CIFAR10, kind)]
        monkeypatch.setattr(CIFAR10, kind, known)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(source / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:9/{CIFAR10.filename}")
    return archive, batches


@pytest.fixture
def served(cifar10, monkeypatch):
    archive, batches = cifar10
    handler = functools.partial(SimpleHTTPRequestHandler, directory=archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        yield batches
        server.shutdown()


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
    place = tmp_path / "data"
    for part in (str(place), CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.url, "SIUTILS_DATA"):
        assert part in str(caught.value)
    assert list(place.iterdir()) == []


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


@pytest.mark.cuda
def test_transform_on_cuda_equals_the_cpu():
    images = load_dataset("digits", "test", image_size=32).images[:64]
    for transform in (transform_for("digits"), Transform((0.5,) * 3, (0.2,) * 3, size=20)):
        on_gpu = transform(images.cuda())
        assert on_gpu.device == resolve_device("cuda")
        torch.testing.assert_close(on_gpu.cpu(), transform(images), atol=1e-5, rtol=0)
