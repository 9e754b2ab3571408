"""Networks of torchvision and timm: the weights, transforms and features that they ask for."""

import re
import sys
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
import torchvision.models as tvm
from PIL import Image
from torch import nn

from siutils import extract_features
from siutils.networks.presets import transform_text
from siutils.networks.published import (
    RANDOM,
    load_model,
    parse_models,
    untrained_twin,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SMALL, TIMM = "shufflenet_v2_x0_5", "timm:mobilenetv3_small_050"


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


@pytest.mark.parametrize("name", ["squeezenet1_1", SMALL, "googlenet", "densenet121"])
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
        expected = head(inputs).flatten(1)
    torch.testing.assert_close(found[model.head_layer], expected, rtol=1e-4, atol=1e-5)
    assert model.feature_layer == "penultimate"
    assert model.source_classes == 0
    assert transform_text(model.transform).startswith("shorter side 64, bilinear; center 64; mean")


def test_random_weights_follow_the_seed_and_touch_no_global_generator():
    state = torch.random.get_rng_state()
    models = [load_model("squeezenet1_1", RANDOM, size=64, seed=s) for s in (1, 1, 2)]
    first, again, other = (model.features[0].weight for model in models)
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.random.get_rng_state().equal(state)
    assert models[0].weights_source == "random initialization, seed 1"


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_file_may_have_any_number_of_classes(tmp_path, key):
    trained = tvm.shufflenet_v2_x0_5(num_classes=7).eval()
    state = trained.state_dict()
    torch.save(state if key is None else {key: state}, tmp_path / "mine.pt")
    model, images = load_model(SMALL, tmp_path / "mine.pt", size=64), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert model(images).equal(trained(images))
    assert model.source_classes == 7
    assert model.weights_source.startswith("file mine.pt sha256 ")


def shapes(model):
    return {key: value.shape for key, value in model.state_dict().items()}


def test_the_untrained_twin_differs_in_its_weights_only(tmp_path, checkpoints):
    torch.save(tvm.shufflenet_v2_x0_5(num_classes=7).state_dict(), tmp_path / "mine.pt")
    publish("googlenet", checkpoints)
    mine = load_model(SMALL, tmp_path / "mine.pt", size=64)
    for model, name in ((mine, SMALL), (load_model("googlenet"), "googlenet")):
        twin, again = (untrained_twin(model, name, seed=5) for _ in range(2))
        assert shapes(twin) == shapes(model)
        assert list(dict(twin.named_modules())) == list(dict(model.named_modules()))
        trained, random, same = (m.get_submodule(m.head_layer).weight for m in (model, twin, again))
        assert not random.equal(trained)
        assert random.equal(same)
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
    published, mine = checkpoints / "shufflenetv2_x0.5-f707e7126e.pth", tmp_path / "squeeze.pt"
    for path in (published, mine):
        torch.save(tvm.squeezenet1_1().state_dict(), path)
    with pytest.raises(ValueError, match=r"f707e7126e\.pth does not fit shufflenet_v2_x0_5"):
        load_model(SMALL)
    with pytest.raises(ValueError, match=r"squeeze\.pt does not fit shufflenet_v2_x0_5"):
        load_model(SMALL, mine)
    mine.write_bytes(mine.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"squeeze\.pt is damaged"):
        load_model(SMALL, mine)
    with pytest.raises(FileNotFoundError, match=r"weights: squeezenet1_1-b8a52dc0\.pth is not in"):
        load_model("squeezenet1_1")


NO_FILE = "weights: no file 'best.pt' for resnet50; .*IMAGENET1K_V1, IMAGENET1K_V2, random"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_model("resnet81"), ValueError, "'resnet81'; did you mean 'resnet18'"),
        (lambda: load_model("resnet18.a1"), ValueError, "unknown network 'resnet18.a1'; did you"),
        (lambda: load_model("resnet50", "best.pt"), FileNotFoundError, NO_FILE),
        (lambda: load_model("alexnet", RANDOM, size=16), ValueError, "size: alexnet .* of 16×16 p"),
        (lambda: parse_models(["a"], ["a"]), ValueError, "write NAME=FILE"),
        (lambda: parse_models(["a"], ["b=x.pt"]), ValueError, "'b' is not among the models"),
        (lambda: parse_models(["a="]), ValueError, "write NAME or NAME=WEIGHTS"),
        (lambda: parse_models(["a", "a"]), ValueError, "a is there twice"),
    ],
)
def test_wrong_names_weights_and_sizes(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_models_are_told_apart_by_their_weights():
    found = parse_models(["a", "a=random", "b"], ["a=x/best.pt", "b=IMAGENET1K_V1"])
    assert found == {
        "a (best)": ("a", "x/best.pt"),
        "a (random)": ("a", "random"),
        "b (IMAGENET1K_V1)": ("b", "IMAGENET1K_V1"),
    }


# timm, an optional dependency


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="the optional package timm is not installed")


def test_timm_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"'timm:resnet18' needs the package timm: pip install"):
        load_model("timm:resnet18", RANDOM)


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [(TIMM, 64, 1024), ("timm:convnext_atto", 64, 320), ("timm:vit_tiny_patch16_224", 0, 192)],
)
def test_timm_networks(name, size, width, timm, tmp_path):
    upstream = timm.create_model(name.removeprefix("timm:"), num_classes=5).eval()
    torch.save(upstream.state_dict(), tmp_path / "mine.pt")
    model = load_model(name, tmp_path / "mine.pt", size=size)
    images = torch.randint(0, 256, (2, 3, 240, 240), dtype=torch.uint8)
    found = extract_features(model, images, ["penultimate", ""], device="cpu")
    assert found["penultimate"].shape == (2, width)
    with torch.inference_mode():
        expected = upstream(model.transform(images))
    torch.testing.assert_close(found[""], expected, rtol=1e-4, atol=1e-5)
    assert model.source_classes == 5
    assert shapes(untrained_twin(model, name)) == shapes(model)


def test_the_transform_of_timm_is_its_own(timm):
    model = load_model(TIMM, RANDOM)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 340, 3), np.uint8))
    torch.testing.assert_close(model.transform(image), theirs(image))


def test_timm_weights_as_safetensors_and_wrong_names(timm, tmp_path):
    from safetensors.torch import save_file

    path, state = tmp_path / "model.safetensors", timm.create_model(TIMM[5:]).state_dict()
    save_file(state, path)
    model = load_model(TIMM, path, size=64)
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    path.write_bytes(b"half")
    for name, message in (
        (TIMM, r"model\.safetensors is damaged"),
        ("timm:mobilenetv3_smal", "unknown network 'timm:mobilenetv3_smal'; did you mean"),
        ("timm:resnet18.no_such_tag", r"timm:resnet18\.no_such_tag: "),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(name, path)
