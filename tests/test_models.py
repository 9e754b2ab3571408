"""Networks and their weights: shapes, initialization, checkpoints, ImageNet files, faults."""

import hashlib
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
import torchvision.models as tvm
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import MemoryEfficientSwish
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from siutils.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from siutils.data.images import Transform
from siutils.networks.models import create_model, stage_table

PARAMETERS = {
    "vgg16": 34_015_396,
    "resnet18": 11_220_132,
    "efficientnet_b0": 4_135_648,
    "efficientnet_v2_s": 20_305_588,
}
WIDTH = {"vgg16": 512, "resnet18": 512, "efficientnet_b0": 1280, "efficientnet_v2_s": 1280}
PUBLISHED = {
    "vgg16": (tvm.vgg16_bn, "vgg16_bn-6c64b313.pth", "classifier.6"),
    "resnet18": (tvm.resnet18, "resnet18-f37072fd.pth", "fc"),
    "efficientnet_b0": (
        tvm.efficientnet_b0,
        "efficientnet_b0_rwightman-7f5810bc.pth",
        "classifier.1",
    ),
    "efficientnet_v2_s": (tvm.efficientnet_v2_s, "efficientnet_v2_s-dd5fe13b.pth", "classifier.1"),
}
PACKAGE_FILE = "efficientnet-b0-355c32eb.pth"


