"""Layer figures show what their tables hold, without overlapping labels or global style."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from labeled_data import record_across
from matplotlib.text import Text
from rendering import assert_renders

from siutils.figures import layers as layer_plots
from siutils.layers.transitions import STATES, flows, paired_tests


def curves(values, n_layers=4):
    rows = [(s, d, f"f.{d}", v) for s, v in values.items() for d in range(n_layers)]
    table = pd.DataFrame(rows, columns=["series", "depth", "layer", "value"])
    value = table["value"]
    return table.assign(low=value - 0.1, high=value + 0.1, chance=0.1, panel="p")


def verdicts():
    low, high = (record_across(torch.arange(40) < k) for k in (10, 30))
    return paired_tests({"up": (low, high), "down": (high, low), "none": (low, low)})


FLOWS = flows(torch.rand(5, 30, generator=torch.Generator().manual_seed(0)) < 0.5, list("abcde"))
IMAGES = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4), np.uint8)
FIGURES = {
    "layer_bands": lambda: layer_plots.layer_bands(curves({"a": 0.3, "b": 0.4})),
    "panels": lambda: layer_plots.layer_bands(
        pd.concat(curves({"a": 0.3}).assign(panel=p) for p in "pqr"), "panel"
    ),
    "change_dots": lambda: layer_plots.change_dots(verdicts()),
    "flow_areas": lambda: layer_plots.flow_areas(FLOWS),
    "image_rows": lambda: layer_plots.image_rows(IMAGES, {"x": [3, 1], "y": []}, list("abcdef")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_render_without_touching_the_global_style(name, tmp_path):
    assert_renders(FIGURES[name], tmp_path)


def test_lines_and_bands_are_those_of_the_table():
    axes = layer_plots.layer_bands(curves({"a": 0.3, "b": 0.5})).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines] == [0.3, 0.5, 0.1]
    for band, value in zip(axes.collections, (0.3, 0.5), strict=True):
        y = band.get_paths()[0].vertices[:, 1]
        assert (y.min(), y.max()) == (pytest.approx(value - 0.1), pytest.approx(value + 0.1))
    styles = {(line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == 3


def test_bands_have_the_line_of_their_curve_at_their_edges():
    table = curves({name: 0.2 + 0.1 * i for i, name in enumerate("abcd")}).drop(columns="chance")
    figure = layer_plots.layer_bands(table)
    figure.savefig(io.BytesIO())  # styles are settled when drawn
    (axes,) = figure.axes
    edges = [band.get_linestyle()[0][1] for band in axes.collections]
    assert len({str(edge) for edge in edges}) == 4
    assert [edge is None for edge in edges] == [line.get_linestyle() == "-" for line in axes.lines]


@pytest.mark.parametrize("values", [[0.3] * 6, [0.9, 0.899, 0.2, 0.1], [0.05, 0.05, 0.05]])
def test_labels_at_line_ends_do_not_overlap(values):
    table = curves({f"series {i}": v for i, v in enumerate(values)}).drop(columns=["low", "high"])
    figure = layer_plots.layer_bands(table)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the arrow
    assert len(boxes) == len(values) + 1
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_many_layers_keep_their_labels_apart():
    axes = layer_plots.layer_bands(curves({"a": 0.3}, n_layers=42)).axes[0]
    assert len(axes.get_xticks()) <= 14
    assert axes.get_xticklabels()[1].get_text() == "f.3"


def test_markers_say_the_verdict():
    axes = layer_plots.change_dots(verdicts()).axes[0]
    found = {c.get_label(): c.get_offsets().tolist() for c in axes.collections[1:]}
    assert found == {"falls": [[-0.5, 1]], "rises": [[0.5, 0]], "unclear": [[0.0, 2]]}


def test_areas_add_up_to_one_and_bars_are_what_moves():
    areas, moves = layer_plots.flow_areas(FLOWS).axes
    spans = [c.get_paths()[0].vertices[:, 1] for c in areas.collections]
    assert len(spans) == len(STATES)
    assert (spans[0].min(), spans[-1].max()) == (0.0, pytest.approx(1.0))
    assert spans[0].max() == FLOWS["for good"].max()
    heights = [bar.get_height() for bar in moves.patches]
    assert heights == [*FLOWS["gained"], *-FLOWS["lost"]]


def test_each_row_shows_its_images():
    figure = FIGURES["image_rows"]()
    shown = [[int(i.get_array()[0, 0, 0]) for i in axes.images] for axes in figure.axes]
    assert shown == [[3], [1], [], []]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["d", "b"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["x", "y"]
