"""Figures that compare networks: tables in, figures out, as in `siutils.figures.plots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from siutils.figures.plots import COLORS, MARKERS


def ranking_dots(table: pd.DataFrame, label: str = "SI") -> Figure:
    """One panel per arm: networks, best first, with interval and the letters of their groups.

    Args:
        table: columns ``arm, network, value, low, high, group``, in the order to be drawn.
        label: of the horizontal axis.

    >>> row = {"arm": "trained", "network": "vgg16", "value": 0.4, "low": 0.3, "high": 0.5}
    >>> axes = ranking_dots(pd.DataFrame([row | {"group": "a"}])).axes[0]
    >>> axes.get_title(), [text.get_text() for text in axes.texts]
    ('trained', ['a'])
    """
    arms = list(table.groupby("arm", sort=False))
    most = max(len(rows) for _, rows in arms)
    figure = Figure(figsize=(2.6 * len(arms) + 0.4, 0.42 * most + 1.1), layout="constrained")
    panels = figure.subplots(1, len(arms), squeeze=False, sharex=True)[0]
    for axes, (arm, rows) in zip(panels, arms, strict=True):
        places = np.arange(len(rows))
        axes.hlines(places, rows["low"], rows["high"], colors=COLORS[0], linewidth=2)
        axes.scatter(rows["value"], places, s=42, c=COLORS[0], marker=MARKERS[0], zorder=3)
        for place, group in zip(places, rows["group"], strict=True):
            axes.annotate(
                group, (1.0, place), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", weight="bold",
            )  # fmt: skip
        axes.set_yticks(places, rows["network"])
        axes.set(title=arm, xlabel=label, ylim=(most - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(3))
    return figure


def class_map(table: pd.DataFrame, label: str = "SI of the class") -> Figure:
    """Classes down, networks or layers across, the value in each cell.

    Args:
        table: column ``class``, then one column per network with values in 0 … 1; for reading, no
            more than about 30 rows.
        label: of the scale.

    >>> figure = class_map(pd.DataFrame({"class": ["ant", "bee"], "vgg16": [0.5, 1.0]}))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['0.50', '1.00']
    """
    networks = [str(column) for column in table if column != "class"]
    values = table[networks].to_numpy(dtype=float)
    figure = Figure(
        figsize=(1.1 * len(networks) + 2.6, 0.27 * len(table) + 1.3), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label=label)
    axes.set_xticks(range(len(networks)), networks)
    if max(map(len, networks)) > 12:
        axes.tick_params("x", rotation=30)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("left")
    axes.set_yticks(range(len(table)), table["class"])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    return figure


def transition_maps(table: pd.DataFrame) -> Figure:
    """Separation score before down, after across, the number of samples in each cell.

    Args:
        table: rows of `siutils.separation.score_transitions` with the columns ``network``, a
            column of panels each, and ``start``, a row of panels each, before them.

    >>> table = pd.DataFrame({"before": ["−1", "−1", "≥ 1", "≥ 1"], "after": ["−1", "≥ 1"] * 2})
    >>> figure = transition_maps(table.assign(samples=[3, 2, 0, 1], network="vgg16", start="cold"))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['3', '2', '1']
    """
    starts, networks = table["start"].unique(), table["network"].unique()
    bins = list(dict.fromkeys(table["before"]))
    size = (2.5 * len(networks) + 0.9, 2.4 * len(starts) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(starts), len(networks), squeeze=False, sharex=True, sharey=True)
    for line, start in zip(grid, starts, strict=True):
        for axes, network in zip(line, networks, strict=True):
            rows = table[(table["start"] == start) & (table["network"] == network)]
            counts = rows["samples"].to_numpy().reshape(len(bins), len(bins))
            _count_map(axes, counts)
            axes.set_xticks(range(len(bins)), bins, rotation=90, fontsize=7)
            axes.set_yticks(range(len(bins)), bins, fontsize=7)
            axes.set_title(f"{network}, from {start}", fontsize=9)
    figure.supxlabel("separation score of the trained network", fontsize=9)
    figure.supylabel("separation score before", fontsize=9)
    return figure


def _count_map(axes: Axes, counts: np.ndarray) -> None:
    shade = np.sqrt(counts / max(counts.max(), 1))  # else one cell hides all others
    axes.imshow(shade, cmap="Greys", vmin=0, vmax=1)
    for edge in (axes.axhline, axes.axvline):
        edge(len(counts) / 2 - 0.5, color=COLORS[1], linewidth=1.2)
    axes.plot([-0.5, len(counts) - 0.5], [-0.5, len(counts) - 0.5], ":", color="#999999", lw=0.8)
    axes.set(xlim=(-0.5, len(counts) - 0.5), ylim=(len(counts) - 0.5, -0.5))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shade[row, column] > 0.5 else "black"
            text = f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)


def network_strips(table: pd.DataFrame, images: np.ndarray, classes: Sequence[str]) -> Figure:
    """Each sample once, and beside it a row of its nearest neighbors for each network.

    A neighbor of the sample's class has a solid frame and a check mark, another a dashed frame and
    a cross.

    Args:
        table: rows of `SeparationIndex.neighbor_table` with the column ``network``; labels
            index ``classes``.
        images: uint8 ``(N, 3, H, W)``.
        classes: names.

    >>> row = {"network": "vgg16", "sample": 0, "label": 0, "rank": 1, "neighbor": 2}
    >>> table = pd.DataFrame([row | {"neighbor_label": 1}])
    >>> figure = network_strips(table, np.zeros((3, 3, 4, 4), np.uint8), ["cat", "dog"])
    >>> [axes.get_title() for axes in figure.axes]
    ['cat', '✗ dog']
    """
    samples, networks = table["sample"].unique(), table["network"].unique()
    across, down = int(table["rank"].max()), len(networks)
    figure = Figure(
        figsize=(0.95 * across + 2.7, (0.98 * down + 0.1) * len(samples)), layout="constrained"
    )
    grid = figure.add_gridspec(down * len(samples), across + 1, width_ratios=[1.5] + [1] * across)
    for i, sample in enumerate(samples):
        rows = table[table["sample"] == sample]
        label = int(rows["label"].iloc[0])
        axes = figure.add_subplot(grid[i * down : (i + 1) * down, 0])
        _image(axes, images[sample], classes[label], "#000000")
        for j, network in enumerate(networks):
            nearest = rows[rows["network"] == network].sort_values("rank")
            pairs = nearest[["neighbor", "neighbor_label"]].itertuples(index=False)
            for k, (neighbor, other) in enumerate(pairs, start=1):
                axes = figure.add_subplot(grid[i * down + j, k])
                name, same = classes[int(other)], other == label
                title = f"{'✓' if same else '✗'} {name}"
                _image(axes, images[neighbor], title, COLORS[2] if same else COLORS[1], not same)
                if k == 1:
                    axes.set_ylabel(network, fontsize=7, rotation=0, ha="right", va="center")
    return figure


def _image(axes: Axes, image: np.ndarray, title: str, color: str, dashed: bool = False) -> None:
    axes.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=7, pad=3)
    axes.spines[:].set(linewidth=2.0, color=color, linestyle="--" if dashed else "-")
