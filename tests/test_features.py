"""extract_features: equal to a plain forward pass with hooks, cached exactly, clear errors."""

import pytest
import torch
import torchvision.models as tvm
from odd_network import HALF, LAYERS, by_hooks, close, network, pictures
from torch import nn
from torchvision.ops.misc import Permute

from siutils.data.images import Transform
from siutils.features.extraction import Pass, extract_features

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_layer_equals_a_forward_pass_with_hooks():
    model = network()
    features = extract_features(model, pictures(), LAYERS, batch_size=7, device="cpu")
    assert close(features, by_hooks(model, HALF(pictures()), LAYERS))
    assert list(features) == LAYERS
    assert (features["1"] < 0).any()  # not overwritten by the in-place activation behind it
    assert features["3"].shape == (23, 4 * 6 * 5)
    for value in features.values():
        assert (value.dtype, value.device.type) == (torch.float32, "cpu")
        assert value.is_contiguous()
        value += 1  # belongs to the caller, so is no tensor of inference mode


def test_uint8_with_the_transform_equals_float_images():
    model = network()
    expected = extract_features(model, HALF(pictures()), device="cpu")
    assert list(expected) == ["4"]
    assert extract_features(model, pictures(), device="cpu")["4"].equal(expected["4"])
    other = Transform((0.1,) * 3, (0.2,) * 3)
    given = extract_features(model, pictures(), transform=other, device="cpu")
    assert close(given, by_hooks(model, other(pictures()), ["4"]))
    assert not close(given, expected)
    double = extract_features(model, HALF(pictures()).double(), device="cpu")
    assert torch.equal(double["4"], expected["4"])


def test_the_model_is_left_as_it_was():
    model = network().train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    images = pictures()
    extract_features(model, images, LAYERS, device="cpu")
    with pytest.raises(ValueError, match="is not used"):
        extract_features(model, images, ["3.unused"], device="cpu")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())
    assert torch.equal(images, pictures())


def grid_means(maps, g):
    """The oracle in float64: cell i of a side of n reaches from ⌊i·n/g⌋ to ⌈(i+1)·n/g⌉."""

    def cells(n):
        k = min(g, n)
        return [slice(i * n // k, -(-(i + 1) * n // k)) for i in range(k)]

    height, width = maps.shape[2:]
    means = [maps[:, :, a, b].double().mean((2, 3)) for a in cells(height) for b in cells(width)]
    return torch.stack(means, 2).flatten(1).float()


def test_pooled_features_equal_pooling_of_the_flattened_ones(tmp_path):
    model, grids = network(), [1, 2, 4, 9]
    layers, pools = ["0", "2", "3", "4", "7"], [None, "mean", *grids]
    options = {"batch_size": 7, "device": "cpu"}
    flat = extract_features(model, pictures(), layers, **options)
    for cache in (None, tmp_path, tmp_path):
        found = extract_features(model, pictures(), layers, pool=pools, cache=cache, **options)
        assert list(found) == [(layer, pool) for layer in layers for pool in pools]
        for layer, side in {"0": (6, 5), "2": (6, 5), "3": (6, 5), "4": (1, 1)}.items():
            maps = flat[layer].reshape(23, 4, *side)
            assert found[layer, None].equal(flat[layer])
            assert torch.allclose(found[layer, "mean"], maps.mean((2, 3)), atol=1e-6)
            for g in grids:
                assert torch.allclose(found[layer, g], grid_means(maps, g), atol=1e-6)
        assert all(found["7", pool].equal(flat["7"]) for pool in pools)  # nothing to pool


def test_tokens_have_a_mean_but_no_grid():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(30, 5))  # (B, 3, 5): three tokens
    images = HALF(pictures())
    found = extract_features(model, images, ["1"], device="cpu", pool="mean")
    assert torch.allclose(found["1"], model(images).mean(1), atol=1e-6)
    with pytest.raises(ValueError, match=r"layer '1': pool=2 needs outputs \(B, C, H, W\), got"):
        extract_features(model, images, ["1"], device="cpu", pool=2)


@pytest.mark.parametrize(
    ("name", "layer", "channels_last"),
    [
        ("swin_t", "features.1.0", True),
        ("convnext_tiny", "features.1.0.block.5", True),
        ("convnext_tiny", "features.1.0", False),
    ],
)
def test_channels_may_be_last_for_square_images(name, layer, channels_last):
    model, inputs = getattr(tvm, name)(weights=None), torch.rand(2, 3, 32, 32)
    found = extract_features(model, inputs, [layer], device="cpu", pool=[None, "mean", 2])
    flat = found[layer, None]
    maps = flat.reshape(2, 8, 8, 96).permute(0, 3, 1, 2) if channels_last else flat
    maps = maps.reshape(2, 96, 8, 8)
    assert torch.allclose(found[layer, "mean"], maps.mean((2, 3)), atol=1e-6)
    assert torch.allclose(found[layer, 2], grid_means(maps, 2), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 6, 8), (6, 6, 6)])
