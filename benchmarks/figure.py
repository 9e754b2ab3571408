"""The picture of a benchmark: time and peak memory against N, log-log, one column per workload."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from siutils.figures import COLORS, LINES, MARKERS

NAMES = {
    "siutils": "siutils",
    "indices": "siutils, five indices",
    "matmul": "float32 product + topk",
    "cdist": "torch.cdist + topk",
    "sklearn": "scikit-learn brute",
    "faiss": "faiss IndexFlatL2",
}
ROWS = {"time_s": "time (s)", "peak_mb": "memory beyond the features (MB)"}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write the figure of a table of `neighbors.py`; of equal rows the one of most repeats counts.

    Solid lines are k = 2, dashed ones k = 10.
    """
    table = table.sort_values("repeats").drop_duplicates(
        ["workload", "n", "k", "contestant"], keep="last"
    )
    groups = list(table.groupby("workload"))
    depths = sorted(table["k"].unique())
    figure = Figure(figsize=(3.2 * len(groups), 6.2), layout="constrained")
    grid = figure.subplots(2, len(groups), squeeze=False, sharex="col", sharey="row")
    for axes, label in zip(grid[:, 0], ROWS.values(), strict=True):
        axes.set_ylabel(label)
    for column, (workload, rows) in zip(grid.T, groups, strict=True):
        column[0].set_title(f"{workload}, D = {rows['d'].iloc[0]:,}", fontsize=10)
        for axes, field in zip(column, ROWS, strict=True):
            for (name, k), line in rows.sort_values("n").groupby(["contestant", "k"]):
                i = list(NAMES).index(str(name))
                deep = depths.index(k)
                axes.plot(
                    line["n"], line[field], LINES[deep % len(LINES)], color=COLORS[i],
                    marker=MARKERS[i], markersize=5, fillstyle="none" if deep else "full",
                    label=f"{NAMES[str(name)]}, k = {k}",
                )  # fmt: skip
            axes.set(xscale="log", yscale="log")
            axes.grid(True, alpha=0.3)
            axes.set_xticks(sorted(rows["n"].unique()))
            axes.set_xticklabels([f"{n // 1000}k" for n in sorted(rows["n"].unique())], fontsize=8)
            axes.minorticks_off()
        column[1].set_xlabel("samples N")
    handles = {}
    for axes in grid.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path)
