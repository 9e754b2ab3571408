"""How fast networks train on this machine's CPU: `training.csv`, a row for each.

    python benchmarks/training.py

Images per second of a step (forward, loss, backward; without augmentation and optimizer), the
median of three rounds over all rows after a warm-up, so that a busy moment hits no row alone.
"""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from siutils import create_model, load_dataset
from siutils.data import ImageSet, Transform
from siutils.training import get_recipe, seconds_of_a_step

NETWORKS = {  # network: side of its input
    "resnet18": 32,
    "vgg16": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 64,
    "efficientnet_lite0": 96,
}
ROUNDS = 3


def main() -> None:
    few = load_dataset("digits")
    data = few.subset(torch.arange(256))
    rows = list(product(NETWORKS, ("float32", "bfloat16"), (64, 128, 256)))
    speeds: dict[Any, list[float]] = {row: [] for row in rows}
    for _ in range(ROUNDS):
        for row in rows:
            speeds[row].append(images_per_second(data, *row))
    table = pd.DataFrame(rows, columns=["network", "dtype", "batch"])
    table.insert(1, "side", table["network"].map(NETWORKS))
    table["images_per_second"] = [round(statistics.median(speeds[row]), 1) for row in rows]
    table["lowest"] = [round(min(speeds[row]), 1) for row in rows]
    table["threads"], table["torch"] = torch.get_num_threads(), torch.__version__
    table["bfloat16_fast"] = torch.cpu._is_avx512_bf16_supported()
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    print(table.to_string(index=False))


def images_per_second(data: ImageSet, network: str, dtype: Any, batch: int) -> float:
    model: nn.Module = create_model(network, 100, seed=0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.transform = Transform((0.5,) * 3, (0.5,) * 3, NETWORKS[network])  # type: ignore[assignment]
    recipe = get_recipe("fast", network, batch_size=batch, dtype=dtype)
    return batch / seconds_of_a_step(model, data, recipe)


if __name__ == "__main__":
    main()
