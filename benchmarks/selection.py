"""Time of the sorting and selecting functions on this machine: writes benchmarks/selection.csv.

Data are drawn at random (seed 0): N samples of 10 classes with normal features, the distance of the
class means falling from feature to feature; "integers" rounds them, so that ties abound.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from siutils import SeparationIndex
from siutils.separation import (
    best_subset,
    forward_selection,
    global_triplet_index,
    local_triplets,
    single_feature_si,
)


def samples(n: int, d: int, integers: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    means = rng.normal(size=(10, d)) * np.linspace(1, 0, d)
    features = rng.normal(size=(n, d)) + means[labels]
    if integers:
        features = np.round(2 * features)
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def main() -> None:
    rows = []

    def timed(name, function, n, d, kind):
        start = time.perf_counter()
        result = function()
        rows.append((name, n, d, kind, torch.get_num_threads(), time.perf_counter() - start))
        print(rows[-1], flush=True)
        return result

    for kind in ("normal", "integers"):
        x, y = samples(10_000, 50, kind == "integers")
        table = timed("forward_selection", lambda x=x, y=y: forward_selection(x, y), *x.shape, kind)
        columns = best_subset(table)
        assert SeparationIndex(x[:, columns], y).si() == table["si"].max()
        print(f"best subset: {len(columns)} of 50 features, SI {table['si'].max():.4f}")
    x, y = samples(50_000, 1000)
    timed("single_feature_si", lambda: single_feature_si(x, y), *x.shape, "normal")
    x, y = samples(50_000, 64)
    timed("local_triplets", lambda: local_triplets(x, y), *x.shape, "normal")
    timed("global_triplet_index", lambda: global_triplet_index(x, y), *x.shape, "normal")
    columns = ["function", "n", "n_features", "data", "threads", "time_s"]
    pd.DataFrame(rows, columns=columns).round(2).to_csv(
        Path(__file__).with_suffix(".csv"), index=False
    )


if __name__ == "__main__":
    main()
