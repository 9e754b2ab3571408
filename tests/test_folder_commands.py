"""`siutils rank` and `siutils layers` as a newcomer runs them: real processes, files and pages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.models as tvm
from browser import CHROMIUM, requests_of_page
from digit_folders import write_digits

from siutils import SeparationIndex, extract_features, layer_curve, ranking
from siutils.commands.command_line import main
from siutils.data.folders import ImageFiles, find_halves, find_images
from siutils.features.extraction import extract_from_files
from siutils.layers.curve import layer_scores
from siutils.layers.transitions import class_arrival, settled_at, shortest_prefix
from siutils.networks.published import load_model
from siutils.separation.comparison import holm

SMALL = "shufflenet_v2_x0_5"
SIUTILS = Path(sys.executable).parent / "siutils"
PUBLISHED = Path(tvm.ShuffleNet_V2_X0_5_Weights.DEFAULT.url).name
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of digits, a divided one, and weights where a download would put them."""
    place = tmp_path_factory.mktemp("folders")
    write_digits(place / "digits", 12)
    write_digits(place / "divided" / "train", 10)
    write_digits(place / "divided" / "test", 6, first=20)
    hub = place / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(tvm.shufflenet_v2_x0_5(weights=None).state_dict(), hub / PUBLISHED)
    torch.save(tvm.squeezenet1_1(weights=None, num_classes=4).state_dict(), place / "mine.pt")
    return place


@pytest.fixture
def home(place, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))


@pytest.fixture
def model(home):
    return load_model(SMALL, size=64)


def siutils(place, *arguments):
    """Run the command with nothing but the files of `place`, offline."""
    offline = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "OMP_NUM_THREADS": "1"}
    places = {"TORCH_HOME": str(place / "torch"), "SIUTILS_CACHE": str(place / "cache")}
    env = os.environ | offline | places
    return subprocess.run([SIUTILS, *arguments], capture_output=True, text=True, cwd=place, env=env)


