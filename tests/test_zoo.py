"""Networks of torchvision and timm: the weights, transforms and features that they ask for."""

import re
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import torchvision.models as tvm
from torch import nn

from siutils import extract_features
from siutils.networks.published import (
    RANDOM,
    check_model,
    load_model,
    parse_models,
    transform_text,
    untrained_twin,
)

SMALL = ("squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "densenet121")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Where a download of torchvision would land; downloads themselves fail."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(name: str, folder: Path) -> nn.Module:
    """A network whose weights lie where those of the best published weights would."""
    torch.manual_seed(1)
    model = tvm.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    file = Path(urlparse(tvm.get_model_weights(name).DEFAULT.url).path).name
    state = model.state_dict()
    if name.startswith("densenet"):  # published under older names
        old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        state = {re.sub(r"(denselayer\d+\.\D+)(\d)", r"\1.\2", k): v for k, v in old.items()}
    torch.save(state, folder / file)
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", SMALL)
def test_published_weights_are_used_as_torchvision_does(name, checkpoints):
    upstream = publish(name, checkpoints)
    theirs = tvm.get_model(name, weights="DEFAULT").eval()
    model = load_model(name)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), theirs(images))
    assert set(model.state_dict()) <= set(upstream.state_dict())
    assert not model.training
    published = tvm.get_model_weights(name).DEFAULT
    assert repr(model.transform) == repr(published.transforms())
    assert model.weights_source.startswith(f"torchvision {published!r}, sha256 ")
    assert model.source_classes == 1000


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "densenet121"])
def test_features_are_what_enters_the_last_layer(name):
    model = load_model(name, RANDOM, size=64, seed=3)
    images = torch.randint(0, 256, (3, 3, 80, 70), dtype=torch.uint8)
    head = model.get_submodule(model.head_layer)
    found = extract_features(model, images, ["penultimate", model.head_layer], device="cpu")
    inputs = found["penultimate"]
    if isinstance(head, nn.Conv2d):
        inputs = inputs.view(3, head.in_channels, 3, 3)
    with torch.inference_mode():
        outputs = head(inputs).flatten(1)
    torch.testing.assert_close(outputs, found[model.head_layer], rtol=1e-4, atol=1e-5)
    assert model.feature_layer == "penultimate"
    assert model.source_classes == 0
    assert transform_text(model.transform).startswith("shorter side 64, bilinear; center 64; mean")


def test_random_weights_follow_the_seed_and_touch_no_global_generator():
    state = torch.random.get_rng_state()
    first, again, other = (load_model("squeezenet1_1", RANDOM, size=64, seed=s) for s in (1, 1, 2))
    key = "features.0.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.weights_source == "random initialization, seed 1"


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_file_may_have_any_number_of_classes(tmp_path, key):
    trained = tvm.shufflenet_v2_x0_5(num_classes=7).eval()
    state = trained.state_dict()
    torch.save(state if key is None else {key: state}, tmp_path / "mine.pt")
    model = load_model("shufflenet_v2_x0_5", tmp_path / "mine.pt", size=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), trained(images))
    assert model.source_classes == 7
    assert model.weights_source.startswith("file mine.pt sha256 ")


def shapes(model):
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_untrained_twin_differs_in_its_weights_only(tmp_path, checkpoints):
    torch.save(tvm.shufflenet_v2_x0_5(num_classes=7).state_dict(), tmp_path / "mine.pt")
    publish("googlenet", checkpoints)
    mine = load_model("shufflenet_v2_x0_5", tmp_path / "mine.pt", size=64)
    for model, name in ((mine, "shufflenet_v2_x0_5"), (load_model("googlenet"), "googlenet")):
        twin, again = (untrained_twin(model, name, seed=5) for _ in range(2))
        assert shapes(twin) == shapes(model)
        assert list(dict(twin.named_modules())) == list(dict(model.named_modules()))
        heads = [m.get_submodule(m.head_layer).weight for m in (model, twin, again)]
        assert not torch.equal(heads[0], heads[1])
        assert torch.equal(heads[1], heads[2])
        assert twin.transform is model.transform
        assert twin.weights_source == "random initialization, seed 5"
        assert (twin.source_classes, twin.training) == (0, False)
    assert twin.transform_input  # as published weights want it, and a network without does not


def test_the_untrained_twin_takes_images_of_the_same_size():
    vit = tvm.vit_b_32(image_size=64, num_classes=3)  # as others' published weights are larger
    vit.__dict__.update(head_layer="heads.head", transform=None, weights_source="file a.pt")
    assert untrained_twin(vit, "vit_b_32").eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    vit.class_token = nn.Parameter(torch.zeros(1, 1, 9))
    with pytest.raises(ValueError, match="untrained: vit_b_32 is built otherwise with weights"):
        untrained_twin(vit, "vit_b_32")


