"""Images and models in the forms that people have; the ids make a part of docs/inputs.md."""

import copy
import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from siutils import SeparationIndex, extract_features, layer_curve
from siutils.data import find_images, is_divided
from siutils.data.decoding import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])


class Net(nn.Module):
    def __init__(self, kind=None):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 2, 3), kind
        self.last = Output(kind)
        self.__dict__["transform"] = to_floats

    def forward(self, x):
        return self.last(self.conv(x))


@dataclasses.dataclass
class Outputs:
    logits: torch.Tensor
    step: int = 1


class Output(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        kinds = {"dataclass": Outputs(x), "dict": {"h": x, "n": 1}, "tuple": ((x, 1), 2), None: x}
        return kinds[self.kind]


def to_floats(images):
    return images.float() / 255


torch.manual_seed(0)
NET = Net()
KNOWN = extract_features(NET, IMAGES, ["conv"], device="cpu")["conv"]


class Pairs(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {"image": Image.fromarray(PIXELS[i]), "label": int(LABELS[i])}


def in_batches(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=4)


SOURCES = {  # images, and whether labels come along
    "images as an array (N, H, W, C) -> its images": (PIXELS, False),
    "images as an array (N, C, H, W) -> its images": (IMAGES.numpy(), False),
    "images as a list of PIL images -> their pixels": ([Image.fromarray(p) for p in PIXELS], False),
    "images as a list of arrays -> their pixels": (list(IMAGES.numpy()), False),
    "images as a DataLoader of pairs -> its images, with labels": (
        in_batches(IMAGES, LABELS),
        True,
    ),
    "images as a DataLoader of images -> its images": (in_batches(IMAGES), False),
    "images as a Dataset of pairs -> its images, with labels": (
        TensorDataset(IMAGES, LABELS),
        True,
    ),
    "images as a Dataset of dictionaries with image and label -> these": (Pairs(), True),
}


@pytest.mark.parametrize(("source", "labeled"), SOURCES.values(), ids=SOURCES)
def test_images(source, labeled):
    features = extract_features(NET, source, ["conv"], device="cpu")
    torch.testing.assert_close(features["conv"], KNOWN)
    assert (features.labels is not None) == labeled
    if labeled:
        assert features.labels.codes.equal(LABELS)
        index = SeparationIndex.from_loader(NET, source, "conv", device="cpu", normalize=True)
        assert index.si() == SeparationIndex(KNOWN, LABELS, normalize=True).si()
        table = layer_curve(NET, source, layers=["conv"], device="cpu", test=source)
        known = layer_curve(NET, IMAGES, LABELS, ["conv"], device="cpu")
        assert table.loc[table["split"] == "train", "value"].tolist() == known["value"].tolist()
    else:
        with pytest.raises(ValueError, match="labels are needed: none came with the images"):
            layer_curve(NET, source, layers=["conv"], device="cpu")


def test_images_with_one_channel_are_repeated():
    gray = extract_features(NET, PIXELS[..., 0], ["conv"], device="cpu")["conv"]
    three = extract_features(NET, IMAGES[:, :1].expand(-1, 3, -1, -1), ["conv"], device="cpu")
    assert gray.equal(three["conv"])


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([PIXELS[0], PIXELS[1][:5]], ValueError, "one size; there are"),
        ("cat.png", TypeError, "a DataLoader, got str"),
        (IMAGES.int(), TypeError, "must be uint8 or float, got torch.int32"),
        ([], ValueError, "images is empty"),
        (["cat.png"], TypeError, "got one of type str"),
    ],
    ids=["images of several sizes -> refused", "images as a string -> refused",
         "images as int32 -> refused", "images as an empty list -> refused",
         "images as names of files -> refused"],
)  # fmt: skip
def test_images_that_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        extract_features(NET, source, ["conv"], device="cpu")


