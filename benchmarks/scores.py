"""Time of every transferability score on this machine: writes benchmarks/scores.csv and .json.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/scores.py

50,000 × 1,280 float32 features of 100 classes, as of a network: normal around the mean of their
class in 64 dimensions, mixed into all, with noise and a ReLU. LEEP and NCE get the softmax of 100
source classes. Each score runs with default options, so linear probe and silhouette look at 5,000
samples; si is that of z-scored features. The scores take turns, seconds is the median over the
repeats.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from siutils import SeparationIndex
from siutils.ranking import score_table
from siutils.report import environment_facts, git_state

OUT = Path(__file__).with_suffix(".csv")
LATENT = 64


def samples(n: int, d: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels, and what a head of the source task says."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    means = 0.6 * torch.randn(classes, LATENT, generator=generator)
    latent = means[labels] + torch.randn(n, LATENT, generator=generator)
    mix = torch.randn(LATENT, d, generator=generator) / LATENT**0.5
    features = (latent @ mix + 0.3 * torch.randn(n, d, generator=generator)).relu()
    head = torch.randn(d, 100, generator=generator) / d**0.5
    return features, labels, (features @ head).softmax(dim=1)


def timed(features: Tensor, labels: Tensor, source: Tensor) -> pd.DataFrame:
    """Seconds of every score, once."""
    table = score_table(features, labels, source)
    start = time.perf_counter()
    value = SeparationIndex(features, labels, normalize=True, device="cpu").si()
    row = {"name": "si", "value": value, "seconds": time.perf_counter() - start}
    return pd.concat([table, pd.DataFrame([row])], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--d", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    about = environment_facts() | {
        "threads": torch.get_num_threads(), "classes": options.classes, "repeats": options.repeats,
        "git": git_state(OUT.parent.parent),
        "run": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    data = samples(options.n, options.d, options.classes)
    runs = pd.concat([timed(*data) for _ in range(options.repeats)])
    table = runs.groupby("name", sort=False)["seconds"].median().reset_index()
    table = table.rename(columns={"name": "score"}).assign(d=options.d)
    few = table["score"].isin(["linear_probe", "silhouette"])
    table["n"] = few.map({True: min(options.n, 5000), False: options.n})
    table = table[["score", "n", "d", "seconds"]].sort_values("seconds", ignore_index=True)
    table.to_csv(options.out, index=False, float_format="%.4g")
    options.out.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
