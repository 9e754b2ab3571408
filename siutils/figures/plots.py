"""Tables in, matplotlib figures out: nothing is computed here and no global style is changed.

Every series has its own color, marker and line style, so that figures stay readable in greyscale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from siutils.separation import INDEX_NAMES

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


def neighbor_arrows(table: pd.DataFrame) -> Figure:
    """Points of the plane with an arrow from each sample to its nearest neighbor.

    Args:
        table: one row per sample: ``x, y, label, neighbor_x, neighbor_y`` and the bool ``same``.

    >>> table = pd.DataFrame({"x": [0, 1], "y": 0, "label": 0, "neighbor_x": [1, 0]})
    >>> figure = neighbor_arrows(table.assign(neighbor_y=0, same=True))
    >>> len(figure.axes[0].texts)  # one arrow per sample
    2
    """
    figure, axes = _axes(6.4, 4.6)
    for i, (label, group) in enumerate(table.groupby("label")):
        axes.scatter(
            group["x"], group["y"], s=42, c=COLORS[i], marker=MARKERS[i], label=f"class {label}"
        )
    for same, style in ((True, "-"), (False, "--")):
        rows = table[table["same"] == same]
        for x, y, nx, ny in rows[["x", "y", "neighbor_x", "neighbor_y"]].itertuples(index=False):
            axes.annotate(
                "",
                (nx, ny),
                (x, y),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#444444" if same else "#C00000",
                    "linestyle": style,
                    "shrinkB": 4,
                },
            )
    axes.plot([], [], "-", color="#444444", label="neighbor of the same class")
    axes.plot([], [], "--", color="#C00000", label="neighbor of another class")
    axes.set(xlabel="feature 1", ylabel="feature 2", aspect="equal")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def image_grid(images: np.ndarray, titles: Sequence[str], columns: int = 10) -> Figure:
    """A grid of images.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        titles: N short titles.
        columns: images per row.

    >>> images = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    >>> [axes.get_title() for axes in image_grid(images, ["a", "b", "c"], columns=2).axes]
    ['a', 'b', 'c', '']
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 0.9, rows * 1.15), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
        axes.set_title(title, fontsize=7)
    return figure


