"""Input sizes, the study's own input and variants of networks, on digits and real networks."""

import ast
import json
from collections import Counter
from dataclasses import replace
from inspect import getsource
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from siutils import SeparationIndex, create_model, extract_features, load_dataset
from siutils.core.splits import balanced_subset
from siutils.data.datasets import transform_for
from siutils.data.images import Transform
from siutils.separation.comparison import compare
from siutils.study import plan
from siutils.study.experiments import (
    AS_THE_STUDY,
    compare_variants,
    demonstration,
    input_sizes,
    over_seeds,
    run_curves,
    stage_layers,
    study_input,
    variant_steps,
)
from siutils.study.trainings import SHORTCUTS, STAGES, variant_trainings

pytestmark = pytest.mark.usefixtures("one_thread")
TEST = load_dataset("digits", "test")
FEW = TEST.subset(balanced_subset(TEST.labels, 10, seed=0))
STATES = ("untrained", "start", "trained")
TINY = replace(FEW, images=FEW.images[..., ::4, ::4])  # 8×8 pixels


def si_of(model, layer):
    model = model.eval()
    transform = transform_for("digits")
    features = extract_features(model, TINY.images, [layer], transform=transform, device="cpu")
    return SeparationIndex(features[layer], TINY.labels, normalize=True)


def test_input_sizes_score_the_resized_images_at_one_number_of_features():
    models = {"lite": create_model("efficientnet_lite0", None, "imagenet")}
    models["vgg"] = create_model("vgg16", 10, seed=0)
    models["vgg"].transform = Transform((0.5,) * 3, (0.5,) * 3)
    models["vgg"].avgpool = nn.AdaptiveAvgPool2d(1)  # as ImageNet's, for any size
    table = input_sizes(models, FEW, [32, 64], device="cpu").set_index(["network", "size", "index"])
    assert len(table) == 2 * 2 * 5
    for (name, model), size in product(models.items(), (32, 64)):
        rows = table.loc[name, size]
        assert rows["n_features"].eq(1280 if name == "lite" else 512).all()
        assert rows["weights"].eq(model.weights_source).all()
        transform = replace(model.transform, size=size)
        maps_of = model.eval().extract_features if name == "lite" else model.eval().features
        with torch.inference_mode():
            maps = maps_of(transform(FEW.images))
        index = SeparationIndex(maps.mean((2, 3)), FEW.labels, normalize=True)
        assert rows.loc["si", "value"] == index.si()
        assert rows.loc["anti_si", "value"] == index.anti_si(2)
        assert rows["low"].lt(rows["value"]).all()
    assert table.loc[("lite", 32, "si"), "value"] != table.loc[("lite", 64, "si"), "value"]


def test_the_study_fed_small_images_without_normalization():
    model = create_model("efficientnet_lite0", None, "imagenet")
    model.transform = replace(model.transform, size=48)
    found = study_input({"lite": model}, FEW, device="cpu")
    inputs = ["own input", AS_THE_STUDY, "32 pixels", "not normalized"]
    assert found.curves["input"].unique().tolist() == inputs
    pixels = FEW.images.float() / 255
    larger = (model.transform(FEW.images) + 127 / 128) / (255 / 128)  # back to 0…1
    tensors = (model.transform(FEW.images), pixels, normalize(pixels, *LITE), larger)
    for label, tensor in zip(inputs, tensors, strict=True):
        rows = found.curves[found.curves["input"] == label].set_index("layer")["value"]
        with torch.inference_mode():
            stem = model.eval()._bn0(model._conv_stem(tensor)).flatten(1)
            maps = model.extract_features(tensor).flatten(1)
        assert rows.iloc[0] == pytest.approx(SeparationIndex(stem, FEW.labels, True).si(), abs=0.03)
        assert rows.iloc[-1] == pytest.approx(
            SeparationIndex(maps, FEW.labels, True).si(), abs=0.03
        )
        step = found.steps.set_index("case").loc[f"lite, {label}"]
        assert [step["before"], step["after"]] == rows.iloc[:2].tolist()
    assert found.findings["baseline"].eq(f"lite, {AS_THE_STUDY}").all()
    assert len(found.findings) == 3


LITE = ([127 / 255] * 3, [128 / 255] * 3)


def test_an_input_that_is_the_same_is_scored_once():
    model = create_model("resnet18", 10, seed=0)
    model.transform = transform_for("digits")  # keeps the images' size
    inputs = study_input({"net": model}, TINY, device="cpu").curves["input"]
    assert inputs.unique().tolist() == ["own input", AS_THE_STUDY]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1"])
