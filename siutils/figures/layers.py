"""Figures of layer curves: tables in, matplotlib figures out, nothing is computed here.

Series differ in color, marker and line style, which the edges of their bands share, areas in
lightness and hatching: all stay readable in greyscale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siutils.figures.plots import COLORS, LINES, MARKERS

_AREAS = {  # state → fill, hatching, name; from the bottom up
    "for good": ("#2B5C8A", "", "separated for good"),
    "for now": ("#86B4D9", "//", "separated for now"),
    "not yet": ("#E3E3E3", "..", "not yet separated"),
    "not at the end": ("#FFFFFF", "", "not separated at the end"),
}
_SIGNS = {"falls": ("v", "#D55E00"), "rises": ("^", "#009E73"), "unclear": ("o", "#FFFFFF")}


def layer_bands(table: pd.DataFrame, panel: str | None = None, value: str = "SI") -> Figure:
    """An index against the layers of a network with its intervals, one line per series.

    Args:
        table: columns ``depth, layer, value, series``, and ``low, high`` of bands, ``chance``.
        panel: a column; each of its values gets a panel of its own, side by side.
        value: what the vertical axis shows.

    >>> table = pd.DataFrame({"depth": [0, 1], "layer": ["a", "b"], "value": [0.1, 0.3]})
    >>> axes = layer_bands(table.assign(series="trained")).axes[0]
    >>> axes.lines[0].get_ydata().tolist(), axes.texts[0].get_text()
    ([0.1, 0.3], 'trained')
    """
    parts = [("", table)] if panel is None else list(table.groupby(panel, sort=False))
    across = min(len(parts), 2)
    down = -(-len(parts) // across)
    size = (8.4, 4.2) if len(parts) == 1 else (10.4, 3.4 * down)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    top = table["high" if "high" in table else "value"].max()
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    for axes, (title, rows) in zip(grid, parts, strict=False):
        axes.set_ylim(0, min(1.02, 1.12 * max(top, 0.05)))
        _draw_series(axes, rows)
        axes.set_title(title, fontsize=10)
    for axes in grid[::across]:
        axes.set_ylabel(value)
    return figure


def _draw_series(axes: Axes, table: pd.DataFrame) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    many, ends = table["depth"].nunique() > 16, {}
    for i, (name, rows) in enumerate(table.groupby("series", sort=False)):
        color, line = COLORS[i % 7], LINES[i % 4]
        if "low" in rows:
            edge: dict[str, Any] = {"edgecolor": (color, 0.6), "linestyle": line, "lw": 0.7}
            bounds = rows["depth"], rows["low"], rows["high"]
            axes.fill_between(*bounds, facecolor=(color, 0.12), **edge)  # edged as its curve
        style: dict[str, Any] = {"marker": MARKERS[i % 7], "markersize": 3.5 if many else 5}
        axes.plot(rows["depth"], rows["value"], color=color, linestyle=line, lw=1.4, **style)
        ends[str(name)] = (rows["depth"].iloc[-1], rows["value"].iloc[-1], color)
    if "chance" in table:
        rows = table.drop_duplicates("depth").sort_values("depth")
        axes.plot(rows["depth"], rows["chance"], color="#555555", linestyle=":", lw=1)
        ends["chance"] = (rows["depth"].iloc[-1], rows["chance"].iloc[-1], "#555555")
    layers = table.drop_duplicates("depth").sort_values("depth")
    step = -(-len(layers) // 14)
    shown = layers.iloc[::step]
    axes.set_xticks(shown["depth"], shown["layer"], rotation=40, ha="right", fontsize=8)
    axes.set_xlabel("layer, from input to output")
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names beside the last points, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    right = max(x for x, _, _ in ends.values())
    left = axes.get_xlim()[0]
    gap = 0.065 * (high - low)
    heights = sorted((y, name) for name, (_, y, _) in ends.items())
    placed: list[float] = []
    for y, _ in heights:
        placed.append(max(y, placed[-1] + gap) if placed else max(y, low))
    over = placed[-1] - high
    if over > 0:
        placed = [y - over for y in placed]
    for (_, name), y in zip(heights, placed, strict=True):
        x, end, color = ends[name]
        axes.annotate(
            name,
            (x, end),
            (right + 0.035 * (right - left), y),
            color=color,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 3},
        )


def change_dots(tests: pd.DataFrame) -> Figure:
    """Changes of SI with their intervals, one row per case; the marker shows the verdict.

    Args:
        tests: rows of `siutils.layers.paired_tests`.

    >>> row = {"case": "untrained", "change": -0.1, "low": -0.2, "high": 0.0, "verdict": "falls"}
    >>> axes = change_dots(pd.DataFrame([row])).axes[0]
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['untrained']
    """
    figure = Figure(figsize=(7.6, 0.34 * len(tests) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.axvline(0, color="#555555", lw=1)
    places = np.arange(len(tests))
    axes.hlines(places, tests["low"], tests["high"], color="#555555", lw=1.2)
    for verdict, (marker, color) in _SIGNS.items():
        chosen = (tests["verdict"] == verdict).to_numpy()
        if chosen.any():
            x, y = tests["change"][chosen], places[chosen]
            style: dict[str, Any] = {"marker": marker, "c": color, "edgecolors": "#333333"}
            axes.scatter(x, y, s=60, zorder=3, label=verdict, **style)
    axes.set_yticks(places, tests["case"], fontsize=9)
    axes.set_ylim(len(tests) - 0.4, -0.6)
    axes.set_xlabel("change of SI, 95 % interval")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def flow_areas(table: pd.DataFrame) -> Figure:
    """Shares of samples in each state from layer to layer; below, what is gained and lost.

    Args:
        table: rows of `siutils.layers.flows`.

    >>> row = {"depth": 0, "layer": "a", "for good": 0.5, "for now": 0.1, "not yet": 0.1}
    >>> row |= {"not at the end": 0.3, "gained": 0.0, "lost": 0.0}
    >>> axes = flow_areas(pd.DataFrame([row, row | {"depth": 1, "layer": "b"}])).axes
    >>> [label.get_text() for label in axes[1].get_xticklabels()], len(axes[0].collections)
    (['a', 'b'], 4)
    """
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    areas, moves = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    x, base = table["depth"].to_numpy(), np.zeros(len(table))
    for state, (color, hatch, name) in _AREAS.items():
        top = base + table[state].to_numpy()
        style: dict[str, Any] = {"facecolor": color, "hatch": hatch, "edgecolor": "#333333"}
        areas.fill_between(x, base, top, lw=0.8, label=name, **style)
        base = top
    areas.set(ylabel="share of the samples", ylim=(0, 1), xlim=(x[0] - 0.3, x[-1] + 0.3))
    handles, labels = areas.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=4, fontsize=9)
    moves.bar(x, table["gained"], width=0.5, color="#2B5C8A", edgecolor="#333333", label="gained")
    style = {"color": "#F2C6A8", "hatch": "////", "edgecolor": "#333333"}
    moves.bar(x, -table["lost"], width=0.5, label="lost", **style)
    moves.axhline(0, color="#333333", lw=0.8)
    moves.set(ylabel="share that\nchanges", xlabel="layer, from input to output")
    moves.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.95))
    shown = table.iloc[:: -(-len(table) // 14)]
    moves.set_xticks(shown["depth"], shown["layer"], rotation=40, ha="right", fontsize=8)
    for axes in (areas, moves):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def image_rows(
    images: np.ndarray, rows: Mapping[str, Sequence[int]], titles: Sequence[str]
) -> Figure:
    """A row of example images for each name.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        rows: name → places in images, of which there may be none.
        titles: N short titles.

    >>> images = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    >>> figure = image_rows(images, {"early": [2], "late": [0, 1]}, ["a", "b", "c"])
    >>> [axes.get_title() for axes in figure.axes]
    ['c', '', 'a', 'b']
    """
    across = max(1, *(len(places) for places in rows.values()))
    figure = Figure(figsize=(0.85 * across + 1.2, 1.12 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False)
    for line, (name, places) in zip(grid, rows.items(), strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axes, i in zip(line, places, strict=False):
            axes.imshow(np.moveaxis(np.asarray(images[i]), 0, -1), interpolation="nearest")
            axes.set_title(titles[i], fontsize=7)
    return figure
