"""Networks of torchvision for 32×32: their parts, their resolution, and that they learn."""

import math

import pytest
import torch
import torchvision.models as tvm
from torch import nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from siutils.data.images import ImageSet, Transform
from siutils.features.extraction import extract_features
from siutils.networks.architectures import ARCHITECTURES, adapted, start_as_identity
from siutils.networks.models import MODELS, create_model
from siutils.study.transfer import inherit
from siutils.training.loop import fit

pytestmark = pytest.mark.usefixtures("one_thread")

VGGS = {"vgg11": "vgg11_bn", "vgg13": "vgg13_bn"}
NAMES = [*ARCHITECTURES, *VGGS]
# blocks with a shortcut, counted in the papers' tables
SHORTCUTS = {
    "resnet34": 16,
    "regnet_y_400mf": 16,
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "mnasnet0_5": 10,
}


def images(n=2, seed=0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_there_are_networks_enough_to_correlate():
    assert set(MODELS) == {"vgg16", "resnet18", "efficientnet_b0", "efficientnet_v2_s", *NAMES}
    assert len(NAMES) == 11  # "eleven others", as the README says


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_published_but_for_stem_and_classes(name):
    model = create_model(name, 50, seed=0)
    published = tvm.get_model_weights(name).IMAGENET1K_V1.meta["num_params"]
    width = model.get_submodule(model.head_layer).weight.shape[1]
    smaller_stem = 64 * 3 * (7 * 7 - 3 * 3) if name in ("resnet34", "densenet121") else 0
    found = sum(p.numel() for p in model.parameters())
    assert found == published - 950 * (width + 1) - smaller_stem


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_layers_behind_them_turn_into_logits(name):
    model = create_model(name, 7, seed=0)
    layers = [model.feature_layer, model.head_layer]
    features, logits = extract_features(model, images(3), layers, device="cpu").values()
    behind = model.get_submodule(model.head_layer.partition(".")[0])
    if isinstance(behind, nn.Sequential):
        first = model.feature_layer.partition(".")
        behind = behind[1:] if first[0] == model.head_layer.partition(".")[0] else behind
    rows = features[:, :, None, None] if name == "squeezenet1_1" else features
    with torch.inference_mode():
        model.eval()
        assert model(images(3)).shape == (3, 7)
        torch.testing.assert_close(model(images(3)), logits)
        torch.testing.assert_close(behind(rows).flatten(1), logits)
    assert features.std(dim=0).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_images_are_not_crushed_before_the_last_stage(name):
    model = create_model(name, 7, seed=0).eval()
    squeezed = [m for m in model.modules() if isinstance(m, SqueezeExcitation)]
    inside = {id(part) for block in squeezed for part in block.modules()}
    sides = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and id(module) not in inside:
            module.register_forward_hook(lambda m, i, out: sides.append(out.shape[-1]))
    with torch.inference_mode():
        model(images())
    if name == "squeezenet1_1":
        sides.pop()  # its last layer is a convolution, behind the pool
    assert sides[0] == 32
    assert min(sides) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_of_training_lower_the_loss(name):
    model = create_model(name, 2, seed=0)
    labels = torch.arange(8) % 2
    inputs = images(8) + labels[:, None, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dropout
        for _ in range(6 if name != "squeezenet1_1" else 24):  # without BatchNorm it starts slowly
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert min(losses[3:]) < 0.8 * losses[0], losses


@pytest.mark.parametrize("name", ["mnasnet0_5", "mobilenet_v3_small"])
def test_training_goes_on_from_its_files_and_hands_its_weights_on(name, tmp_path):
    pixels = (images(8) * 255).to(torch.uint8)
    data = ImageSet("noise", pixels, torch.arange(8) % 2, ("even", "odd"), "")
    models, lines = [create_model(name, 2, seed=0) for _ in range(2)], []
    how = {"transform": Transform((0.5,) * 3, (0.5,) * 3), "device": "cpu", "cache": tmp_path}
    for model in models:
        fit(model, data, data, "one_cycle", epochs=1, progress=lines.append, **how)
    assert len(lines) == 1  # the second is loaded, not trained
    first, again = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], again[key]) for key in first)
    heir = create_model(name, 3, seed=1)
    inherit(heir, models[0])
    assert all(torch.equal(first[k], v) for k, v in heir.state_dict().items()
               if not k.startswith(heir.head_layer))  # fmt: skip


def test_weights_come_from_a_file_also_where_a_network_asks_for_its_version(tmp_path):
    model = create_model("mnasnet0_5", 2, seed=0)
    torch.save(dict(model.state_dict()), tmp_path / "weights.pt")
    found = create_model("mnasnet0_5", 2, weights=str(tmp_path / "weights.pt"), seed=1)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in found.state_dict().items())


@pytest.mark.parametrize("name", ["resnet34", "densenet121"])
def test_a_smaller_kernel_is_drawn_as_torchvision_draws_one_of_3(name):
    stem = adapted(name, 2).get_submodule(ARCHITECTURES[name].stem)
    fan = 64 * 9 if name == "resnet34" else 3 * 9  # kaiming: fan_out there, fan_in here
    assert stem.weight.shape == (64, 3, 3, 3)
    assert float(stem.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan), rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_with_a_shortcut_start_as_the_identity_where_asked(name):
    plain = create_model(name, 3, seed=0).state_dict()
    model = create_model(name, 3, seed=0, zero_init_residual=True)
    changed = [k for k, v in model.state_dict().items() if not v.equal(plain[k])]
    assert len(changed) == SHORTCUTS.get(name, 0)
    assert all(not model.state_dict()[k].any() for k in changed)


def test_a_block_that_starts_as_the_identity_returns_its_input():
    for name, layer, width in (
        ("mobilenet_v2", "features.3", 24),
        ("mobilenet_v3_small", "features.3", 24),
        ("mnasnet0_5", "layers.8.1", 16),
    ):
        model = adapted(name, 3).eval()
        inputs = torch.rand(2, width, 8, 8)
        block = model.get_submodule(layer)
        assert not block(inputs).equal(inputs)
        start_as_identity(model)
        assert block(inputs).equal(inputs), name


def test_weights_come_back_from_a_file_and_imagenet_is_refused(tmp_path):
    model = create_model("shufflenet_v2_x0_5", 3, seed=1)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    again = create_model("shufflenet_v2_x0_5", 3, weights=tmp_path / "net.pt")
    assert again.fc[1].weight.equal(model.fc[1].weight)
    with pytest.raises(ValueError, match="has 3 classes, but num_classes is 4"):
        create_model("shufflenet_v2_x0_5", 4, weights=tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"'imagenet' is for vgg16.*not for 'mobilenet_v2'"):
        create_model("mobilenet_v2", 3, weights="imagenet")