def pages_of(place, *arguments):
    """The folder of a run that succeeds."""
    done = siutils(place, *arguments, "--size", "64", "--out", arguments[0], "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{place / arguments[0] / 'index.html'}\n"
    return place / arguments[0]


def error_of(place, command, *arguments):
    """The one line that says what went wrong; what else is on stderr is progress."""
    done = siutils(place, command, "--data", "digits", *arguments, "--out", "failed")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *progress, line = done.stderr.splitlines()
    allowed = (f"{command}  ", "[IPKernelApp]")  # a slow kernel logs that it is told to stop
    assert all(shown.startswith(allowed) for shown in progress), done.stderr
    assert line.startswith(f"siutils {command}: error: ")
    return line


# rank


@pytest.fixture(scope="module")
def ranked(place):
    models = f"{SMALL},{SMALL}=random,squeezenet1_1"
    given = ["--models", models, "--weights", "squeezenet1_1=mine.pt"]
    return pages_of(place, "rank", "--data", "digits", *given)


LABELS = (SMALL, f"{SMALL} (random)", "squeezenet1_1 (mine)")


def test_rank_has_every_score_of_the_library(place, ranked, home):
    scores = pd.read_csv(ranked / "tables" / "scores.csv", index_col="network")
    assert set(scores.index) == {"raw pixels", *LABELS}
    sources = {LABELS[0]: "DEFAULT", LABELS[1]: "random", LABELS[2]: place / "mine.pt"}
    indices = {}
    files = find_images(place / "digits")
    for label, weights in sources.items():
        model = load_model(label.split()[0], weights, size=64, seed=42)
        data = files.load(64)
        found = extract_features(model, data.images, ["penultimate", ""], pool="mean", device="cpu")
        indices[label] = SeparationIndex(found["penultimate"], data.labels, normalize=True)
        report = indices[label].report(2, interval=True)
        report = report[(report["order"] != 1) | (report["index"] == "si")].set_index("index")
        row = scores.loc[label]
        for name, value in report["value"].items():
            assert row[name] == pytest.approx(value), (label, name)
        for name in ("low", "high", "chance"):
            assert row[name] == pytest.approx(report.loc["si", name])
        known = None if weights == "random" else found[""].softmax(1)
        table = ranking.score_table(found["penultimate"], data.labels, known)
        for name, value, _ in table.itertuples(index=False):
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (label, name)
        assert (row["leep"] < 0) == (known is not None)
    pairs = pd.read_csv(ranked / "tables" / "pairs.csv")
    assert len(pairs) == 6
    assert pairs["p_holm"].tolist() == pytest.approx(holm(pairs["p_value"].tolist()).tolist())
    pair = pairs[pairs[["first", "second"]].isin(LABELS[:2]).all(axis=1)].iloc[0]
    expected = indices[pair["first"]].compare(indices[pair["second"]])
    assert (pair["wins"], pair["losses"]) == (expected.wins, expected.losses)
    assert pair["p_value"] == pytest.approx(expected.p_value)
    classes = pd.read_csv(ranked / "tables" / "classes.csv", index_col="class")
    expected = indices[LABELS[0]].si(per="class").tolist()
    assert classes.loc[list(files.classes), LABELS[0]].tolist() == pytest.approx(expected)


def test_features_of_files_are_those_of_all_images_without_holding_them(place, model):
    files = find_images(place / "digits")
    known = extract_features(model, files.load(64).images, [""], batch_size=4, device="cpu")
    with patch.object(ImageFiles, "load", autospec=True, side_effect=ImageFiles.load) as load:
        found = extract_from_files(model, files, [""], chunk=16, batch_size=4, device="cpu")
    assert found[""].equal(known[""])
    assert [len(call.args[0]) for call in load.mock_calls] == [16, 16, 4]


def test_rank_ranks_no_rounding(ranked):
    files = (ranked / "tables" / f"{name}.csv" for name in ("scores", "ranks"))
    scores, ranks = (pd.read_csv(file, index_col="network") for file in files)
    assert scores["h_score"].tolist() == pytest.approx([2] * 4)  # D ≥ N: C − 1 for all
    assert ranks["h_score"].tolist() == [1] * 4
    assert ranks.loc["raw pixels", "leep"] != ranks.loc["raw pixels", "leep"]
    assert sorted(ranks["logme"]) == [1, 2, 3, 4]


def test_rank_leaves_a_run_record(ranked):
    run = json.loads((ranked / "run.json").read_text())
    assert run["parameters"]["size"] == 64
    assert run["notebooks"]["rank"]["facts"]["images"] == 36
    networks = pd.read_csv(ranked / "tables" / "networks.csv", index_col="network")
    assert networks["source_classes"].tolist() == [1000, 0, 4]
    published, blank, own = networks["weights"]
    assert "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1, sha256" in published
    assert (blank, own[:20]) == ("random initialization, seed 42", "file mine.pt sha256 ")


# layers


@pytest.fixture(scope="module")
def layered(place):
    return pages_of(place, "layers", "--data", "divided", "--model", SMALL, "--untrained")


@pytest.fixture(scope="module")
def halves(place):
    return [half.load(64) for half in find_halves(place / "divided")]


def test_layers_has_the_curve_of_the_library(layered, model, halves):
    train, test = halves
    assert len(train) == len(test) == 18
    options = {"pool": [None, "mean"], "interval": True, "device": "cpu"}
    both = {"images": train.images, "labels": train.labels, "test": (test.images, test.labels)}
    curve = layer_curve(model, **both, **options)
    curve = curve[(curve["order"] == 2) | curve["index"].isin(["si", "center_si"])]
    written = pd.read_csv(layered / "tables" / "indices.csv")
    pd.testing.assert_frame_equal(written, curve.reset_index(drop=True), check_dtype=False)
    table = pd.read_csv(layered / "tables" / "layers.csv")
    assert table["layer"].tolist() == list(dict.fromkeys(curve["layer"]))
    at = curve.query("index == 'si' and split == 'cross' and pool == 'mean'")
    assert table["cross, mean"].tolist() == pytest.approx(at["value"].tolist())
    assert table["features, mean"].tolist() == at["n_features"].tolist()
    layer = table["layer"].iloc[2]
    features = extract_features(model, test.images, [layer], pool="mean", device="cpu")[layer]
    by_class = SeparationIndex(features, test.labels, normalize=True).si(per="class")
    classes = pd.read_csv(layered / "tables" / "classes.csv")
    assert classes[layer].tolist() == pytest.approx(by_class.tolist())


def test_layers_holds_the_network_against_itself_untrained(layered, halves):
    blank = load_model(SMALL, "random", size=64, seed=42)
    test = halves[1]
    curve = layer_curve(blank, test.images, test.labels, pool="mean", device="cpu")
    written = pd.read_csv(layered / "tables" / "untrained.csv").set_index("layer")
    expected = curve.query("index == 'si'").set_index("layer")["value"]
    assert written["random weights"].to_dict() == pytest.approx(expected.to_dict())
    shown = pd.read_csv(layered / "tables" / "layers.csv").set_index("layer")["test, mean"]
    assert written["these weights"].to_dict() == pytest.approx(shown.to_dict())
    assert (layered / "figures" / "untrained.svg").exists()


def test_layers_says_which_images_and_classes_come_late(place, layered, model):
    half = find_halves(place / "divided")[1]
    test = half.load(64)
    scores = layer_scores(model, test.images, test.labels, pool="mean", device="cpu")
    separated = torch.stack([s.separated for s in scores.of("train", "mean").values()])
    each = pd.read_csv(layered / "tables" / "samples.csv")
    assert each["image"].tolist() == [p.relative_to(half.root).as_posix() for p in half.paths]
    assert each["class"].tolist() == [test.classes[label] for label in test.labels]
    shown = each[list(scores.of("train", "mean"))].to_numpy().T
    np.testing.assert_array_equal(shown, separated)
    settled = settled_at(separated)
    assert each["settled"].tolist() == settled.tolist()
    arrival = pd.read_csv(layered / "tables" / "arrival.csv")
    expected = class_arrival(settled, test.labels, len(separated))
    assert arrival["label"].tolist() == expected["label"].tolist()


def test_layers_says_what_the_rest_of_a_shortest_prefix_may_add(layered, model, halves):
    train, test = halves
    options = {"pool": "mean", "device": "cpu", "interval": True}
    options["test"] = test.images, test.labels
    scores = layer_scores(model, train.images, train.labels, **options)
    chain = scores.of("test", "mean")
    own = scores.table.query("index == 'si' and split == 'train'").set_index("layer")["value"]
    prefix = pd.read_csv(layered / "tables" / "prefix.csv")
    page = (layered / "layers.html").read_text()
    for row, reference in zip(prefix.itertuples(), (list(chain)[-1], own.idxmax()), strict=True):
        end, tests = shortest_prefix(chain, reference)
        high = 0.0 if end == reference else tests.set_index("layer").loc[end, "high"]
        assert (row.reference.split()[0], row.prefix_ends_at) == (reference, end)
        assert row.rest_adds_at_most == pytest.approx(max(0.0, high))
    if prefix["prefix_ends_at"][0] != list(chain)[-1]:
        assert f"{prefix['rest_adds_at_most'][0]:.3f} at most, with 95 % confidence" in page
    flow = pd.read_csv(layered / "tables" / "flows.csv")
    si = [float(s.separated.double().mean()) for s in chain.values()]
    assert (flow["for good"] + flow["for now"]).tolist() == pytest.approx(si)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium installed")
def test_pages_are_whole_without_network(ranked, layered, tmp_path):
    for folder, name in ((ranked, "rank"), (layered, "layers")):
        for page in (folder / "index.html", folder / f"{name}.html"):
            dom, asked = requests_of_page(page, tmp_path)
            assert asked == []
            assert "</footer>" in dom
        promised = json.loads((folder / "run.json").read_text())["notebooks"][name]["figures"]
        assert dom.count('<figure class="siutils-figure">') == len(promised) > 1


# what is refused


RANK = ["--models", "squeezenet1_1=random"]
LAYERS = ["--model", "squeezenet1_1", "--weights", "random"]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("rank", ["--data", "gone", *RANK], "no such folder of images: "),
        ("layers", ["--data", "gone", *LAYERS], "no such folder of images: "),
        ("rank", ["--data", "one class", *RANK], "one class only, 'zero'"),
        ("layers", ["--data", "empty class", *LAYERS], "nothing is an empty class"),
        ("rank", ["--data", "few", *RANK], "class 'one' has too few images, 3; at least 5"),
        ("layers", ["--data", "few", *LAYERS], "'one' has too few images in each half, 1; at"),
        ("rank", ["--data", "digits", "--models", "resnet81"], "'resnet81'; did you mean 'resn"),
        ("rank", ["--data", "digits", "--models", "vgg11=x.pt"], "weights: no file 'x.pt' for vgg"),
        ("rank", ["--data", "digits", *RANK, "--weights", "vgg11=x"], "'vgg11' is not among the"),
        ("rank", ["--data", "digits", *RANK, "--per-class", "2"], "per-class must be at least 5"),
        ("rank", ["--data", "digits", *RANK, "--size", "-1"], "size must not be negative, got -1"),
        ("rank", ["--data", "digits", *RANK, "--device", "abacus"], "device must be 'auto', 'cpu'"),
        ("layers", ["--data", "digits", *LAYERS, "--memory", "0"], "memory must be a positive"),
        ("layers", ["--data", "digits", *LAYERS, "--pool", "max"], "pool must be None, 'mean' or"),
        ("layers", ["--data", "digits", *LAYERS[:2], "--weights", "no.pt"], "no file 'no.pt' for"),
        ("layers", ["--data", "digits", *LAYERS, "--untrained"], "the weights are random already"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(place, capsys, monkeypatch, command, arguments, message):
    monkeypatch.chdir(place)
    if not (place / "few").exists():
        write_digits(place / "one class", 5, classes=1)
        write_digits(place / "empty class", 5)
        (place / "empty class" / "nothing").mkdir()
        write_digits(place / "few", 3)
    assert main([command, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"siutils {command}: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


MISSING = "weights: squeezenet1_1-b8a52dc0.pth is not in .*torch/hub/checkpoints.*https"
LAYER = r"the model has no layer 'stage5'; did you mean 'stage.*\(details: layers"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("rank", ["--models", f"{SMALL},squeezenet1_1"], MISSING),
        ("rank", ["--models", f"{SMALL}=mine.pt"], f"mine.pt does not fit {SMALL}"),
        ("layers", ["--model", SMALL, "--layers", "stage2,stage5"], LAYER),
    ],
)
def test_what_a_run_cannot_use_is_one_line(place, command, arguments, message):
    line = error_of(place, command, *arguments)
    assert re.search(message, line)
    assert line.count("stage5") <= 1


def test_layers_says_when_the_disk_is_too_small(place, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (place / "cache").mkdir(exist_ok=True)
        small = place / "small"
        small.mkdir()
        for name in ("digits", "torch"):
            (small / name).symlink_to(place / name)
        (small / "cache").symlink_to(tmp_path)
        given = ["--model", SMALL, "--size", "64", "--memory", "0.0001"]
        line = error_of(small, "layers", *given)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    for part in ("bytes in", "are free there", "the same command goes on from there"):
        assert part in line