def test_the_stages_of_a_lite_end_where_its_widths_change(name):
    model = create_model(name, None, "imagenet")
    layers = stage_layers(model)
    features = extract_features(
        model, FEW.images[:2], layers, transform=replace(model.transform, size=64), device="cpu"
    )
    sides = (32, 32, 16, 8, 4, 4, 2, 2, 2)
    widths = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    assert [features[n].shape[1] for n in layers] == [
        w * s * s for w, s in zip(widths, sides, strict=True)
    ]
    assert (features["_swish"] >= 0).all()  # the head behind its ReLU6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIUTILS_CACHE", str(tmp_path_factory.mktemp("cache")))
        digits = load_dataset("digits", image_size=8)
        options = (5, 1, "float32", transform_for("digits"))
        trainings = variant_trainings(digits, SHORTCUTS, [1, 2], *options)
        return {key: training.run("cpu") for key, training in trainings.items()}


@pytest.fixture(scope="module")
def scored(runs):
    return run_curves(runs, TINY, STATES, device="cpu", order=1)


def test_curves_of_runs_are_those_of_their_models(runs, scored):
    table, records = scored
    assert list(records) == [(*key, state) for key in runs for state in STATES]
    rows = table[table["index"] == "si"].set_index(["variant", "seed", "state", "layer"])["value"]
    for key, run in runs.items():
        models = {"start": run.training.start(), "trained": run.model}
        for state, model in models.items():
            index = si_of(model, "layer2")
            assert rows[(*key, state, "layer2")] == index.si()
            assert records[(*key, state)]["layer2"].value("si") == index.si()
    sources = table.set_index("state")["weights"]
    assert sources["trained"].str.startswith("trained here: fast, 1 epochs of 50 images").all()
    assert sources["start"].str.startswith("random initialization, seed").all()
    pooled, grids = run_curves({("resnet18", 1): runs["resnet18", 1]}, TINY, pool=2, device="cpu")
    assert pooled["pool"].eq("2×2").all()
    assert list(grids["resnet18", 1, "trained"]) == list(records["resnet18", 1, "trained"])
    with pytest.raises(ValueError, match="states must be of untrained, start, trained"):
        run_curves(runs, TINY, ["trianed"])


def test_variants_are_compared_image_by_image_for_each_seed(runs, scored):
    records = scored[1]
    tests = compare_variants(records, *SHORTCUTS)
    assert len(tests) == 2 * 6  # seeds, stages of ResNet18
    first, second = (si_of(runs[v, 2].model, "layer3") for v in SHORTCUTS)
    found = compare(first.record(lists=True), second.record(lists=True))
    row = tests.query("seed == 2 and layer == 'layer3'").iloc[0]
    assert (row["first"], row["second"], row["wins"]) == (first.si(), second.si(), found.wins)
    assert (row["low"], row["p_value"]) == (found.low, found.p_value)
    assert (tests["p_holm"] >= tests["p_value"]).all()
    sure = tests["p_holm"] < 0.05
    assert (tests["verdict"] != "unclear").tolist() == sure.tolist()
    effects = over_seeds(tests, ["layer"], "effect").set_index("layer").loc["layer3"]
    both = tests.query("layer == 'layer3'")["effect"]
    assert (effects["mean"], effects["seeds"]) == (pytest.approx(both.mean()), 2)
    assert (effects["lowest"], effects["highest"]) == (both.min(), both.max())


def test_steps_of_variants_are_from_their_first_stage_to_the_second(runs, scored):
    records = scored[1]
    steps = variant_steps(records)
    assert steps[["variant", "seed", "state"]].apply(tuple, axis=1).tolist() == list(records)
    row = steps.query("variant == 'resnet18' and seed == 1 and state == 'trained'").iloc[0]
    model = runs["resnet18", 1].model
    assert row["before"] == si_of(model, "maxpool").si()
    assert row["after"] == si_of(model, "layer1").si()


def test_each_variant_changes_one_thing_and_has_a_name_of_its_own():
    options = (5, 1, "float32", transform_for("digits"))
    trainings = variant_trainings(load_dataset("digits"), STAGES, [3, 4], *options)
    assert len({t.name for t in trainings.values()}) == len(trainings) == 8
    base, *others = [(t.network, t.zero_init) for (_, s), t in trainings.items() if s == 3]
    assert all(sum(a != b for a, b in zip(base, other, strict=True)) == 1 for other in others)
    same = {(t.train.images.sum().item(), t.recipe) for (_, s), t in trainings.items() if s == 3}
    assert len(same) == 1


def test_only_digits_are_a_demonstration():
    assert "demonstration" in demonstration("digits")
    assert demonstration("cifar100") == ""


def calls(code):
    """How often code calls each function that makes trainings."""
    names = [
        getattr(n.func, "attr", getattr(n.func, "id", ""))
        for n in ast.walk(ast.parse(code))
        if isinstance(n, ast.Call)
    ]
    return Counter(n for n in names if n.endswith("_trainings") or n == "curve_training")


def test_the_plan_holds_each_training_of_the_notebooks():
    in_notebooks = Counter()
    for path in sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                in_notebooks += calls("".join(cell["source"]))
    planned = calls(getsource(plan))
    assert in_notebooks == planned - Counter(planned_trainings=1)
    assert sum(in_notebooks.values()) == 7
