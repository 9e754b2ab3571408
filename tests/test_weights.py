"""Checkpoints in the forms that people have; the ids make a part of docs/inputs.md."""

import argparse

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet

from siutils import create_model
from siutils.networks import load_model, parse_models

NET = "resnet18"


@pytest.fixture(scope="module")
def model():
    return create_model(NET, 3, seed=0)


def named(state, beginning):
    return {beginning + key: value for key, value in state.items()}


def other(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


def headless(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


WEIGHTS = {  # what is saved, and what the source says behind the checksum
    "weights under model or state_dict -> the weights": (lambda s: {"model": s, "epoch": 3}, ""),
    "weights under another key, nested -> the weights": (
        lambda s: {"out": {"net": s}}, " under 'out.net'",
    ),
    "weights with NumPy scalars and a Namespace beside them -> the weights": (
        lambda s: {"model": s, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}, "",
    ),
    "weights of DataParallel, module. -> the weights": (
        lambda s: named(s, "module."), ", names without 'module.'",
    ),
    "weights of torch.compile, _orig_mod. -> the weights": (
        lambda s: named(s, "_orig_mod.module."), ", names without '_orig_mod.module.'",
    ),
    "weights of Lightning, model. or backbone. -> the weights": (
        lambda s: {"state_dict": named(s, "backbone.") | {"loss.weight": torch.ones(2)}},
        ", names without 'backbone.'",
    ),
    "weights of MoCo, encoder_q and encoder_k -> encoder_q": (
        lambda s: {
            "state_dict": named(other(s), "module.encoder_k.")
            | named(s, "module.encoder_q.") | {"module.queue": torch.ones(2, 2)},
        },
        ", names without 'module.encoder_q.'",
    ),
    "weights of DINO, student and teacher -> the teacher": (
        lambda s: {
            "student": named(other(headless(s)), "module.backbone."),
            "teacher": named(headless(s), "backbone.") | {"head.mlp.weight": torch.ones(2)},
        },
        " under 'teacher', names without 'backbone.'; last layer new, for 3 classes",
    ),
    "weights with averaged weights, model_ema -> these": (
        lambda s: {"model": other(s), "model_ema": s}, " under 'model_ema'",
    ),
    "weights without the last layer -> a new one": (headless, "; last layer new, for 3 classes"),
    "weights with a last layer for other classes -> a new one": (
        lambda s: s | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)},
        "; last layer new, for 3 classes",
    ),
    "weights with more beside the network -> left out": (
        lambda s: s | {"projector.0.weight": torch.ones(2, 2)}, "; left out projector",
    ),
    "weights of an old PyTorch, without num_batches_tracked -> the weights": (
        lambda s: {key: value for key, value in s.items() if "num_batches" not in key}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "note"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights(tmp_path, model, content, note):
    state = dict(model.state_dict())
    torch.save(content(state), tmp_path / "a.pt")
    loaded = create_model(NET, 3, weights=tmp_path / "a.pt", seed=1)
    assert loaded.weights_source.partition("sha256 ")[2][64:] == note
    for key, value in loaded.state_dict().items():
        if not key.startswith("fc.") and "num_batches" not in key:
            assert value.equal(state[key]), key
    assert loaded.fc.weight.equal(state["fc.weight"]) == ("last layer" not in note)


def test_a_loaded_network_without_a_last_layer_is_no_classifier(tmp_path):
    whole = load_model("squeezenet1_1", "random", size=32)
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("classifier.")}
    torch.save({"state_dict": named(state, "module.")}, tmp_path / "a.pt")
    loaded = load_model("squeezenet1_1", tmp_path / "a.pt", size=32)
    assert loaded.source_classes == 0
    assert loaded.weights_source.endswith(", names without 'module.'; last layer random")
    assert loaded.features[0].weight.equal(whole.features[0].weight)


REFUSED = {
    "weights of a deeper network -> refused, although all layers are there": (
        lambda s: s | {"layer1.2.conv1.weight": torch.ones(1)},
        "which has no layer1.2.conv1.weight",
    ),
    "weights with a layer of another shape -> refused": (
        lambda s: s | {"conv1.weight": torch.ones(64, 3, 7, 7)},
        r"conv1.weight is \(64, 3, 7, 7\), but must be \(64, 3, 3, 3\)",
    ),
    "weights without a layer -> refused": (
        lambda s: {k: v for k, v in s.items() if k != "bn1.weight"}, "bn1.weight is not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_do_not_fit(tmp_path, model, content, message):
    torch.save(content(dict(model.state_dict())), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt does not fit {NET}.*{message}"):
        create_model(NET, 3, weights=tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "page of a web site, not the weights: download again"),
    ],
    ids=["weights that are a pointer of Git LFS -> refused, with what to do",
         "weights that are a page of a web site -> refused, with what to do"],
)  # fmt: skip
def test_what_is_no_file_of_weights(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    for load in (lambda f: create_model(NET, 3, weights=f), lambda f: load_model(NET, f)):
        with pytest.raises(ValueError, match=rf"a\.pth is a .*{message}"):
            load(tmp_path / "a.pth")


def test_weights_of_efficientnet_pytorch_give_its_network(tmp_path):
    source = EfficientNet.from_name("efficientnet-b0", num_classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "b0.pth")
    images = torch.rand(2, 3, 64, 64)
    for loaded in (
        create_model("efficientnet_b0", 3, weights=tmp_path / "b0.pth"),
        load_model("efficientnet_b0", tmp_path / "b0.pth", size=64),
    ):
        loaded.eval()
        assert isinstance(loaded, EfficientNet)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), source(images))


def test_labels_of_files_of_the_same_name_differ():
    models = ["resnet18=a/best.pt", "resnet18=b/best.pt", "vgg11"]
    assert list(parse_models(models)) == ["resnet18 (a/best)", "resnet18 (b/best)", "vgg11"]
    with pytest.raises(ValueError, match=r"resnet18 \(best\) is there twice"):
        parse_models(["resnet18=best.pt", "resnet18=best.pt"])
