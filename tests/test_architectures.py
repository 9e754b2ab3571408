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
from siutils.networks.architectures import ARCHITECTURES, MODELS
from siutils.networks.models import create_model
from siutils.study.transfer import inherit
from siutils.training.loop import fit
from siutils.training.recipes import get_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = (*ARCHITECTURES, "vgg11", "vgg13")
RECIPE = get_recipe("fast", images=16, epochs=1, dtype="float32")


def images(n):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_there_are_as_many_others_as_the_readme_says():
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_published_but_for_stem_and_classes(name):
    model = create_model(name, 50, seed=0)
    published = tvm.get_model_weights(name).IMAGENET1K_V1.meta["num_params"]
    width = model.get_submodule(model.head_layer).weight.shape[1]
    smaller_stem = 64 * 3 * (7 * 7 - 3 * 3) if name in ("resnet34", "densenet121") else 0
    found = sum(p.numel() for p in model.parameters())
    assert found == published - 950 * (width + 1) - smaller_stem


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_layers_behind_them_turn_into_logits(name):
    model = create_model(name, 7, seed=0)
    layers = [model.feature_layer, model.head_layer]
    features, logits = extract_features(model, images(3), layers, device="cpu").values()
    outermost = model.head_layer.partition(".")[0]
    behind = model.get_submodule(outermost)
    if model.feature_layer.startswith(f"{outermost}."):
        behind = behind[1:]
    rows = features[:, :, None, None] if name == "squeezenet1_1" else features
    with torch.inference_mode():
        found = model.eval()(images(3))
        assert found.shape == (3, 7)
        torch.testing.assert_close(found, logits)
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
        model(images(2))
    if name == "squeezenet1_1":
        sides.pop()  # its last layer is a convolution, behind the pool
    assert sides[0] == 32
    assert min(sides) >= 2


@pytest.mark.parametrize("name", [*NAMES, "resnet18"])
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
    first, again = (create_model(name, 2, seed=0) for _ in range(2))
    how = {"transform": Transform((0.5,) * 3, (0.5,) * 3), "device": "cpu", "cache": tmp_path}
    lines = []
    for model in (first, again):
        fit(model, data, data, RECIPE, progress=lines.append, **how)
    assert len(lines) == 1  # the second is loaded, not trained
    weights = first.state_dict()
    assert all(weights[key].equal(value) for key, value in again.state_dict().items())
    heir = create_model(name, 3, seed=1)
    inherit(heir, first)
    body = {k: v for k, v in heir.state_dict().items() if not k.startswith(heir.head_layer)}
    assert all(weights[key].equal(value) for key, value in body.items())


@pytest.mark.parametrize(
    ("name", "stem", "fan"),  # kaiming: fan_out in ResNets, fan_in in DenseNets
    [("resnet18", "conv1", 64), ("resnet34", "conv1", 64), ("densenet121", "features.conv0", 3)],
)
def test_a_smaller_kernel_is_drawn_as_torchvision_draws_one_of_3(name, stem, fan):
    weight = create_model(name, 2, seed=0).get_submodule(stem).weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (fan * 9)), rel=0.1)
