"""The layer curve is the SeparationIndex of each layer's features, nothing else."""

import pytest
import torch
from torch import nn

from siutils import SeparationIndex, layer_curve


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_curve_equals_the_index_of_each_layer(network):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(60, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (60,), generator=generator)
    table = layer_curve(network, images, labels, ["0", "2"], order=3, device="cpu")
    assert table.groupby("layer", sort=False)["depth"].first().to_dict() == {"0": 0, "2": 1}
    assert table.groupby("layer")["n_features"].first().to_dict() == {"0": 144, "2": 4}
    with torch.no_grad():
        first = network[0](images).flatten(1)
    expected = SeparationIndex(first, labels, normalize=True).report(3)
    columns = list(expected.columns)
    part = table[table["layer"] == "0"].reset_index(drop=True)
    assert part[columns].equals(expected)


def test_a_layer_that_does_not_exist_is_an_error(network):
    with pytest.raises(ValueError, match="9"):
        layer_curve(network, torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 1, 1]), ["0", "9"])


def test_layers_may_be_stages_blocks_or_all(network):
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    for which, expected in {"stages": "0123", "all": "0123", "blocks": "1"}.items():
        table = layer_curve(network, images, labels, which, device="cpu")
        assert "".join(table["layer"].unique()) == expected
    with pytest.raises(ValueError, match="did you mean 'blocks'"):
        layer_curve(network, images, labels, "block")


def test_pools_stand_side_by_side(network):
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    table = layer_curve(network, images, labels, ["1", "3"], device="cpu", pool=[None, "mean", 2])
    si = table[table["index"] == "si"]
    assert si["pool"].tolist() == ["flattened", "mean", "2×2"] * 2
    assert si["n_features"].tolist() == [144, 4, 16, 4, 4, 4]
    assert si["depth"].tolist() == [0, 0, 0, 1, 1, 1]
    single = layer_curve(network, images, labels, ["1", "3"], device="cpu", pool="mean")
    assert single.equals(table[table["pool"] == "mean"].reset_index(drop=True))