MODELS = {
    "a model in half precision -> images in half precision": (copy.deepcopy(NET).half(), 0.01),
    "a model in bfloat16 -> images in bfloat16": (copy.deepcopy(NET).bfloat16(), 0.05),
    "a model in double precision -> images in double precision": (
        copy.deepcopy(NET).double(),
        1e-5,
    ),
    "a model in DataParallel -> its layers by their plain names": (nn.DataParallel(NET), 0),
    "a model of torch.compile -> its layers by their plain names": (torch.compile(NET), 0),
}


@pytest.mark.parametrize(("model", "off"), MODELS.values(), ids=MODELS)
def test_models(model, off):
    features = extract_features(model, IMAGES, ["conv"], transform=to_floats, device="cpu")["conv"]
    torch.testing.assert_close(features, KNOWN, atol=off, rtol=0)


@pytest.mark.parametrize("kind", ["dataclass", "dict", "tuple"], ids=[
    "a model that returns a dataclass -> its first field",
    "a model that returns a dictionary -> its first value",
    "a model that returns nested tuples -> the first tensor"])  # fmt: skip
def test_outputs(kind):
    features = extract_features(Net(kind), IMAGES, ["conv", "last"], device="cpu")
    assert features["last"].equal(features["conv"])


@pytest.mark.filterwarnings("ignore")
def test_quantized_and_scripted_models():
    net = nn.Sequential(nn.Flatten(), nn.Linear(216, 4))
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    found, known = (
        extract_features(m, IMAGES / 255, ["1"], device="cpu")["1"] for m in (quantized, net)
    )
    torch.testing.assert_close(found, known, atol=0.1, rtol=0)
    with pytest.raises(TypeError, match=r"model is scripted, .* pass the original"):
        extract_features(torch.jit.script(net), IMAGES / 255, ["1"])


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    return image


def rotated():
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn, as phones write it
    pixels = np.repeat(np.array([0, 255], np.uint8), 8)[:, None].repeat(16, 1)
    return encoded(Image.fromarray(pixels), "jpeg", quality=95, exif=exif)


def gray(values):
    return Image.fromarray(np.full((2, 2), values))


PICTURES = {  # the color of the first pixel
    "picture: 16-bit PNG -> value // 256": (encoded(gray(np.uint16(513))), 2),
    "picture: 16-bit TIFF -> value // 256": (encoded(gray(np.uint16(65_535)), "tiff"), 255),
    "picture: 32-bit integers up to 65,535 in TIFF -> value // 256": (
        encoded(gray(np.int32(512)), "tiff"), 2,
    ),
    "picture: floats in [0, 1] in TIFF -> times 255": (encoded(gray(np.float32(0.2)), "tiff"), 51),
    "picture: transparent pixels -> white": (encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0))), 255),
    "picture: half transparent gray -> on white": (encoded(Image.new("LA", (2, 2), (7, 128))), 131),
    "picture: a palette with a transparent color -> white": (
        encoded(palette(), transparency=0), 255,
    ),
    "picture: a gray value declared transparent -> white": (
        encoded(Image.new("L", (2, 2), 7), transparency=7), 255,
    ),
    "picture: a palette -> its colors": (encoded(palette()), 10),
    "picture: CMYK -> RGB": (encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "jpeg"), 255),
    "picture: rotation in EXIF -> applied": (rotated(), 219),
    "picture: GIF -> its first frame": (encoded(Image.new("RGB", (2, 2), (200, 0, 0)), "gif"), 200),
    "picture: JPEG 2000 -> its pixels": (encoded(Image.new("L", (64, 64), 77), "jpeg2000"), 77),
    "picture: 1 x 900 pixels -> its middle": (encoded(Image.new("L", (1, 900), 50)), 50),
    "picture: 1 x 1 pixels -> that color": (encoded(Image.new("L", (1, 1), 50)), 50),
}  # fmt: skip


