"""Figures that compare networks show what their tables hold."""

import numpy as np
import pandas as pd
import pytest
from labeled_data import random_data
from rendering import assert_renders

from siutils import SeparationIndex
from siutils.figures import networks as network_plots
from siutils.separation.samples import score_transitions

X, Y = random_data(0, 60, classes=3)
SCORED = {"vgg16": SeparationIndex(X, Y), "resnet18": SeparationIndex(X[:, :2], Y)}
IMAGES = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4), np.uint8)
CLASSES = ["ant", "bee", "cat"]
BY_CLASS = pd.DataFrame({"class": CLASSES, "vgg16": [0.2, 0.4, 0.9], "resnet18": [0.1, 0.5, 1.0]})
SCORES = SCORED["vgg16"].separation_score()
CHOSEN = [int(SCORES.argmax()), int(SCORES.argmin())]  # neighbors of its class, and of others
STRIPS = pd.concat(s.neighbor_table(CHOSEN, k=3).assign(network=n) for n, s in SCORED.items())


def ranking():
    table = pd.DataFrame({"arm": ["cold", "cold", "warm", "warm"], "network": list("baab")})
    value = pd.Series([0.3, 0.2, 0.6, 0.4])
    return table.assign(value=value, group=list("aaab"), low=value - 0.1, high=value + 0.1)


def transitions():
    scores = {name: s.separation_score() for name, s in SCORED.items()}
    table = score_transitions(scores["vgg16"], scores["resnet18"])
    return pd.concat([table.assign(network=n, start="cold") for n in SCORED])


FIGURES = {
    "ranking_dots": lambda: network_plots.ranking_dots(ranking()),
    "class_map": lambda: network_plots.class_map(BY_CLASS),
    "transition_maps": lambda: network_plots.transition_maps(transitions()),
    "network_strips": lambda: network_plots.network_strips(STRIPS, IMAGES, CLASSES),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_render_without_touching_the_global_style(name, tmp_path):
    assert_renders(FIGURES[name], tmp_path)


def test_each_panel_of_the_ranking_has_its_networks_in_order_with_their_letters():
    figure = FIGURES["ranking_dots"]()
    cold, warm = figure.axes
    assert [text.get_text() for text in cold.get_yticklabels()] == ["b", "a"]
    assert [text.get_text() for text in warm.texts] == ["a", "b"]
    assert warm.collections[1].get_offsets()[:, 0].tolist() == [0.6, 0.4]
    assert warm.get_ylim()[0] > warm.get_ylim()[1]  # best on top


def test_class_map_shows_values_in_their_cells():
    axes = FIGURES["class_map"]().axes[0]
    values = BY_CLASS[["vgg16", "resnet18"]].to_numpy()
    assert axes.images[0].get_array().tolist() == values.tolist()
    assert [text.get_text() for text in axes.texts] == [f"{v:.2f}" for v in values.ravel()]
    assert [text.get_color() for text in axes.texts][-2:] == ["white", "white"]


def test_transition_maps_show_every_count():
    axes = FIGURES["transition_maps"]().axes
    counts = transitions()["samples"][: len(transitions()) // 2]
    for panel in axes:
        shown = [int(text.get_text()) for text in panel.texts]
        assert shown == [c for c in counts if c]
        assert sum(shown) == 60
        grid = panel.images[0].get_array() ** 2 * counts.max()
        np.testing.assert_allclose(grid.ravel(), counts, atol=1e-9)


def test_network_strips_show_samples_and_neighbors_with_a_verdict_in_more_than_color():
    axes = FIGURES["network_strips"]().axes
    assert len(axes) == 2 * (1 + 2 * 3)
    assert (STRIPS["label"] == STRIPS["neighbor_label"]).nunique() == 2
    for block, sample in enumerate(CHOSEN):
        panels = axes[block * 7 : block * 7 + 7]
        assert panels[0].images[0].get_array()[0, 0, 0] == sample
        rows = STRIPS[STRIPS["sample"] == sample]
        assert rows["network"].tolist() == ["vgg16"] * 3 + ["resnet18"] * 3
        for panel, row in zip(panels[1:], rows.to_dict("records"), strict=True):
            assert panel.images[0].get_array()[0, 0, 0] == row["neighbor"]
            same = row["label"] == row["neighbor_label"]
            name = CLASSES[row["neighbor_label"]]
            assert panel.get_title() == ("✓ " if same else "✗ ") + name
            assert panel.spines["left"].get_linestyle() == ("-" if same else "--")
        assert [p.get_ylabel() for p in panels[1::3]] == ["vgg16", "resnet18"]
