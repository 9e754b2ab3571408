"""Tables 2 and 3 beside the study's, and the reasons why they differ."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from labeled_data import random_data

from siutils import SeparationIndex
from siutils.separation.indices import INDEX_NAMES
from siutils.study.printed import load_study
from siutils.study.tables import beside_study, study_n, training_labels, training_note, wide_indices

NETWORKS = ["vgg16", "resnet18", "efficientnet_b0"]
ARMS = ("trained", "pretrained", "untrained")
KEYS = ["network", "arm", "split"]
STUDY = load_study()
PRINTED = STUDY.set_index([*KEYS, "index"])["value"].sort_index()


def report(network, arm, split, n=150, classes=4):
    x, y = random_data(len(network + arm + split), n, classes=classes)
    table = SeparationIndex(x, y).report(2, interval=True)
    table = table[(table["order"] == 2) | table["index"].isin(["si", "center_si"])]
    facts = {"weights": f"{network} {arm}", "transform": "mean of the training", "seed": 3}
    return table.assign(network=network, arm=arm, split=split, **facts)


@pytest.fixture(scope="module")
def tidy():
    keys = product(NETWORKS, ARMS, ("train", "test"))
    return pd.concat([report(*key) for key in keys], ignore_index=True)


def trainings(recipe="study", epochs=200, images=40_000, zero_init=False):
    facts = {"recipe": recipe, "epochs": epochs, "training_images": images, "zero_init": zero_init}
    return pd.DataFrame({"network": NETWORKS}).assign(**facts)


def test_wide_rows_hold_every_value_of_the_tidy_table(tidy):
    wide = wide_indices(tidy)
    assert len(wide) == 18
    assert wide["network"].unique().tolist() == NETWORKS
    known = dict(iter(tidy.groupby(KEYS)))
    for row in wide.to_dict("records"):
        for value in known[tuple(row[key] for key in KEYS)].to_dict("records"):
            name = value["index"]
            assert row[name] == value["value"]
            for column in ("low", "high", "chance"):
                np.testing.assert_equal(row[f"{name}_{column}"], value[column])
        assert (row["weights"], row["n"], row["seed"]) == (f"{row['network']} {row['arm']}", 150, 3)


def test_every_value_of_the_study_stands_below_ours(tidy):
    wide = wide_indices(tidy)
    table = beside_study(wide, STUDY, trainings(), "imagenet")
    here, theirs = table[table["source"].isin(ARMS)], table[table["source"] == "study"]
    assert len(table) == 1 + 18 + 12  # chance; ours; no untrained rows in the study
    for name in INDEX_NAMES:
        np.testing.assert_array_equal(here[name], wide[name])
    for position, row in theirs.iterrows():
        above = table.loc[position - 1]
        assert above["source"] == row["arm"]
        assert above[KEYS].equals(row[KEYS])
        assert [row[name] for name in INDEX_NAMES] == [PRINTED[*row[KEYS], n] for n in INDEX_NAMES]
        assert row["n"] == study_n(*row[KEYS])


def test_chance_stands_once_where_all_rows_have_one_n_else_for_each_split(tidy):
    wide = wide_indices(tidy)
    empty = STUDY.head(0)
    chance = beside_study(wide, empty, trainings(), "imagenet").iloc[0]
    assert (chance["source"], chance["split"], chance["n"]) == ("chance", "both", 150)
    assert chance["si"] == wide["si_chance"].iloc[0]
    assert np.isnan(chance["center_si"])
    train, test = report("vgg16", "trained", "train", n=300), report("vgg16", "trained", "test")
    unequal = wide_indices(pd.concat([train, test]))
    table = beside_study(unequal, empty, trainings(), "imagenet")
    assert table["source"].tolist() == ["chance", "chance", "trained", "trained"]
    assert table["split"].tolist() == ["train", "test"] * 2
    assert table["n"].tolist() == [300, 150, 300, 150]
    np.testing.assert_array_equal(table["si"][:2], unequal["si_chance"])


def row_of_study(arm="trained", split="test", pretrained="imagenet", training=None, **changes):
    """The study's row beside a ResNet18 row of ours that agrees with it in all but the changes."""
    transform = {"train": "none", "test": "mean = std = 0.5"}[split]
    ours = {"n": study_n("resnet18", arm, split), "n_classes": 100, "transform": transform}
    wide = wide_indices(report("resnet18", arm, split)).assign(**(ours | changes))
    table = beside_study(wide, STUDY, trainings() if training is None else training, pretrained)
    return table[table["source"] == "study"].iloc[0]