def test_memory_tells_where_the_channels_are_if_the_shape_does_not(shape):
    channels, height, width = shape
    images = torch.rand(2, 3, height, width)
    convolution = nn.Conv2d(3, channels, 3, padding=1)
    found = extract_features(convolution, images, [""], device="cpu", pool="mean")
    assert torch.allclose(found[""], convolution(images).mean((2, 3)), atol=1e-6)
    last = nn.Sequential(convolution, Permute([0, 2, 3, 1]), nn.Linear(channels, width))
    if height == width:  # (B, 6, 6, 6), as in Swin
        found = extract_features(last, images, ["2"], device="cpu", pool="mean")
        assert torch.allclose(found["2"], last(images).mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("pool", ["max", 0, -1, 2.0, True, [], ["mean", "max"]])
def test_a_wrong_pool_is_an_error(pool):
    with pytest.raises(ValueError, match="pool "):
        extract_features(network(), pictures(), device="cpu", pool=pool)


class Join(nn.Module):
    def forward(self, parts, more):
        return parts[0]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.join = Join()

    def forward(self, x):
        return self.join([x.flatten(1)] * 5, {"more": x})


def test_a_dry_run_counts_tensors_in_lists_and_dictionaries():
    images, device = torch.rand(2, 3, 2, 2), torch.device("cpu")
    once = Pass(Branches(), images, torch.Tensor.float, 256, device)
    counts, held = once.needs([("join", None)])
    assert counts == {("join", None): 12}
    assert held == 5 * 12 + 12 + 12


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["3.con"], r"no layer '3\.con'; did you mean '3\.conv"),
        (["nonsense"], r"no layer 'nonsense'$"),
        (["3.unused"], r"'3\.unused' is not used"),
        (["3.total"], r"'3\.total' must return a tensor .* got \(\)"),
        ([], "layers must be a list"),
        ("4", "layers must be a list"),
    ],
)
def test_wrong_layers_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        extract_features(network(), pictures(), layers, device="cpu")


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (pictures().long(), {}, TypeError, r"uint8 or float, got torch\.int64"),
        (pictures()[:0], {}, ValueError, "images is empty"),
        (HALF(pictures()), {"transform": HALF}, ValueError, "float images are passed as they are"),
        (pictures(), {}, ValueError, "uint8 images need a transform"),
        (HALF(pictures()), {"layers": None}, ValueError, "layers is needed"),
    ],
)
def test_wrong_images_are_one_clear_error(images, options, error, message):
    with pytest.raises(error, match=message):
        extract_features(nn.Sequential(nn.ReLU()), images, **{"layers": ["0"]} | options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error(tmp_path, bad):
    images = HALF(pictures())
    images[17, 0, 0, 0] = bad
    for cache in (None, tmp_path):
        with pytest.raises(RuntimeError, match=r"layer '1' are not finite in images 14 to 20"):
            extract_features(network(), images, ["1"], batch_size=7, device="cpu", cache=cache)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
