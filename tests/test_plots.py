"""Figures show what their tables hold, and no global style changes."""

import numpy as np
import pandas as pd
import pytest
from rendering import assert_renders

from siutils import SeparationIndex
from siutils.figures import plots

X = np.random.default_rng(0).normal(size=(60, 3))
SCORED = SeparationIndex(X, np.arange(60) % 3)
CONFUSION, HARDEST = SCORED.confusion(), SCORED.hardest(2, k=3)
IMAGES = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4), np.uint8)


def history():
    rows = {"epoch": [1, 2], "lr": [0.1, 0.0], "seconds": [1.0, 1.0]}
    for split in ("train", "val"):
        rows |= {f"{split}_loss": [2.0, 1.0], f"{split}_accuracy": [0.3, 0.7]}
    return pd.concat([pd.DataFrame(rows).assign(run=run) for run in ("a", "b")])


def dots():
    keys = [(n, a, i) for n in ("vgg", "res") for a in ("cold", "warm") for i in ("si", "anti_si")]
    table = pd.DataFrame(keys, columns=["network", "arm", "index"])
    return table.assign(value=np.linspace(0.1, 0.9, len(table)))


ARROWS = pd.DataFrame({"x": [0, 1], "y": [0, 1], "label": [0, 1], "same": [True, False]})
ARROWS = ARROWS.assign(neighbor_x=[1, 0], neighbor_y=[1, 0])
CLASSES = pd.DataFrame({"class": ["a", "b"], "si": [0.2, 0.8]})
SCATTER = pd.DataFrame({"network": ["a", "b", "c"], "si": [0.1, 0.2, 0.4], "leep": [-3, -1, -2]})
SCATTER["fine_tuned_accuracy"] = [0.5, 0.7, 0.6]
FIGURES = {
    "neighbor_arrows": lambda: plots.neighbor_arrows(ARROWS),
    "image_grid": lambda: plots.image_grid(np.zeros((3, 3, 4, 4), np.uint8), list("abc"), 2),
    "order_curves": lambda: plots.order_curves(SCORED.report(4)),
    "class_bars": lambda: plots.class_bars(CLASSES, chance=0.5),
    "size_curve": lambda: plots.size_curve(pd.DataFrame({"n": [10, 100], "value": [0.2, 0.4]})),
    "confusion_map": lambda: plots.confusion_map(CONFUSION, list("abc")),
    "neighbor_strips": lambda: plots.neighbor_strips(HARDEST, IMAGES, list("abc")),
    "training_curves": lambda: plots.training_curves(history()),
    "network_dots": lambda: plots.network_dots(dots()),
    "score_scatters": lambda: plots.score_scatters(SCATTER, {"si": "SI", "leep": "LEEP"}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_render_without_touching_the_global_style(name, tmp_path):
    assert_renders(FIGURES[name], tmp_path)


def test_order_curves_draw_the_values_of_the_table():
    table = SCORED.report(4)
    lines = {line.get_label(): line for line in plots.order_curves(table).axes[0].lines}
    expected = table[table["index"] == "soft_order_si"]["value"]
    np.testing.assert_array_equal(lines["soft-order SI"].get_ydata(), expected)


def test_validations_are_joined_over_epochs_without_one():
    rows = {"run": "a", "epoch": [1, 2, 3, 4], "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5}
    rows |= {f"val_{name}": [np.nan, 0.2, np.nan, 0.4] for name in ("loss", "accuracy")}
    _, validation = plots.training_curves(pd.DataFrame(rows)).axes[1].lines
    assert validation.get_xydata().tolist() == [[2, 0.2], [4, 0.4]]


def test_intervals_are_drawn_as_bands():
    table = SCORED.report(3, interval=True)
    bands = plots.order_curves(table).axes[0].collections
    assert len(bands) == 3
    rows = table[table["index"] == "high_order_si"]
    path = bands[0].get_paths()[0].vertices
    assert path[:, 1].min() == rows["low"].min()
    assert path[:, 1].max() == rows["high"].max()


def test_confusion_map_shows_the_share_of_each_row():
    shown = plots.confusion_map(CONFUSION, list("abc")).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, CONFUSION / 20)


def test_neighbor_strips_show_each_sample_and_then_its_neighbors():
    figure = plots.neighbor_strips(HARDEST, IMAGES, list("abc"))
    shown = np.array([axes.images[0].get_array()[0, 0, 0] for axes in figure.axes]).reshape(2, 4)
    assert shown[:, 0].tolist() == HARDEST["sample"].unique().tolist()
    assert shown[:, 1:].ravel().tolist() == HARDEST["neighbor"].tolist()
    dashed = [axes.spines["left"].get_linestyle() == "--" for axes in figure.axes]
    other = (HARDEST["label"] != HARDEST["neighbor_label"]).to_numpy().reshape(2, 3)
    assert np.array(dashed).reshape(2, 4)[:, 1:].tolist() == other.tolist()


def test_score_scatters_number_every_network_at_its_place():
    figure = plots.score_scatters(SCATTER, {"si": "SI", "leep": "LEEP", "fine_tuned_accuracy": ""})
    for axes, score in zip(figure.axes, ("si", "leep"), strict=False):
        found = {text.get_text(): text.xy for text in axes.texts}
        places = SCATTER[[score, "fine_tuned_accuracy"]].itertuples(index=False, name=None)
        assert found == dict(zip("123", places, strict=True))
    names = [text.get_text().split() for text in figure.legends[0].get_texts()]
    assert names == [["1", "a"], ["2", "b"], ["3", "c"]]
