"""Networks and their weights: shapes, initialization, checkpoints, ImageNet files, faults."""

import hashlib
import math

import pytest
import torch
import torchvision.models as tvm
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import MemoryEfficientSwish
from harmful import Harmful
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from siutils.core.keys import model_key
from siutils.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from siutils.data.images import ImageSet, Transform
from siutils.networks.architectures import MODELS
from siutils.networks.models import create_model, stage_table
from siutils.training.files import run_facts
from siutils.training.recipes import RECIPES

STUDY = {  # parameters for 100 classes, the published file, the last layer
    "vgg16": (34_015_396, "vgg16_bn-6c64b313.pth", "classifier.6"),
    "resnet18": (11_220_132, "resnet18-f37072fd.pth", "fc"),
    "efficientnet_b0": (4_135_648, "efficientnet_b0_rwightman-7f5810bc.pth", "classifier.1"),
    "efficientnet_v2_s": (20_305_588, "efficientnet_v2_s-dd5fe13b.pth", "classifier.1"),
}
PACKAGE = "imagenet:efficientnet_pytorch"
B0_FILES = {"imagenet": STUDY["efficientnet_b0"][1], PACKAGE: "efficientnet-b0-355c32eb.pth"}
SHORTCUTS = {  # blocks with a shortcut, counted in the papers' tables; one of them, its channels
    "resnet18": (8, "layer1.1", 64),
    "efficientnet_b0": (9, "features.2.1", 24),
    "efficientnet_v2_s": (35, "features.1.1", 24),
    "efficientnet_v2_s_stride1": (35, "features.1.1", 24),
    "efficientnet_v2_s_plain_stage1": (33, "features.2.1", 48),
    "efficientnet_lite0": (9, "_blocks.2", 24),
    "efficientnet_lite1": (14, "_blocks.2", 24),
    "efficientnet_lite2": (14, "_blocks.2", 24),
}


def images_of():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def output_of(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.inference_mode():
        model.eval()(images)
    return seen[0]


@pytest.mark.parametrize("name", STUDY)
def test_network_is_that_of_the_study(name):
    model = create_model(name, 100, seed=0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == STUDY[name][0]
    assert model.training
    assert model.transform is None
    assert model.weights_source == "random initialization, seed 0"
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("vgg16", {"features": 1}),
        ("resnet18", {"layer1": 32, "layer4": 4}),
        ("efficientnet_b0", {"features.0": 32, "features.8": 4}),
        ("efficientnet_v2_s", {"features.0": 16}),
    ],
)
def test_resolution_inside_the_networks_is_that_for_32_pixels(name, sides):
    model, images = create_model(name, 2, seed=0), torch.zeros(1, 3, 32, 32)
    for layer, side in sides.items():
        assert output_of(model, layer, images).shape[2:] == (side, side)


