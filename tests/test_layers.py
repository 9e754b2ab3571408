"""The layer curve is the SeparationIndex of each layer's features, nothing else."""

import math
import os
import tempfile
from itertools import product
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from full_disk import largest_file
from torch import nn

from siutils import SeparationIndex, extract_features, layer_curve
from siutils.data.images import Transform
from siutils.layers.curve import layer_scores
from siutils.neighbors.sketch import Sketch
from siutils.separation import INDICES, compare

LAYERS = ["0", "1", "2", "3"]


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def data(n=60):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 3, (n,), generator=generator)


def two_sets():
    images, labels = data(90)
    return (images[:60], labels[:60]), (images[60:] * 2, labels[60:])


def naive_splits(network, layer, normalize=True):
    """The separation indices of one layer of two sets."""
    (x, x_labels), (z, z_labels) = two_sets()
    with torch.no_grad():
        x, z = (network[: int(layer) + 1](images).flatten(1) for images in (x, z))
    train = SeparationIndex(x, x_labels, normalize)
    test = SeparationIndex(z, z_labels, normalize)
    return {"train": train, "test": test, "cross": train.cross(z, z_labels)}


def test_curve_equals_the_index_of_each_layer(network):
    images, labels = data()
    table = layer_curve(network, images, labels, ["0", "2"], order=3, device="cpu")
    with torch.no_grad():
        first = network[0](images).flatten(1)
    expected = SeparationIndex(first, labels, normalize=True).report(3)
    part = table[table["layer"] == "0"].reset_index(drop=True)
    assert part[list(expected.columns)].equals(expected)


def test_layers_may_be_stages_blocks_or_all(network):
    for which, expected in {"stages": "0123", "all": "0123", "blocks": "1"}.items():
        table = layer_curve(network, *data(), which, device="cpu")
        assert "".join(table["layer"].unique()) == expected


def test_pools_stand_side_by_side(network):
    table = layer_curve(network, *data(), ["1", "3"], device="cpu", pool=[None, "mean", 2])
    si = table[table["index"] == "si"]
    assert si["pool"].tolist() == ["flattened", "mean", "2×2"] * 2
    assert si["n_features"].tolist() == [144, 4, 16, 4, 4, 4]
    assert si["depth"].tolist() == [0, 0, 0, 1, 1, 1]
    single = layer_curve(network, *data(), ["1", "3"], device="cpu", pool="mean")
    assert single.equals(table[table["pool"] == "mean"].reset_index(drop=True))


# Bounded memory


def passes(network):
    calls = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_a_search_keeps_no_more_than_memory_allows(monkeypatch):
    kept, make = [], Sketch.__init__

    def made(self, *args):
        make(self, *args)
        kept.append(self.bytes)

    monkeypatch.setattr(Sketch, "__init__", made)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1000, 3, 128, 128), generator=generator, dtype=torch.uint8)
    model, labels = nn.Sequential(nn.Flatten()), torch.arange(1000) % 10
    options = {"transform": Transform((0.5,) * 3, (0.5,) * 3), "device": "cpu"}
    layer_curve(model, images, labels, ["0"], memory=2e8, **options)
    assert max(kept) <= 1.5e8  # the sketches of all would take 2e8


ONE = 60 * 144 * 4 * 3 / 0.75  # bytes for the features of layer 0, their copy and the search


@pytest.mark.parametrize("memory", [2 * ONE, 1.01 * ONE, 0.5 * ONE, 1])
@pytest.mark.parametrize(("normalize", "rate"), [(True, 1e-9), (True, 1e30), (False, 1e-9)])
def test_little_memory_gives_the_same_table(
    network, tmp_path, memory, normalize, rate, monkeypatch
):
    monkeypatch.setattr("siutils.layers.plan.DISK_RATE", rate)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    options = {"device": "cpu", "normalize": normalize, "pool": [None, "mean"]}
    expected = layer_curve(network, *data(), LAYERS, **options)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        table = layer_curve(network, *data(), LAYERS, memory=memory, cache=cache, **options)
        pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert not list((tmp_path / "temporary").iterdir())
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.npy")) <= memory
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("scaled-*"))


