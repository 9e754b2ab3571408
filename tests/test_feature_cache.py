"""Features in files: the same as in memory, made once for what determines them, never half."""

import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
from full_disk import largest_file
from odd_network import HALF, LAYERS, by_hooks, close, network, pictures

from siutils.data.images import Transform
from siutils.features.extraction import extract_features

pytestmark = pytest.mark.usefixtures("one_thread")


def test_memory_mapped_features_equal_those_in_memory(tmp_path):
    model = network()
    expected = extract_features(model, pictures(), LAYERS, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = extract_features(model, pictures(), LAYERS, device="cpu", cache=tmp_path)
    assert list(mapped) == LAYERS
    assert all(torch.equal(mapped[name], expected[name]) for name in LAYERS)
    mapped["4"].zero_()  # changes this tensor, not the file
    again = extract_features(model, pictures(), ["4"], device="cpu", cache=tmp_path)
    assert torch.equal(again["4"], expected["4"])
    assert not list(tmp_path.rglob("*.tmp"))


def test_cached_layers_are_not_computed_again(tmp_path):
    model, passes = network(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    for layers, expected in ((["4"], 1), (["4"], 1), (["4", "2"], 2), (["2", "4"], 2)):
        extract_features(model, pictures(), layers, device="cpu", cache=tmp_path)
        assert len(passes) == expected


def test_whatever_changes_the_features_is_computed_again(tmp_path):
    model, images, options = network(), pictures(), {"device": "cpu", "cache": tmp_path}

    def folders(**more):
        extract_features(model, images, **options, **more)
        return len(list((tmp_path / "features").iterdir()))

    assert folders() == 1
    with torch.no_grad():
        model[1].running_mean[0] += 1e-3
    assert folders() == 2
    changed = extract_features(model, images, **options)
    assert close(changed, by_hooks(model, HALF(images), ["4"]))
    images[0, 0, 0, 0] ^= 1
    assert folders() == 3
    assert folders(transform=Transform((0.1,) * 3, (0.2,) * 3)) == 4
    model[0].stride = (2, 2)  # same weights, another network
    assert folders() == 5
    with pytest.raises(ValueError, match=r"transform whose repr\(\) says what it does"):
        folders(transform=lambda x: x / 255)


SCALED = """
from torch import nn, ones
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", ones(()), persistent=False)
    def forward(self, x):
        return {factor} * self.scale * x.flatten(1)
"""


def test_the_code_of_a_class_and_buffers_that_are_not_stored_belong_to_the_key(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    images, found = torch.ones(2, 3), []
    for factor, scale in ((1, 1), (2, 1), (2, 3)):
        (tmp_path / f"scaled{factor}.py").write_text(SCALED.format(factor=factor))
        model = importlib.import_module(f"scaled{factor}").Scaled()
        type(model).__module__ = "scaled"  # as if the file had been edited
        model.scale.fill_(scale)
        monkeypatch.setitem(sys.modules, "scaled", sys.modules[f"scaled{factor}"])
        found += extract_features(model, images, [""], device="cpu", cache=tmp_path)[""][0, :1]
    assert found == [1, 2, 6]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other shape", "pickle"])
def test_a_damaged_cache_file_is_one_clear_error(tmp_path, damage):
    extract_features(network(), pictures(), device="cpu", cache=tmp_path)
    [path] = files(tmp_path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        other = np.zeros((3, 4), np.float32) if damage == "other shape" else np.array([{}])
        np.save(path, other, allow_pickle=True)
    with pytest.raises(RuntimeError, match=r"cannot read the features .*4\.npy.*Delete this file"):
        extract_features(network(), pictures(), device="cpu", cache=tmp_path)


def test_a_full_disk_is_one_clear_error_and_leaves_no_file(tmp_path):
    model, images = network().train(), pictures(2000)
    failure = pytest.raises(OSError, match=r"cannot write .*\.npy: .*Free some space")
    with largest_file(100_000), failure as error:
        extract_features(model, images, ["2", "3"], device="cpu", cache=tmp_path)
    assert str(error.value).count("cannot write") == 1
    assert files(tmp_path) == []
    assert model.training


def test_a_model_that_fails_half_way_leaves_no_file(tmp_path):
    def fail_at_the_end(module, inputs):
        if len(inputs[0]) < 5:
            raise RuntimeError("half way")

    model = network()
    model.register_forward_pre_hook(fail_at_the_end)
    with pytest.raises(RuntimeError, match="half way"):
        extract_features(model, pictures(), ["2"], batch_size=5, device="cpu", cache=tmp_path)
    assert files(tmp_path) == []