def test_the_rebuilt_vgg_is_initialized_as_in_torchvision():
    for module in create_model("vgg16", 100, seed=0).modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * 9))
            assert module.weight.std().item() == pytest.approx(std, rel=0.1)
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(module.num_features).state_dict()
            assert all(value.equal(fresh[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_seed_decides_and_the_global_generator_stays(name):
    state = torch.random.get_rng_state()
    first, again, other = (create_model(name, 10, seed=s).state_dict() for s in (1, 1, 2))
    assert all(value.equal(again[key]) for key, value in first.items())
    assert not any(value.equal(other[key]) for key, value in first.items() if value.ndim > 1)
    assert torch.random.get_rng_state().equal(state)


def test_without_shortcuts_the_layers_and_their_weights_are_the_same():
    plain, whole = (create_model(f"resnet18{end}", 7, seed=0) for end in ("_no_shortcuts", ""))
    shared = {k: v for k, v in whole.state_dict().items() if "downsample" not in k}
    assert plain.state_dict().keys() == shared.keys()
    assert all(v.shape == shared[k].shape for k, v in plain.state_dict().items())
    block = plain.layer1[0].eval()
    nn.init.zeros_(block.conv2.weight)
    assert not block(torch.randn(2, 64, 8, 8)).any()  # nothing gets past the layers


@pytest.mark.parametrize("name", ["efficientnet_v2_s_stride1", "efficientnet_v2_s_plain_stage1"])
def test_variants_have_the_parameters_of_the_network_and_keys_of_their_own(name):
    whole, variant = (create_model(n, 7, seed=0) for n in ("efficientnet_v2_s", name))
    weights, images = variant.state_dict(), images_of()
    assert all(value.equal(weights[key]) for key, value in whole.state_dict().items())
    assert whole.state_dict().keys() == weights.keys()
    data = ImageSet(
        "black", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ("a", "b"), ""
    )
    for model in (whole, variant):
        model.transform = Transform((0.5,) * 3, (0.5,) * 3)
    facts = [run_facts(model, data, data, RECIPES["fast"], 0) for model in (whole, variant)]
    assert facts[0] != facts[1]  # else a finished training would be taken for the other's
    assert model_key(whole) != model_key(variant)
    sides = [output_of(model, "features.0", images).shape[2] for model in (whole, variant)]
    assert sides == [16, 32 if "stride1" in name else 16]
    block = variant.features[1][1]
    nn.init.zeros_(block.block[-1][1].weight)
    assert bool(block(torch.rand(2, 24, 8, 8)).any()) == ("plain" not in name)  # a shortcut


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_layers_behind_them_turn_into_logits(name):
    model, images = create_model(name, 7, seed=0).eval(), images_of()
    features, logits = (
        output_of(model, n, images) for n in (model.feature_layer, model.head_layer)
    )
    behind = model.get_submodule(model.head_layer.partition(".")[0])
    with torch.inference_mode():
        torch.testing.assert_close(model(images), logits)
        torch.testing.assert_close(behind(features.flatten(1)), logits)
    assert logits.shape == (2, 7)
    assert features.std(dim=0).max() > 0


def test_a_smaller_kernel_is_drawn_as_torchvision_draws_one_of_3():
    weight = create_model("resnet18", 2, seed=0).conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_with_a_shortcut_can_start_as_the_identity(name):
    plain = create_model(name, 10, seed=0).eval()
    model = create_model(name, 10, seed=0, zero_init_residual=True).eval()
    before, after = plain.state_dict(), model.state_dict()
    changed = [value for key, value in after.items() if not value.equal(before[key])]
    count, block, channels = SHORTCUTS.get(name, (0, "", 3))
    assert len(changed) == count
    assert not any(value.any() for value in changed)
    assert model.weights_source.endswith("residual blocks start as the identity")
    if block:
        inputs = torch.rand(2, channels, 8, 8)
        assert model.get_submodule(block)(inputs).equal(inputs)
        assert not plain.get_submodule(block)(inputs).equal(inputs)


def test_stage_table_is_that_of_the_paper():
    table = stage_table(create_model("efficientnet_v2_s", 10, seed=0))
    rows = table[["operator", "stride", "channels", "blocks"]].values.tolist()
    assert rows == [
        ["Conv 3×3", 2, 24, 1],
        ["Fused-MBConv1", 1, 24, 2],
        ["Fused-MBConv4", 2, 48, 4],
        ["Fused-MBConv4", 2, 64, 4],
        ["MBConv4 + SE", 2, 128, 6],
        ["MBConv6 + SE", 1, 160, 9],
        ["MBConv6 + SE", 2, 256, 15],
        ["Conv 1×1", 1, 1280, 1],
    ]
    assert table["parameters"].sum() == STUDY["efficientnet_v2_s"][0] - (1280 * 100 + 100)
    b0 = stage_table(create_model("efficientnet_b0", 10, seed=0))
    assert b0["operator"][1] == "MBConv1 + SE"
    assert b0["stride"].tolist() == [1, 1, 2, 2, 2, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="EfficientNet, got ResNet"):
        stage_table(create_model("resnet18", 10, seed=0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("resnet81", 10), ValueError, "did you mean 'resnet18'.*vgg16"),
        (("resnet18", 0), ValueError, "num_classes"),
        (("resnet18", True), ValueError, "num_classes"),
        (("resnet18", 10.0), ValueError, "num_classes"),
        (("resnet18", 10, 5), TypeError, "weights must be"),
        (("resnet18", 10, "imagenet1k"), FileNotFoundError, "no file 'imagenet1k'; give None"),
        (("resnet18", 10, None, 1.5), ValueError, "seed"),
        (("resnet18", 10, PACKAGE), ValueError, "for efficientnet_b0, not"),
        (
            ("efficientnet_v2_s_stride1", 3, "imagenet"),
            ValueError,
            "for vgg16.*not for 'efficientnet_v2_s_stride1'",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        create_model(*arguments)


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_checkpoint_is_loaded(tmp_path, key):
    state, path = dict(create_model("resnet18", 7, seed=1).state_dict()), tmp_path / "best.pt"
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    model = create_model("resnet18", 7, weights=path, seed=2)
    assert all(value.equal(state[k]) for k, value in model.state_dict().items())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.weights_source == f"file best.pt sha256 {digest}"
    assert model.transform is None
    assert model.feature_layer == create_model("resnet18", 7).feature_layer


@pytest.mark.parametrize("end", [0, 100, 20_000_000, -30])
def test_truncated_checkpoint_is_named(tmp_path, end):
    path = tmp_path / "cut.pt"
    torch.save(create_model("resnet18", 3, seed=0).state_dict(), path)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"cut\.pt is damaged, truncated"):
        create_model("resnet18", 3, weights=path)


def test_checkpoint_that_does_not_fit(tmp_path):
    state, path = create_model("resnet18", 3, seed=0).state_dict(), tmp_path / "net.pt"
    without_mean = {key: value for key, value in state.items() if key != "bn1.running_mean"}
    for content, name, classes, message in (
        (state, "efficientnet_b0", 3, r"net\.pt does not fit efficientnet_b0"),
        (without_mean, "resnet18", 3, r"does not fit resnet18.*bn1\.running_mean"),
        ([1, 2], "resnet18", 3, "holds no state_dict"),
        ({"epoch": 1}, "resnet18", 3, "holds no state_dict"),
        (torch.zeros(3), "resnet18", 3, "holds no state_dict"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            create_model(name, classes, weights=path)


def test_malicious_checkpoint_is_refused(tmp_path):
    path, target = tmp_path / "evil.pt", tmp_path / "harm"
    torch.save({"model": Harmful(target)}, path)
    with pytest.raises(ValueError, match=r"evil\.pt is damaged, truncated or holds more than"):
        create_model("resnet18", 3, weights=path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the file does harm whoever trusts it
    assert target.exists()


# ImageNet: stand-in files where a download would land


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", STUDY)
def test_imagenet_weights_are_loaded_by_torchvision(name, checkpoints):
    _, file, head = STUDY[name]
    vgg = name == "vgg16"  # same convolutions; expanded views keep 500 MB out of the file
    upstream = create_model(name, 1000, seed=1) if vgg else getattr(tvm, name)(num_classes=1000)
    state = upstream.state_dict()
    if vgg:
        state["classifier.0.weight"] = torch.full((1,), 1e-4).expand(4096, 512 * 7 * 7)
    torch.save(state, checkpoints / file)
    model, images = create_model(name, 5, weights="imagenet", seed=0), images_of()
    got, expected = (output_of(m, model.feature_layer, images) for m in (model, upstream))
    assert got.equal(expected)
    assert output_of(model, head, images).shape == (2, 5)
    assert all(v.equal(state[k]) for k, v in model.state_dict().items() if head not in k)
    digest = hashlib.sha256((checkpoints / file).read_bytes()).hexdigest()
    assert model.weights_source.startswith("ImageNet: ")
    assert model.weights_source.endswith(f"IMAGENET1K_V1, sha256 {digest[:8]}")
    assert model.transform == Transform(IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.filterwarnings("ignore::UserWarning")  # train and eval graphs differ by dropout
def test_imagenet_weights_of_the_package(checkpoints):
    upstream = EfficientNet.from_name("efficientnet-b0", batch_norm_momentum=0)
    upstream(torch.rand(8, 3, 32, 32))  # batch statistics, without which all features are near 0
    state = upstream.eval().state_dict()
    torch.save(state, checkpoints / B0_FILES[PACKAGE])
    model, images = create_model("efficientnet_b0", 5, weights=PACKAGE, seed=0).eval(), images_of()
    assert model.feature_layer == "_avg_pooling"
    with torch.inference_mode():
        want = upstream.extract_features(images).mean((2, 3))
        found = create_feature_extractor(model, ["_avg_pooling"])(images)["_avg_pooling"]
        assert model(images).shape == (2, 5)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(found.flatten(1), want, rtol=0.02, atol=1e-3)
    assert all(v.equal(state[k]) for k, v in model.state_dict().items() if "_fc" not in k)
    assert not any(isinstance(m, MemoryEfficientSwish) for m in model.modules())
    assert "efficientnet_pytorch 0.7" in model.weights_source
    assert model.transform == Transform(IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(("weights", "file"), B0_FILES.items())
def test_imagenet_weights_missing_offline(weights, file, checkpoints, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # every download fails, also online
    with pytest.raises(FileNotFoundError) as caught:
        create_model("efficientnet_b0", 5, weights=weights)
    for part in (file, str(checkpoints), "https://", "TORCH_HOME"):
        assert part in str(caught.value)
    assert list(checkpoints.iterdir()) == []


def test_imagenet_download_with_a_wrong_hash(checkpoints, monkeypatch, tmp_path):
    file = tmp_path / "resnet18-f37072fd.pth"
    torch.save(tvm.resnet18().state_dict(), file)
    monkeypatch.setattr(tvm.ResNet18_Weights.IMAGENET1K_V1.value, "url", file.as_uri())
    with pytest.raises(RuntimeError, match="is not the published file") as caught:
        create_model("resnet18", 5, weights="imagenet")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in str(caught.value)
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize(("weights", "file"), B0_FILES.items())
def test_imagenet_file_damaged_or_malicious(weights, file, checkpoints, tmp_path):
    for content, message in (
        (None, "is damaged"),
        (Harmful(tmp_path / "harm"), "is damaged, truncated or holds more than"),
        (create_model("resnet18", 3, seed=0).state_dict(), "does not fit efficientnet_b0"),
    ):
        torch.save(content, checkpoints / file)
        if content is None:
            (checkpoints / file).write_bytes(b"half a file")
        with pytest.raises(ValueError, match=f"{file} {message}"):
            create_model("efficientnet_b0", 5, weights=weights)
    assert not (tmp_path / "harm").exists()