def order_curves(table: pd.DataFrame) -> Figure:
    """High-order, soft-order and anti SI against the order, with intervals and chance levels.

    Args:
        table: rows of `siutils.SeparationIndex.report` for orders 1 … K.

    >>> table = pd.DataFrame({"index": "anti_si", "order": [1, 2], "value": [0.5, 0.25]})
    >>> table["chance"] = 0.7
    >>> order_curves(table).axes[0].lines[4].get_ydata().tolist()
    [0.5, 0.25]
    """
    figure, axes = _axes(6.4, 3.8)
    for i, name in enumerate(("high_order_si", "soft_order_si", "anti_si")):
        rows = table[table["index"] == name]
        axes.plot(
            rows["order"],
            rows["value"],
            color=COLORS[i],
            marker=MARKERS[i],
            label=INDEX_NAMES[name],
        )
        axes.plot(rows["order"], rows["chance"], color=COLORS[i], linestyle=":", linewidth=1)
        _band(axes, rows, "order", COLORS[i])
    axes.plot([], [], color="#555555", linestyle=":", label="chance")
    axes.set(xlabel="order r (neighbors looked at)", ylabel="index value", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure


def class_bars(table: pd.DataFrame, value: str = "si", chance: float | None = None) -> Figure:
    """One bar per class, in the order of the rows.

    Args:
        table: columns ``class`` and ``value``.
        value: the column that holds the bar's length, in 0 … 1.
        chance: draws a line at the chance level.

    >>> table = pd.DataFrame({"class": ["ant", "bee"], "si": [0.5, 0.25]})
    >>> [float(bar.get_height()) for bar in class_bars(table).axes[0].patches]
    [0.5, 0.25]
    """
    count = len(table)
    figure, axes = _axes(max(6.0, 0.13 * count), 3.6)
    axes.bar(range(count), table[value], width=0.8, color=COLORS[0])
    axes.set_xticks(range(count), table["class"], rotation=90, fontsize=9 if count < 40 else 6)
    axes.set(ylabel=INDEX_NAMES.get(value, value), xlim=(-0.8, count - 0.2))
    if chance is not None:
        axes.axhline(chance, color=COLORS[1], linestyle="--", linewidth=1, label="chance")
        axes.legend(frameon=False, fontsize=8)
    return figure


def size_curve(table: pd.DataFrame) -> Figure:
    """An index against the number of samples, on a logarithmic axis.

    Args:
        table: columns ``n`` and ``value``, and ``low``, ``high`` of a band.

    >>> axes = size_curve(pd.DataFrame({"n": [100, 2000], "value": [0.1, 0.2]})).axes[0]
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['100', '2,000']
    """
    figure, axes = _axes(5.6, 3.2)
    _band(axes, table, "n", COLORS[0])
    axes.plot(table["n"], table["value"], color=COLORS[0], marker=MARKERS[0], clip_on=False)
    axes.set_xscale("log")
    axes.set_xticks(table["n"], [f"{n:,}" for n in table["n"]])
    axes.minorticks_off()
    axes.set(xlabel="samples N (logarithmic)", ylabel="SI", ylim=(0, None))
    return figure


def confusion_map(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Class of the sample down, class of its neighbor across; each row sums to 1.

    Args:
        table: counts ``(C, C)`` of `siutils.separation.samples.neighbor_confusion`.
        classes: C names; more than 30 are not shown.

    >>> counts = pd.DataFrame([[3, 1], [0, 2]])
    >>> confusion_map(counts, ["a", "b"]).axes[0].images[0].get_array().tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    count = len(table)
    size = min(7.0, 3.4 + 0.16 * count)
    figure = Figure(figsize=(size + 0.9, size), layout="constrained")
    axes = figure.subplots()
    shares = table.to_numpy() / table.to_numpy().sum(axis=1, keepdims=True)
    image = axes.imshow(shares, cmap="Greys", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the neighbors")
    axes.set(xlabel="class of the neighbor", ylabel="class of the sample")
    if count <= 30:
        axes.set_xticks(range(count), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(count), classes, fontsize=8)
    if count <= 12:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                color = "white" if share > shares.max() / 2 else "black"
                text = f"{share:.2f}".lstrip("0") if share < 1 else "1"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    return figure


def neighbor_strips(table: pd.DataFrame, images: np.ndarray, classes: Sequence[str]) -> Figure:
    """One row per sample: its image, then its nearest neighbors; same class solid, other dashed.

    Args:
        table: rows of `siutils.separation.samples.hardest_samples`; labels index ``classes``.
        images: uint8 ``(N, 3, H, W)``.
        classes: names.

    >>> row = {"place": 1, "sample": 0, "label": 0, "rank": 1, "neighbor": 2, "neighbor_label": 1}
    >>> figure = neighbor_strips(pd.DataFrame([row]), np.zeros((3, 3, 4, 4)), ["cat", "dog"])
    >>> [axes.get_title() for axes in figure.axes]
    ['cat', 'dog']
    """
    rows = list(table.groupby("place", sort=False))
    across = 1 + int(table["rank"].max())
    figure = Figure(figsize=(across * 0.95, len(rows) * 1.2), layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False)
    for line, (_, group) in zip(grid, rows, strict=True):
        label = int(group["label"].iloc[0])
        shown = [int(group["sample"].iloc[0]), *group["neighbor"]]
        for axes, i, found in zip(line, shown, [label, *group["neighbor_label"]], strict=True):
            axes.imshow(np.moveaxis(np.asarray(images[i]), 0, -1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(classes[int(found)], fontsize=7)
            first, same = axes is line[0], int(found) == label
            style = {"color": "#000000" if first else COLORS[2] if same else COLORS[1]}
            axes.spines[:].set(linewidth=2.0, linestyle="-" if first or same else "--", **style)
    return figure


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and learning rate against the epoch, training dashed, validation solid.

    Args:
        history: rows of `siutils.training.fit` with the column ``run`` before them.

    >>> row = {"run": "a", "epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_accuracy": 0.3}
    >>> figure = training_curves(pd.DataFrame([row | {"val_loss": 2.1, "val_accuracy": 0.2}]))
    >>> [axes.get_ylabel() for axes in figure.axes[:2]]
    ['cross-entropy (nats)', 'accuracy']
    """
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    for i, (run, rows) in enumerate(history.groupby("run", sort=False)):
        style: dict[str, Any] = {"color": COLORS[i % 7], "marker": MARKERS[i % 7], "markersize": 4}
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot(rows["epoch"], rows[f"train_{name}"], linestyle="--", alpha=0.7, **style)
            validated = rows.dropna(subset=f"val_{name}")  # not every epoch ends with a validation
            axes.plot(validated["epoch"], validated[f"val_{name}"], label=run, **style)
        rate.plot(rows["epoch"], rows["lr"], **style)
    loss.set(ylabel="cross-entropy (nats)")
    accuracy.set(ylabel="accuracy", ylim=(0, 1.02))
    rate.set(ylabel="learning rate, mean of the epoch")
    for axes in (loss, accuracy, rate):
        _tidy(axes)
        axes.set(xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        *accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return figure


def network_dots(table: pd.DataFrame) -> Figure:
    """One panel per index: networks down the side, one marker per arm.

    Args:
        table: columns ``network, arm, index, value``, and ``low, high`` of an interval; one split,
            one order.

    >>> row = {"network": "vgg16", "arm": "trained", "index": "si", "value": 0.4}
    >>> [axes.get_title() for axes in network_dots(pd.DataFrame([row])).axes]
    ['SI']
    """
    names = [n for n in INDEX_NAMES if n in set(table["index"])]
    networks = list(dict.fromkeys(table["network"]))
    figure = Figure(
        figsize=(1.55 * len(names) + 1.2, 0.45 * len(networks) + 1.6), layout="constrained"
    )
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _tidy(axes)
        for i, (arm, rows) in enumerate(table[table["index"] == name].groupby("arm", sort=False)):
            y = [networks.index(n) for n in rows["network"]]
            axes.scatter(rows["value"], y, s=46, c=COLORS[i], marker=MARKERS[i], label=arm)
            if "low" in rows:
                axes.hlines(y, rows["low"], rows["high"], colors=COLORS[i], linewidth=1)
        axes.set(title=INDEX_NAMES[name])
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(len(networks)), networks)
    panels[0].invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return figure


def score_scatters(
    table: pd.DataFrame, scores: Mapping[str, str], accuracy: str = "fine_tuned_accuracy"
) -> Figure:
    """One panel per score: score across, accuracy up, one numbered point per network.

    Args:
        table: columns ``network``, ``accuracy`` and the scores; the numbers follow its rows.
        scores: column and what stands above its panel.
        accuracy: the column on the vertical axis.

    >>> row = {"network": "vgg16", "si": 0.4, "fine_tuned_accuracy": 0.7}
    >>> axes = score_scatters(pd.DataFrame([row]), {"si": "SI"}).axes[0]
    >>> axes.get_title(), axes.get_ylabel(), axes.texts[0].get_text()
    ('SI', 'fine tuned accuracy', '1')
    """
    across = min(3, len(scores))
    down = -(-len(scores) // across)
    figure = Figure(figsize=(3.1 * across + 2.0, 2.6 * down + 0.3), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, (score, title) in zip(panels, scores.items(), strict=False):
        _tidy(axes)
        axes.scatter(table[score], table[accuracy], s=22, c=COLORS[0])
        points = table[[score, accuracy]].to_numpy(float)
        for i, (point, spot) in enumerate(zip(points, _free_spots(points), strict=True)):
            text = axes.annotate(str(i + 1), tuple(point), tuple(spot), textcoords="offset points")
            text.set(fontsize=8, ha="center", va="center")
        axes.set_title(title, fontsize=9)
        axes.margins(0.12)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[len(scores) :]:
        axes.set_axis_off()
    for axes in panels[::across]:
        axes.set_ylabel(accuracy.replace("_", " "))
    names = [f"{i + 1:>2}  {network}" for i, network in enumerate(table["network"])]
    handles = [Line2D([], [], linestyle="") for _ in names]
    legend = figure.legend(handles, names, loc="outside right upper", fontsize=8, handlelength=0)
    legend.set_frame_on(False)
    return figure


def _free_spots(points: np.ndarray) -> list[np.ndarray]:
    """Where each point's label goes, in typographic points from it: far from all the others."""
    span = np.ptp(points, axis=0)
    places = points / np.where(span > 0, span, 1) * (160, 110)  # about the size of a panel
    angles = np.arange(8) * np.pi / 4
    offsets = np.stack([9 * np.cos(angles), 8 * np.sin(angles)], axis=1)
    taken, spots = list(places), []
    for i, place in enumerate(places):
        others = np.array([p for j, p in enumerate(taken) if j != i]).reshape(-1, 2)
        gaps = np.linalg.norm((place + offsets)[:, None] - others, axis=2).min(axis=1, initial=16)
        spots.append(offsets[gaps.argmax()])
        taken.append(place + spots[-1])
    return spots


def _band(axes: Axes, rows: pd.DataFrame, x: str, color: str) -> None:
    """Shade low … high where the table has them."""
    if "low" in rows:
        axes.fill_between(rows[x], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
