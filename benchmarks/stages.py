"""Where the time of an exact search goes, in percent: one row per workload and stage, as CSV.

    .venv/bin/python benchmarks/stages.py --workloads pixels --n 50000 --k 2

A stage counts without the stages that it calls, the median of the runs. "products over blocks" is
what every sample has to go through; the others look at what it leaves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import workloads
from neighbors import Others, facts

from siutils import kneighbors
from siutils.neighbors import screen as _screen
from siutils.neighbors import search as neighbors
from siutils.neighbors import sketch as _sketch

STAGES = {
    (_sketch, "choose"): "choosing axes",
    (neighbors, "without_copies"): "looking for copies",
    (neighbors, "scattered"): "shuffling",
    (_screen.Sketch, "__init__"): "sketching",
    (_screen.Screen, "_maxima"): "products over blocks",
    (_screen.Screen, "_reach"): "distance that k samples reach",
    (_screen.Screen, "_resolve"): "products within blocks that are left",
    (_screen.Screen, "_fine"): "finer sketches",
    (_screen.Screen, "_settle"): "distances of candidates",
}


class Clock:
    """Time of each stage, without that of the stages within."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                whole = time.perf_counter() - start
                self.seconds[stage] += whole - self.inner.pop()
                self.inner[-1] += whole

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workloads", nargs="+", default=["pixels"], choices=workloads.WORKLOADS)
    parser.add_argument("--n", type=int, default=50000)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    wanted = parser.parse_args()
    originals = {(owner, name): getattr(owner, name) for owner, name in STAGES}
    table = []
    for workload in wanted.workloads:
        x, runs = workloads.make(workload, wanted.n), []
        kneighbors(x[:9000], wanted.k)
        for _ in range(wanted.repeats):
            clock, others, start = Clock(), Others(), time.perf_counter()
            for (owner, name), stage in STAGES.items():
                setattr(owner, name, clock.timed(stage, originals[owner, name]))
            kneighbors(x, wanted.k)
            whole = time.perf_counter() - start
            runs.append(clock.seconds | {"rest": whole - sum(clock.seconds.values())})
            print(f"{workload}: {whole:.2f} s, {others.share():.0%} of the CPU taken by others")
        times = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
        table += [
            {
                "workload": workload, "n": wanted.n, "d": x.shape[1], "k": wanted.k,
                "threads": torch.get_num_threads(), "stage": stage, "time_s": seconds,
                "percent": 100 * seconds / sum(times.values()),
            }
            for stage, seconds in times.items()
        ]  # fmt: skip
    result = pd.DataFrame(table)
    result.to_csv(wanted.out, index=False, float_format="%.3g")
    about = json.dumps(facts(torch.device("cpu")), indent=1)
    wanted.out.with_suffix(".json").write_text(about + "\n")
    print(result.to_string(index=False))


if __name__ == "__main__":
    main()
