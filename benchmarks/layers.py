"""All eight stages of EfficientNetV2-S in bounded memory: appends to benchmarks/layers.csv.

CIFAR-100's test images, upsampled to 128×128 (stage 0: 98,304 features), through an untrained
network, scored with `layer_curve` within `--memory` bytes beyond images and model. Every finished
stage is kept in `--cache`: a run that is stopped goes on where it was, and has a row of its own,
with the stages and seconds of that process. Memory is the highest RssAnon that a thread saw every
50 ms, less what there was before the call: pages of memory-mapped files, which the system drops
when it needs room, are no part of it; `rss_mb` has them in.

    python benchmarks/layers.py --n 1000

All test images at 260×260, for which the study's network was made, on a GPU: stage 0 has 405,600
features, 16 GB, and a float64 copy of 32 GB, so the card needs about 60. The files of the largest
three stages take 41 GB of disk, or less in several passes where that is not free:

    python benchmarks/layers.py --n 10000 --size 260 --device cuda --memory 6e10
"""

from __future__ import annotations

import argparse
import csv
import resource
import threading
import time
from pathlib import Path

import torch

from siutils import create_model, layer_curve, load_dataset
from siutils.data import Transform, transform_for
from siutils.report import git_state


def rss_anon() -> int:
    """Bytes of this process that no file backs (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class Peak:
    """The highest rss_anon() while it is open."""

    def __enter__(self) -> Peak:
        self.before = self.highest = rss_anon()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.highest = max(self.highest, rss_anon())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="images")
    parser.add_argument("--size", type=int, default=128, help="height and width, pixels")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that layer_curve may use")
    parser.add_argument("--stages", type=int, nargs="*", default=list(range(8)), help="which")
    parser.add_argument("--cache", type=Path, default=Path("reports/layers"), help="folder")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    data = load_dataset("cifar100", "test").subset(torch.arange(given.n))
    model = create_model("efficientnet_v2_s", 100, seed=0).eval()
    plain = transform_for("cifar100")
    transform = Transform(plain.mean, plain.std, size=given.size)
    known = set(given.cache.rglob("*.json"))
    start, cpu = time.perf_counter(), time.process_time()
    with Peak() as peak:
        table = layer_curve(
            model,
            data.images,
            data.labels,
            [f"features.{stage}" for stage in given.stages],
            transform=transform,
            memory=given.memory,
            cache=given.cache,
            device=given.device,
        )
    si = table[table["index"] == "si"]
    row = {
        "n": given.n,
        "size": given.size,
        "stages": " ".join(map(str, given.stages)),
        "scored_here": len(set(given.cache.rglob("*.json")) - known),
        "most_features": int(si["n_features"].max()),
        "memory_limit_mb": round(given.memory / 1e6),
        "peak_beyond_mb": round((peak.highest - peak.before) / 1e6),
        "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 1e6),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "threads": torch.get_num_threads(),
        "device": given.device,
        "torch": torch.__version__,
        "commit": git_state(Path(__file__).resolve().parents[1])["commit"],
    }
    file = Path(__file__).with_suffix(".csv")
    new = not file.exists()
    with file.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row)
    print(si[["layer", "n_features", "value"]].to_string(index=False))


if __name__ == "__main__":
    main()
