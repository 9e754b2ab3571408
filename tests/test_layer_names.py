"""layer_names: the stages, blocks and modules that one would list by hand."""

import pytest
import torch
import torchvision.models as tvm
from torch import nn

from siutils.features.layer_names import layer_names

pytestmark = pytest.mark.usefixtures("one_thread")


def build(name, **options):
    with torch.device("meta"):  # structure only: no weights, no time
        return getattr(tvm, name)(**options)


def blocks_of_class(model, *classes, prefix=""):
    return [n for n, m in model.named_modules(prefix=prefix) if type(m).__name__ in classes]


def test_efficientnet_has_its_8_stages_and_42_blocks():
    model = build("efficientnet_v2_s")
    assert layer_names(model) == [f"features.{i}" for i in range(8)]
    blocks = blocks_of_class(model, "MBConv", "FusedMBConv")
    assert len(blocks) == 40
    assert layer_names(model, "blocks") == ["features.0", *blocks, "features.7"]


def test_resnet_has_stem_stages_and_basic_blocks():
    model = build("resnet18")
    stages = ["layer1", "layer2", "layer3", "layer4"]
    assert layer_names(model) == ["maxpool", *stages, "avgpool"]
    assert layer_names(model, "blocks") == ["relu", *blocks_of_class(model, "BasicBlock")]
    model.global_pool = model.avgpool  # as timm calls it
    del model.avgpool
    assert layer_names(model) == ["maxpool", *stages, "global_pool"]


def test_vgg_has_pools_as_stages_and_conv_bn_relu_as_blocks():
    model = build("vgg16_bn")
    assert layer_names(model) == blocks_of_class(model.features, "MaxPool2d", prefix="features")
    blocks = blocks_of_class(model.features, "ReLU", prefix="features")
    assert layer_names(model, "blocks") == blocks
    assert len(layer_names(build("vgg11"), "blocks")) == 8


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("vit_b_32", ["conv_proj", "EncoderBlock"]),
        ("convnext_tiny", ["CNBlock"]),
        ("swin_t", ["SwinTransformerBlock"]),
        ("googlenet", ["Inception"]),
        ("shufflenet_v2_x0_5", ["InvertedResidual"]),
        ("squeezenet1_1", ["Fire"]),
    ],
)
def test_blocks_of_other_networks_are_their_repeated_parts(name, blocks):
    model = build(name, **{"init_weights": False} if name == "googlenet" else {})
    assert set(blocks_of_class(model, *blocks)) <= set(layer_names(model, "blocks"))
    found = layer_names(model, "blocks", torch.empty(2, 3, 224, 224, device="meta"))
    assert not any("aux" in n for n in found)  # unused in eval mode
    assert len(layer_names(model)) > 2


class TokensLikeTimm(nn.Module):
    """The shape of a timm network: parts of its own and one Sequential of blocks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 2, 2)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(4, 1, 8) for _ in range(2)))
        self.norm = nn.LayerNorm(4)


def test_the_only_container_is_opened():
    model = TokensLikeTimm()
    assert layer_names(model) == ["embed", "blocks.0", "blocks.1", "norm"]
    assert layer_names(model, "blocks") == ["embed", "blocks.0", "blocks.1"]
    assert layer_names(nn.Sequential(model)) == [f"0.{n}" for n in layer_names(model)]


class Odd(nn.Module):
    """A module used twice, one unused, a tuple, one that mixes the images, and another order."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(2, 2)
        self.first = nn.Linear(3, 4)
        self.lstm = nn.LSTM(4, 4)
        self.mixed = nn.Flatten(0)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(self.lstm(x)[0])
        self.mixed(x)
        return self.last(x)


def test_all_are_the_modules_used_once_with_a_row_per_image_in_order_of_use():
    model = Odd().train()
    assert layer_names(model, "all", torch.rand(2, 3)) == ["first", "last"]
    assert layer_names(model, "stages", torch.rand(2, 3)) == ["first", "last"]
    assert model.training
    assert all(not m._forward_hooks for m in model.modules())
    sequence = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert layer_names(sequence, "all", torch.rand(2, 3)) == ["0", "1.0", "1.1"]


@pytest.mark.parametrize(
    ("name", "block"), [("efficientnet_v2_s", "features.2.1"), ("resnet18", "layer2.1")]
)
def test_all_have_each_block_after_its_addition(name, block):
    model = getattr(tvm, name)(weights=None)
    names = layer_names(model, "all", torch.rand(2, 3, 64, 64))
    assert names.index(block) > names.index(next(n for n in names if n.startswith(f"{block}.")))
    assert block.rpartition(".")[0] not in names  # the same as its last block


def test_a_module_with_two_names_is_no_layer():
    relu = nn.ReLU()
    parts = [nn.Sequential(nn.Linear(3, 3), last) for last in (relu, relu, nn.ReLU())]
    for part in parts:  # outputs that sum to 0: ReLU always changes them
        part[0].weight.data = torch.eye(3) - torch.eye(3)[[1, 2, 0]]
        part[0].bias.data.zero_()
    model, inputs = nn.Sequential(*parts), torch.rand(2, 3)
    assert layer_names(model, "all", inputs) == ["0.0", "0", "1.0", "1", "2.0", "2.1"]
    assert layer_names(model, "blocks", inputs) == ["2.1"]
    assert all(not m._forward_hooks for m in model.modules())


def test_wrong_requests_are_one_clear_error():
    with pytest.raises(ValueError, match=r"got 'stage'; did you mean 'stages'\?"):
        layer_names(nn.Sequential(nn.ReLU()), "stage")
    with pytest.raises(ValueError, match='"all" needs inputs'):
        layer_names(nn.Sequential(nn.ReLU()), "all")
    with pytest.raises(ValueError, match="the model Flatten has no blocks"):
        layer_names(nn.Flatten(), "blocks")