def output_of(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.inference_mode():
        model.eval()(images)
    hook.remove()
    return seen[0]


def traced_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", UserWarning)  # train and eval graphs differ by dropout
        extractor = create_feature_extractor(model.eval(), [model.feature_layer])
        return extractor(images)[model.feature_layer].flatten(1)


# the networks


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_is_that_of_the_study(name):
    model = create_model(name, 100, seed=0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PARAMETERS[name]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.training
    assert traced_features(model, images).shape == (2, WIDTH[name])
    with torch.inference_mode():
        assert model(images).shape == (2, 100)
    assert model.transform is None
    assert model.weights_source == "random initialization, seed 0"
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())


def test_resolution_inside_the_networks_is_that_for_32_pixels():
    images = torch.zeros(1, 3, 32, 32)
    for name, layer, side in (
        ("vgg16", "features", 1),
        ("resnet18", "layer1", 32),
        ("resnet18", "layer4", 4),
        ("efficientnet_b0", "features.0", 32),
        ("efficientnet_b0", "features.8", 4),
        ("efficientnet_v2_s", "features.0", 16),
    ):
        model = create_model(name, 2, seed=0)
        assert output_of(model, layer, images).shape[2:] == (side, side), (name, layer)


def test_replaced_and_rebuilt_layers_are_initialized_as_in_torchvision():
    vgg = create_model("vgg16", 100, seed=0)
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * 9
            assert float(module.weight.detach().std()) == pytest.approx(
                math.sqrt(2 / fan_out), rel=0.1
            )
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.running_var.eq(1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
    stem = create_model("resnet18", 100, seed=0).conv1.weight
    assert float(stem.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)


def test_seed_decides_and_the_global_generator_stays():
    state = torch.random.get_rng_state()
    first, again, other = (create_model("resnet18", 10, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)
    vgg = [create_model("vgg16", 10, seed=1).state_dict() for _ in range(2)]
    assert all(torch.equal(vgg[0][k], vgg[1][k]) for k in vgg[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", PARAMETERS)
def test_residual_blocks_can_start_as_the_identity(name):
    plain = create_model(name, 10, seed=0)
    model = create_model(name, 10, seed=0, zero_init_residual=True)
    changed = {k for k, v in model.state_dict().items() if not v.equal(plain.state_dict()[k])}
    # shortcuts: 8 blocks of ResNet18; 9 of 16 and 35 of 40 blocks of the EfficientNets
    shortcuts = {"vgg16": 0, "resnet18": 8, "efficientnet_b0": 9, "efficientnet_v2_s": 35}
    assert len(changed) == shortcuts[name]
    assert all(not model.state_dict()[k].any() for k in changed)
    assert model.weights_source.endswith("residual blocks start as the identity")


def test_a_block_that_starts_as_the_identity_returns_its_input():
    model = create_model("efficientnet_b0", 10, seed=0, zero_init_residual=True).eval()
    block = model.features[2][1]
    images = torch.rand(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    assert block(images).equal(images)


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
    assert table["parameters"].sum() == PARAMETERS["efficientnet_v2_s"] - (1280 * 100 + 100)
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
        (("resnet18", 10, "imagenet:efficientnet_pytorch"), ValueError, "for efficientnet_b0, not"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        create_model(*arguments)


# checkpoints


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_checkpoint_is_loaded(tmp_path, key):
    trained = create_model("resnet18", 7, seed=1)
    state = trained.state_dict()
    path = tmp_path / "best.pt"
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    model = create_model("resnet18", 7, weights=path, seed=2)
    assert all(torch.equal(value, state[k]) for k, value in model.state_dict().items())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.weights_source == f"file best.pt sha256 {digest}"
    assert model.transform is None
    assert model.feature_layer == "avgpool"


@pytest.mark.parametrize("keep", [0, 100, 0.5, -30])
def test_truncated_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "cut.pt"
    torch.save(create_model("resnet18", 3, seed=0).state_dict(), path)
    content = path.read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    path.write_bytes(content[:end])
    with pytest.raises(ValueError, match=r"cut\.pt is damaged, truncated"):
        create_model("resnet18", 3, weights=path)


def test_checkpoint_that_does_not_fit(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(create_model("resnet18", 3, seed=0).state_dict(), path)
    with pytest.raises(ValueError, match=r"net\.pt has 3 classes, but num_classes is 4"):
        create_model("resnet18", 4, weights=path)
    with pytest.raises(ValueError, match=r"net\.pt does not fit efficientnet_b0"):
        create_model("efficientnet_b0", 3, weights=path)
    state = create_model("resnet18", 3, seed=0).state_dict()
    del state["bn1.running_mean"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"does not fit resnet18.*bn1\.running_mean"):
        create_model("resnet18", 3, weights=path)
    for content in ([1, 2], {"epoch": 1}, torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(ValueError, match="holds no state_dict"):
            create_model("resnet18", 3, weights=path)


class Payload:
    """Unpickling this creates a folder: what a malicious checkpoint would do."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_malicious_checkpoint_is_refused(tmp_path):
    path, target = tmp_path / "evil.pt", tmp_path / "harm"
    torch.save({"model": Payload(target)}, path)
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


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "efficientnet_v2_s", "vgg16"])
def test_imagenet_weights_are_loaded_by_torchvision(name, checkpoints):
    build, file, head = PUBLISHED[name]
    if name == "vgg16":  # same convolutions; expanded views keep 500 MB out of the file
        upstream = create_model("vgg16", 1000, seed=1)
        state = upstream.state_dict()
        state["classifier.0.weight"] = torch.full((1,), 1e-4).expand(4096, 512 * 7 * 7)
    else:
        upstream = build(num_classes=1000)
        state = upstream.state_dict()
    torch.save(state, checkpoints / file)
    model = create_model(name, 5, weights="imagenet", seed=0)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layer = model.feature_layer
    got = output_of(model, layer, images)
    assert torch.equal(got, output_of(upstream, layer, images))
    assert got.flatten(1).shape == (2, WIDTH[name])
    assert output_of(model, head, images).shape == (2, 5)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if head not in k)
    digest = hashlib.sha256((checkpoints / file).read_bytes()).hexdigest()
    assert model.weights_source.startswith("ImageNet: ")
    assert model.weights_source.endswith(f"IMAGENET1K_V1, sha256 {digest[:8]}")
    assert model.transform == Transform(IMAGENET_MEAN, IMAGENET_STD)


def test_imagenet_weights_of_the_package(checkpoints):
    upstream = EfficientNet.from_name("efficientnet-b0", batch_norm_momentum=0)
    upstream(torch.rand(8, 3, 32, 32))  # batch statistics, without which all features are near 0
    upstream.eval()
    torch.save(upstream.state_dict(), checkpoints / PACKAGE_FILE)
    model = create_model("efficientnet_b0", 5, weights="imagenet:efficientnet_pytorch", seed=0)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = upstream.extract_features(images).mean((2, 3))
        assert model.eval()(images).shape == (2, 5)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(traced_features(model, images), want, rtol=0.02, atol=1e-3)
    state = upstream.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if "_fc" not in k)
    assert not any(isinstance(m, MemoryEfficientSwish) for m in model.modules())
    assert model.feature_layer == "_avg_pooling"
    assert "efficientnet_pytorch 0.7" in model.weights_source
    assert model.transform == Transform(IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("weights", ["imagenet", "imagenet:efficientnet_pytorch"])
def test_imagenet_weights_missing_offline(weights, checkpoints, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # every download fails, also online
    file = PACKAGE_FILE if ":" in weights else PUBLISHED["efficientnet_b0"][1]
    with pytest.raises(FileNotFoundError) as caught:
        create_model("efficientnet_b0", 5, weights=weights)
    for part in (file, str(checkpoints), "https://", "TORCH_HOME"):
        assert part in str(caught.value)
    assert list(checkpoints.iterdir()) == []


def test_imagenet_download_with_a_wrong_hash(checkpoints, monkeypatch, tmp_path):
    file = tmp_path / "resnet18-f37072fd.pth"
    torch.save(tvm.resnet18().state_dict(), file)
    published = tvm.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(published, "url", file.as_uri())
    with pytest.raises(RuntimeError, match="is not the published file") as caught:
        create_model("resnet18", 5, weights="imagenet")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in str(caught.value)
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize("weights", ["imagenet", "imagenet:efficientnet_pytorch"])
def test_imagenet_file_damaged_or_malicious(weights, checkpoints, tmp_path):
    file = PACKAGE_FILE if ":" in weights else PUBLISHED["efficientnet_b0"][1]
    (checkpoints / file).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        create_model("efficientnet_b0", 5, weights=weights)
    torch.save(Payload(tmp_path / "harm"), checkpoints / file)
    with pytest.raises(ValueError, match=f"{file} is damaged, truncated or holds more than"):
        create_model("efficientnet_b0", 5, weights=weights)
    assert not (tmp_path / "harm").exists()
    torch.save(create_model("resnet18", 3, seed=0).state_dict(), checkpoints / file)
    with pytest.raises(ValueError, match=f"{file} does not fit efficientnet_b0"):
        create_model("efficientnet_b0", 5, weights=weights)