def test_files_that_do_not_fit_or_are_no_weights(tmp_path, checkpoints):
    torch.save(tvm.squeezenet1_1().state_dict(), tmp_path / "squeeze.pt")
    (checkpoints / "shufflenetv2_x0.5-f707e7126e.pth").write_bytes(
        (tmp_path / "squeeze.pt").read_bytes()
    )
    with pytest.raises(ValueError, match=r"f707e7126e\.pth does not fit shufflenet_v2_x0_5"):
        load_model("shufflenet_v2_x0_5")
    with pytest.raises(ValueError, match=r"squeeze\.pt does not fit shufflenet_v2_x0_5"):
        load_model("shufflenet_v2_x0_5", tmp_path / "squeeze.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "squeeze.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pt is damaged"):
        load_model("squeezenet1_1", tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError) as caught:
        load_model("squeezenet1_1")
    for part in ("weights: squeezenet1_1-b8a52dc0.pth", str(checkpoints), "TORCH_HOME"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("resnet81",), ValueError, "unknown network 'resnet81'; did you mean 'resnet18'"),
        (("resnet18.a1_in1k",), ValueError, "unknown network 'resnet18.a1_in1k'; did you mean"),
        (("resnet50", "best.pt"), FileNotFoundError, "weights: no file 'best.pt' for resnet50; .*"),
        (("resnet50", "best.pt"), FileNotFoundError, "IMAGENET1K_V1, IMAGENET1K_V2, random"),
    ],
)
def test_wrong_names(arguments, error, message):
    with pytest.raises(error, match=message):
        check_model(*arguments)


def test_a_size_that_the_network_does_not_take():
    with pytest.raises(ValueError, match="size: alexnet takes no images of 16×16 pixels"):
        load_model("alexnet", RANDOM, size=16)


def test_models_are_told_apart_by_their_weights():
    found = parse_models(["a", "a=random", "b"], ["a=x/best.pt", "b=IMAGENET1K_V1"])
    assert found == {
        "a (best)": ("a", "x/best.pt"),
        "a (random)": ("a", "random"),
        "b (IMAGENET1K_V1)": ("b", "IMAGENET1K_V1"),
    }
    for models, weights, message in (
        (["a"], ["a"], "write NAME=FILE"),
        (["a"], ["b=x.pt"], "'b' is not among the models"),
        (["a="], [], "write NAME or NAME=WEIGHTS"),
        (["a", "a"], [], "a is there twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_models(models, weights)


# timm, an optional dependency


def test_timm_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"'timm:resnet18' needs the package timm: pip install"):
        load_model("timm:resnet18", RANDOM)


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("mobilenetv3_small_050", 64, 1024),
        ("convnext_atto", 64, 320),
        ("vit_tiny_patch16_224", 0, 192),
    ],
)
def test_timm_networks(name, size, width, tmp_path):
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    upstream = timm.create_model(name, pretrained=False, num_classes=5).eval()
    torch.save(upstream.state_dict(), tmp_path / "mine.pt")
    model = load_model(f"timm:{name}", tmp_path / "mine.pt", size=size)
    images = torch.randint(0, 256, (2, 3, 240, 240), dtype=torch.uint8)
    found = extract_features(model, images, ["penultimate", ""], device="cpu")
    assert found["penultimate"].shape == (2, width)
    with torch.inference_mode():
        expected = upstream(model.transform(images))
    torch.testing.assert_close(found[""], expected, rtol=1e-4, atol=1e-5)
    assert model.source_classes == 5
    assert shapes(untrained_twin(model, f"timm:{name}")) == shapes(model)


def test_the_transform_of_timm_is_its_own():
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    from PIL import Image

    model = load_model("timm:mobilenetv3_small_050", RANDOM)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    pixels = torch.randint(0, 256, (300, 340, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    torch.testing.assert_close(model.transform(image), theirs(image))


def test_timm_weights_as_safetensors_and_missing_ones(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    from safetensors.torch import save_file

    upstream = timm.create_model("mobilenetv3_small_050", pretrained=False)
    save_file(upstream.state_dict(), tmp_path / "model.safetensors")
    model = load_model("timm:mobilenetv3_small_050", tmp_path / "model.safetensors", size=64)
    assert all(v.equal(upstream.state_dict()[k]) for k, v in model.state_dict().items())
    (tmp_path / "cut.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
        load_model("timm:mobilenetv3_small_050", tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="unknown network 'timm:mobilenetv3_smal'; the nearest"):
        check_model("timm:mobilenetv3_smal")
    with pytest.raises(ValueError, match=r"timm:resnet18\.no_such_tag: "):
        check_model("timm:resnet18.no_such_tag")