@pytest.mark.parametrize(("content", "value"), PICTURES.values(), ids=PICTURES)
def test_pictures(content, value):
    pixels = decode(content, 2)
    assert pixels.shape == (2, 2, 3)
    assert abs(int(pixels[0, 0, 0]) - value) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(gray(np.int32(70_000)), "tiff"), "must be 0 to 65,535, got 70,000 to 70,000"),
        (encoded(gray(np.float32(2)), "tiff"), r"floats must be in \[0, 1\], got 2 to 2"),
        (b"junk", "no image in a format that Pillow reads here"),
        (encoded(Image.new("L", (64, 64)))[:50], "truncated"),
    ],
    ids=["picture: integers beyond 65,535 -> unreadable, with their range",
         "picture: floats outside [0, 1] -> unreadable, with their range",
         "picture: no image -> unreadable", "picture: a truncated file -> unreadable"],
)  # fmt: skip
def test_pictures_that_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content, 2)


def test_the_middle_of_a_long_picture_is_that_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(rng.integers(0, 255, (1200, 30, 3), dtype=np.uint8)))
    cropped = decode(content, 24)
    monkeypatch.setattr("siutils.data.decoding._LONGEST", 10**9)
    np.testing.assert_array_equal(decode(content, 24), cropped)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


PNG = encoded(Image.new("RGB", (8, 8)))


@pytest.fixture
def put(tmp_path):
    def write(*names, content=PNG):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path

    return write


def test_hidden_files_and_leftovers_are_no_pictures(put):
    root = put("cat/1.png", "cat/2.PNG", "dog/1.png", "dog/._0.png", "dog/set.jpg/4.png",
               "dog/.ipynb_checkpoints/2.png", "__MACOSX/dog/1.png", ".hid/1.png")  # fmt: skip
    files = find_images(root)
    names = [path.relative_to(root).as_posix() for path in files.paths]
    assert names == ["cat/1.png", "cat/2.PNG", "dog/1.png", "dog/set.jpg/4.png"]


def test_unreadable_files_are_named_all_at_once_or_skipped(put):
    root = put("cat/1.png", "dog/1.png", "dog/sub/2.png")
    put("cat/bad.png", "dog/x.heic", content=b"junk")
    (root / "dog" / "broken.png").symlink_to("nowhere")
    (root / "dog" / "device.png").symlink_to("/dev/zero")
    (root / "dog" / "circle").symlink_to(root / "dog")
    os.mkfifo(root / "dog" / "pipe.png")
    with pytest.raises(ValueError, match="skip-unreadable") as caught:
        find_images(root).load(8)
    for name in ("cat/bad.png", "dog/x.heic", "dog/broken.png", "dog/device.png", "dog/pipe.png"):
        assert f"{name} is no readable image: " in str(caught.value)
    files = find_images(root, skip_unreadable=True)
    assert len(files.skipped) == 5
    assert files.load(8).labels.tolist() == [0, 1, 1]
    (root / "cat" / "1.png").unlink()
    with pytest.raises(ValueError, match="no image of class 'cat' is readable"):
        find_images(root, skip_unreadable=True)


def test_parts_for_training_and_testing(put):
    root = put("a/Train/x/1.png", "a/valid/x/2.png", "b/train/1.png", "b/bus/1.png",
               "c/train/sub/1.png", "c/bus/sub/1.png", "d/train/1.png", "d/test/1.png")  # fmt: skip
    assert [path.name for path in find_images(root / "a", "test").paths] == ["2.png"]
    for undivided in ("b", "c"):  # a class called train
        assert not is_divided(root / undivided)
        assert find_images(root / undivided).classes == ("bus", "train")
    with pytest.raises(ValueError, match="train/ holds no class folders"):
        find_images(root / "d")


def test_names_that_are_no_text_and_paths_without_end(tmp_path, put):
    put("ok/1.png")
    put(os.fsdecode(b"\xff\xfe/\xe9.png"))
    assert len(find_images(tmp_path).load(4)) == 2
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with pytest.raises(ValueError, match="no such folder of images"):
        find_images(tmp_path / "one")
    with pytest.raises(ValueError, match="home"):
        find_images("~nosuch/images")