@pytest.mark.parametrize("arm", ["trained", "pretrained"])
def test_what_agrees_is_no_reason(arm):
    assert row_of_study(arm)["differs_in"] == row_of_study(arm)["reason"] == ""
    train = row_of_study(arm, "train")
    assert train["differs_in"] == "subset"  # the study's own slip, which is never repeated
    assert "nor exactly inside the split" in train["reason"]


IDENTITY = {"training": trainings(zero_init=True)}
UPSTREAM = {"arm": "pretrained", "pretrained": "upstream"}
ONE_CYCLE = {"training": trainings("one_cycle")}
SHORT = {"training": trainings(epochs=2, images=5_000)}
THERE = "the study's recipe, 200 × 40,000, there"


@pytest.mark.parametrize(
    ("word", "text", "changes"),
    [
        ("N", "N = 1,250 here, 10,000 in the study", {"n": 1250}),
        ("classes", "50 classes here, 100 in the study", {"n_classes": 50}),
        ("transform", "test images: mean 0 here, mean = std = 0.5 there", {"transform": "mean 0"}),
        ("start", "residual blocks start as the identity here, not in the study", IDENTITY),
        ("weights", "pretrained on the upstream task here, on ImageNet in the study", UPSTREAM),
        ("training", f"one_cycle, 200 × 40,000 images here, {THERE}", ONE_CYCLE),
        ("training", f"study, 2 × 5,000 images here, {THERE}", SHORT),
    ],
)
def test_each_difference_is_a_reason_of_its_own(word, text, changes):
    row = row_of_study(**changes)
    assert (row["differs_in"], row["reason"]) == (word, text)


def test_what_networks_learned_from_stands_beside_their_numbers(tidy):
    ours = trainings(epochs=3, images=5_000).assign(arm="trained")
    labels = training_labels(ours)
    wide = wide_indices(tidy)
    wide["training"] = [labels.get(key) for key in zip(wide["network"], wide["arm"], strict=True)]
    table = beside_study(wide, STUDY, ours, "imagenet").fillna({"training": ""})
    known = {"trained": {"3 × 5,000"}, "untrained": {""}, "study": {"200 × 40,000", ""}}
    for source, texts in known.items():
        assert set(table[table["source"] == source]["training"]) == texts
    both = pd.concat([ours, ours.assign(arm="pretrained", epochs=[3, 3, 4])])
    assert training_note(both) == (
        "Training, epochs × images: vgg16 3 × 5,000 (trained, pretrained), resnet18 3 × 5,000 "
        "(trained, pretrained), efficientnet_b0 3 × 5,000 (trained), efficientnet_b0 4 × 5,000 "
        "(pretrained)."
    )


def test_reasons_add_up():
    row = row_of_study(n=10, n_classes=5)
    assert row["differs_in"] == "N, classes"
    assert row["reason"].count("; ") == 1


def test_numbers_of_samples_of_the_few_rows_fit_the_values():
    for split in ("train", "test"):
        n = study_n("efficientnet_b0", "trained", split)
        rows = PRINTED["efficientnet_b0", "trained", split]
        hits = rows[["si", "high_order_si"]] * n
        np.testing.assert_allclose(hits, hits.round(), atol=1e-9)