def test_a_batch_is_as_small_as_its_layers_and_the_forward_pass_need(network, monkeypatch):
    held = 3 * 8 * 8 + 144  # input and output of the convolution
    options = {"device": "cpu", "memory": 4 * 7 * 4 * (144 + 144 + held)}  # a quarter: seven images
    expected = layer_curve(network, *data(), ["0", "1"], device="cpu")
    monkeypatch.setattr("siutils.layers.curve.MIN_ROOM", 0)
    monkeypatch.setattr("siutils.layers.plan.DISK_RATE", 1e30)  # both at once
    calls = passes(network)
    assert layer_curve(network, *data(), ["0", "1"], **options).equals(expected)
    assert len(calls) == 1 + -(-60 // 7)  # the dry run


def test_finished_layers_are_kept_and_not_scored_again(network, tmp_path, monkeypatch):
    monkeypatch.setattr("siutils.layers.plan.DISK_RATE", 1e-9)  # so that files are never faster
    calls, most = passes(network), [99]

    def fail(*_):
        if len(calls) > most[0]:
            raise RuntimeError("half way")

    network[3].register_forward_hook(fail)  # a hook is part of what determines features
    expected = layer_curve(network, *data(), LAYERS, device="cpu")
    calls.clear()
    most[0] = 3  # the dry run, the estimate of time, the first group
    options = {"device": "cpu", "cache": tmp_path, "memory": 1.01 * ONE}
    with pytest.raises(RuntimeError, match="half way") as error:
        layer_curve(network, *data(), LAYERS, **options)
    assert "1 of 4 layers are finished and kept in" in "".join(error.value.__notes__)
    calls.clear()
    most[0] = 99
    assert layer_curve(network, *data(), LAYERS, **options).equals(expected)
    assert len(calls) == 4  # as before, without the first group
    calls.clear()
    assert layer_curve(network, *data(), LAYERS, **options).equals(expected)
    assert not calls
    images, labels = data()
    changed = layer_curve(network, images, labels.roll(1), LAYERS, **options)
    assert not changed["value"].equals(expected["value"])


def test_a_disk_that_fills_up_is_one_clear_error_and_finished_layers_are_kept(network, tmp_path):
    options = {"device": "cpu", "cache": tmp_path, "memory": 0.5 * ONE}
    failure = pytest.raises(OSError, match=r"cannot write .*\.npy: .*Free some space")
    with largest_file(20_000), failure as error:  # the features of "0" have 34,560 bytes
        layer_curve(network, *data(), LAYERS, **options)
    assert "2 of 4 layers are finished" in "".join(error.value.__notes__)
    table = layer_curve(network, *data(), LAYERS, **options)
    assert table.equals(layer_curve(network, *data(), LAYERS, device="cpu"))


def test_too_little_disk_is_known_before_the_work_starts(network):
    calls = passes(network)
    images, labels = torch.rand(1, 3, 8, 8).expand(10**11, -1, -1, -1), torch.zeros(1).long()
    with pytest.raises(OSError, match=r"need 172,800,000,000,000 bytes in .*, but [\d,]+ are free"):
        layer_curve(network, images, labels.expand(10**11), ["0"], device="cpu")
    assert len(calls) == 1  # the dry run


def test_what_a_killed_call_left_makes_room_before_the_disk_is_looked_at(
    network, tmp_path, monkeypatch
):
    layer_curve(network, *data(), LAYERS, device="cpu", cache=tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    leftover = folder / "0.npy.elsewhere.1.tmp"
    leftover.touch()
    os.utime(leftover, (0, 0))
    free = "siutils.layers.curve.free_bytes"
    monkeypatch.setattr(free, lambda _: 0 if leftover.exists() else 10**9)
    layer_curve(network, *data(), LAYERS, device="cpu", cache=tmp_path, order=1, memory=1)
    assert not leftover.exists()


def test_features_that_were_there_before_are_left_where_they_are(network, tmp_path):
    found = extract_features(network, data()[0], ["0"], device="cpu", cache=tmp_path)
    expected = layer_curve(network, *data(), LAYERS, device="cpu")
    table = layer_curve(network, *data(), LAYERS, device="cpu", cache=tmp_path, memory=0.5 * ONE)
    assert table.equals(expected)
    (file,) = tmp_path.rglob("0.npy")
    assert np.array_equal(np.load(file), found["0"])


@pytest.mark.parametrize("memory", [0.5 * ONE, 1e9])
def test_features_of_an_interrupted_call_serve_the_next_and_go_with_it(
    network, tmp_path, monkeypatch, memory
):
    options = {"device": "cpu", "cache": tmp_path, "memory": 0.5 * ONE}
    expected = layer_curve(network, *data(), ["0"], device="cpu")
    calls = passes(network)
    with monkeypatch.context() as patch:
        patch.setattr("siutils.layers.curve.score", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            layer_curve(network, *data(), ["0"], **options)
    assert len(list(tmp_path.rglob("0.npy"))) == 1
    calls.clear()
    options["memory"] = memory
    assert layer_curve(network, *data(), ["0"], **options).equals(expected)
    assert len(calls) == 1  # the dry run
    assert not [*tmp_path.rglob("*.npy"), *tmp_path.rglob("*.scratch")]


def test_damaged_scores_are_one_clear_error(network, tmp_path):
    _, records = layer_scores(network, *data(), ["3"], device="cpu", cache=tmp_path)
    assert list(records) == [("3", "flattened", "train")]
    (file,) = (tmp_path / "layers").rglob("*.pt")
    file.write_bytes(file.read_bytes()[:-99])
    with pytest.raises(RuntimeError, match=r"cannot read the scores .*3\.pt: .*Delete this file"):
        layer_curve(network, *data(), ["3"], device="cpu", cache=tmp_path)


IMAGES, LABELS = data()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": ["0", "9"]}, ValueError, "the model has no layer '9'"),
        ({"layers": "block"}, ValueError, "did you mean 'blocks'"),
        ({"memory": 0}, ValueError, "memory must be a positive number of bytes"),
        ({"memory": -1}, ValueError, "memory must be a positive number of bytes"),
        ({"memory": math.nan}, ValueError, "memory must be a positive number of bytes"),
        ({"labels": LABELS[1:]}, ValueError, "images and labels must have the same length"),
        ({"test": (IMAGES[1:], LABELS)}, ValueError, "test images and test labels must have the s"),
        ({"labels": LABELS + 0.5}, TypeError, "labels must be integers"),
    ],
)
def test_wrong_input_is_an_error_before_the_work_starts(network, change, error, message):
    calls = passes(network)
    given = {"images": IMAGES, "labels": LABELS, "layers": ["3"], "device": "cpu"}
    with pytest.raises(error, match=message):
        layer_curve(network, **(given | change))
    assert not calls


# Two sets, intervals


@pytest.mark.parametrize("memory", [4e9, 1.01 * ONE, 1])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_second_set_is_scored_by_itself_and_among_the_first(network, tmp_path, memory, normalize):
    first, second = two_sets()
    options = {"device": "cpu", "normalize": normalize, "interval": True, "order": 3}
    options |= {"memory": memory, "cache": tmp_path}
    for _ in range(2):  # scored, then read
        table = layer_curve(network, *first, ["0", "2"], test=second, **options)
        for layer in ("0", "2"):
            for split, index in naive_splits(network, layer, normalize).items():
                report = index.report(3, interval=True)
                part = table[(table["layer"] == layer) & (table["split"] == split)]
                part = part.reset_index(drop=True)[list(report.columns)]
                pd.testing.assert_frame_equal(part, report, check_dtype=False)
    assert table["split"].unique().tolist() == ["train", "test", "cross"]
    assert table.groupby("split")["n"].first().to_dict() == {"cross": 30, "test": 30, "train": 60}


# Each sample's values


@pytest.mark.parametrize("memory", [4e9, 1.01 * ONE, 1])
def test_samples_of_each_layer_serve_the_same_tests_as_separation_indices(
    network, tmp_path, memory
):
    first, second = two_sets()
    options = {"order": 3, "pool": [None, "mean"], "memory": memory, "interval": True}
    options |= {"device": "cpu", "test": second}
    expected = layer_curve(network, *first, ["0", "2"], **options)
    low, high = naive_splits(network, "0"), naive_splits(network, "2")
    for _ in range(2):  # scored, then read
        table, records = layer_scores(network, *first, ["0", "2"], cache=tmp_path, **options)
        assert table.equals(expected)
        assert len(records) == 2 * 2 * 3
        for split in ("train", "test"):
            found = compare(*(records[layer, "flattened", split] for layer in ("0", "2")))
            assert found[:-1] == low[split].compare(high[split])[:-1]
        assert records["0", "mean", "cross"].lists(1) is None


def test_every_index_of_every_class_and_sample_at_each_layer(network, tmp_path):
    first, second = two_sets()
    options = {"test": second, "order": 3, "device": "cpu", "cache": tmp_path}
    for _ in range(2):  # scored, then read
        scores = layer_scores(network, *first, ["0", "2"], **options)
        for split, index in naive_splits(network, "2").items():
            record = scores.of(split)["2"]
            assert torch.equal(record.labels, first[1] if split == "train" else second[1])
            assert torch.equal(record.separated, index.si(per="sample") == 1)
            for name, order in (("si", 1), ("center_si", 0), *product(INDICES[1:4], (1, 3))):
                which = () if name in ("si", "center_si") else (order,)
                by_sample = scores.values(name, order, "sample", split)
                assert list(by_sample) == ["0", "2"]
                known = getattr(index, name)
                np.testing.assert_array_equal(by_sample["2"], known(*which, per="sample"))
                by_class = scores.values(name, order, split=split)
                assert by_class.index.tolist() == index.classes.tolist()
                np.testing.assert_allclose(by_class["2"], known(*which, per="class"), rtol=1e-12)
    for wrong, message in {
        ("SI", 1): "index must be one of si",
        ("anti_si", 4): r"order must lie in 1 … 3 \(neighbors known\)",
        ("si", 1, "dataset"): "per must be class or sample; got 'dataset'",
        ("si", 1, "class", "val"): "no layer has split 'val', pool 'flattened'; there are",
    }.items():
        with pytest.raises(ValueError, match=message):
            scores.values(*wrong)
