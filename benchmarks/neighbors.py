"""Exact k nearest neighbors of every sample: siutils against brute force, in one process, warm.

    make bench ARGS="--workloads pixels --n 50000 --k 2 --queries 2500"

`make bench` first installs what only the benchmarks need, the extra `bench`, into .venv. By hand:

    VIRTUAL_ENV=.venv .venv/bin/uv pip install --requirement pyproject.toml --extra bench

Of ImageNet's size, on a GPU (the features take 10.5 GB):

    make bench ARGS="--device cuda --workloads low_rank --n 1281167 --queries 8192"

All five indices of raw pixels, z-score included, on a GPU:

    make bench ARGS="--device cuda --workloads pixels --contestants indices"

One row per workload, N, k and contestant goes to the CSV; rows that are there are not measured
again, so that a long benchmark can be done in pieces. Contestants of one row group take turns: an
untimed round on few samples, then `--repeats` timed ones; `time_s` is the median, `ratio` that over
the median of siutils. `--queries M` lets brute force answer for M samples only, against all N, and
scales that part of its time by N / M (brute force is linear in queries; without `--queries` it
answers all, which shows that this is right); siutils always does all of it. `peak_mb` is memory
beyond the features at the worst moment of any timed round. `gflops` are the operations of brute
force, 2 N² D, per second of this contestant, `sgemm_gflops` those of torch's plain float32 matrix
product in the same run. `agree` is the share of samples with the same neighbors in the same order
as siutils: float32 contestants swap near ties. Runs in which other processes took more than a fifth
of the CPU are repeated, up to three times as many; then the quietest count, and `others` tells how
quiet.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import workloads
from figure import draw
from torch import Tensor

from siutils import SeparationIndex, kneighbors
from siutils.core import replacing
from siutils.report import environment_facts, git_state, package_version

HERE = Path(__file__).resolve().parent
KEY = ["workload", "n", "k", "device", "contestant", "queries"]
COLUMNS = [
    "workload", "n", "d", "k", "device", "contestant", "queries", "repeats", "time_s", "ratio",
    "min_s", "max_s", "peak_mb", "gflops", "sgemm_gflops", "agree", "others", "run",
]  # fmt: skip
WARM = 5000  # samples of the untimed round
QUIET = 0.2  # share of the CPU that others may take in a run that counts
TRIES = 3  # times as many runs as wanted, at most
Search = Callable[[int], Any]  # neighbors of the first so many samples


def siutils(x: Tensor, k: int) -> Search:
    return lambda queries: kneighbors(x, k).indices


def indices(x: Tensor, k: int) -> Search:
    """All five indices up to order k, z-score included; the labels do not matter for the time."""
    labels = torch.arange(len(x)) % 100

    def search(queries: int) -> None:
        SeparationIndex(x, labels, normalize=True, device=x.device).report(max_order=k)

    return search


def matmul(x: Tensor, k: int) -> Search:
    """Float32 matrix product and topk in chunks: the roofline of brute force."""
    norms = torch.linalg.vector_norm(x, dim=1).square_()

    def distances(start: int, stop: int) -> Tensor:
        return torch.addmm(norms[None], x[start:stop], x.T, alpha=-2)

    return lambda queries: _chunked(distances, k, queries, len(x), x.device)


def cdist(x: Tensor, k: int) -> Search:
    return lambda queries: _chunked(
        lambda start, stop: torch.cdist(x[start:stop], x), k, queries, len(x), x.device
    )


def _chunked(
    distances: Callable[[int, int], Tensor], k: int, queries: int, n: int, device: torch.device
) -> Tensor:
    step = max(1, 2**26 // n) if device.type == "cpu" else max(1, 2**30 // n)
    found = []
    for start in range(0, queries, step):
        part = distances(start, min(start + step, queries))
        row = torch.arange(len(part), device=device)
        part[row, row + start] = torch.inf
        found.append(part.topk(k, dim=1, largest=False).indices)
    return torch.cat(found)


def sklearn(x: Tensor, k: int) -> Search:
    from sklearn.neighbors import NearestNeighbors

    data = x.numpy()
    model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(data)
    return lambda queries: model.kneighbors(data[:queries], return_distance=False)


def faiss(x: Tensor, k: int) -> Search:
    import faiss as library

    data = x.numpy()
    index = library.IndexFlatL2(x.shape[1])
    index.add(data)
    return lambda queries: index.search(data[:queries], k + 1)[1]


CONTESTANTS = {f.__name__: f for f in (siutils, indices, matmul, cdist, sklearn, faiss)}
WHOLE = ("siutils", "indices")  # these do all samples or nothing
ON_CPU = ["siutils", "matmul", "sklearn", "faiss"]
ON_CUDA = ["siutils", "matmul", "cdist"]


def measure(x: Tensor, k: int, names: list[str], queries: int, repeats: int) -> list[dict]:
    """Rows of one group; the contestants take turns, until each has enough undisturbed runs."""
    runs: dict[str, list[dict]] = {name: [] for name in names}
    found: dict[str, Tensor] = {}
    for name in names:  # loads libraries, starts threads
        _once(x[:WARM], k, CONTESTANTS[name], min(len(x), WARM))
    for _ in range(TRIES * repeats):
        for name in names:
            if sum(run["others"] <= QUIET for run in runs[name]) >= repeats:
                continue
            once, result = _once(x, k, CONTESTANTS[name], len(x) if name in WHOLE else queries)
            runs[name].append(once)
            if result is not None:
                found[name] = _without_self(torch.as_tensor(result).cpu(), k)
            print(
                f"  {name:8} {once['time_s']:8.2f} s  {once['peak_mb']:6.0f} MB"
                f"  {once['others']:4.0%} of the CPU taken by others",
                flush=True,
            )
    for name in names:
        runs[name] = sorted(runs[name], key=lambda run: run["others"])[:repeats]
    return [_summary(name, some, x, queries, found) for name, some in runs.items()]


def _once(x: Tensor, k: int, contestant: Callable[..., Search], queries: int) -> tuple[dict, Any]:
    memory, others = Memory(x.device), Others()
    start = time.perf_counter()
    search = contestant(x, k)
    memory.wait()
    built = time.perf_counter()
    result = search(queries)
    memory.wait()
    done = time.perf_counter()
    scaled = (done - built) * len(x) / queries
    once = {"time_s": built - start + scaled, "peak_mb": memory.peak_mb(), "others": others.share()}
    return once, result


def _summary(name: str, runs: list[dict], x: Tensor, queries: int, found: dict) -> dict:
    times = [run["time_s"] for run in runs]
    median, (n, d) = statistics.median(times), x.shape
    agree = None
    if name in found and name != "siutils" and "siutils" in found:
        theirs, ours = found[name], found["siutils"][: len(found[name])]
        agree = float((theirs == ours).all(1).double().mean())
    return {
        "contestant": name, "queries": n if name in WHOLE else queries, "repeats": len(times),
        "time_s": median, "min_s": min(times), "max_s": max(times),
        "peak_mb": max(run["peak_mb"] for run in runs), "gflops": 2e-9 * n * n * d / median,
        "agree": agree, "others": statistics.median(run["others"] for run in runs),
    }  # fmt: skip


def _without_self(indices: Tensor, k: int) -> Tensor:
    """Drop each sample itself; where duplicates took its place, the last neighbor."""
    if indices.shape[1] == k:
        return indices
    own = indices == torch.arange(len(indices))[:, None]
    own[:, -1] |= ~own.any(1)
    return indices[~own].view(-1, k)


class Memory:
    """Peak memory from here on, beyond what is in use now: the kernel's own high-water mark."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what others freed must not hide what is used next
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._resident("VmRSS")

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def peak_mb(self) -> float:
        peak = torch.cuda.max_memory_allocated() if self.cuda else self._resident("VmHWM")
        return (peak - self.before) / 1e6

    @staticmethod
    def _resident(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split(f"{field}:")[1].split()[0])


class Others:
    """Share of the machine's CPU time that other processes took from here on."""

    def __init__(self) -> None:
        self.start = self._seconds()

    def share(self) -> float:
        busy, own, wall = (
            now - then for now, then in zip(self._seconds(), self.start, strict=True)
        )
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        busy = (user + nice + system) / os.sysconf("SC_CLK_TCK")
        return busy, time.process_time(), time.perf_counter()


def sgemm_gflops(device: torch.device) -> float:
    """The highest rate of a large square float32 product."""
    n = 4096 if device.type == "cpu" else 16384
    a, best = torch.randn(n, n, device=device), float("inf")
    memory = Memory(device)
    for _ in range(6):
        memory.wait()
        start = time.perf_counter()
        torch.mm(a, a)
        memory.wait()
        best = min(best, time.perf_counter() - start)
    return 2e-9 * n**3 / best


def store(rows: list[dict], out: Path) -> pd.DataFrame:
    """Add rows to the CSV; a row measured again takes the place of the old one."""
    table = pd.DataFrame(rows)
    if out.exists():
        table = pd.concat([pd.read_csv(out), table])
    table = table.drop_duplicates(KEY, keep="last").sort_values(KEY)[COLUMNS]
    with replacing(out) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    return table


def facts(device: torch.device) -> dict[str, Any]:
    known = environment_facts()
    known["versions"]["faiss-cpu"] = package_version("faiss-cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else known["processor"]
    return {
        "hardware": name, "threads": torch.get_num_threads(), "cpu_count": os.cpu_count(),
        "git": git_state(HERE.parent), **known,
    }  # fmt: skip


def record(run: str, device: torch.device, out: Path) -> None:
    """Keep the facts of this run, and of the others that the CSV has rows of."""
    file = out.with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else {}
    used = set(pd.read_csv(out)["run"])
    known = {name: value for name, value in known.items() if name in used}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(known | {run: facts(device)}, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--workloads", nargs="*", default=list(workloads.WORKLOADS), choices=workloads.WORKLOADS)
    add("--n", nargs="+", type=int, default=[50000])
    add("--k", nargs="+", type=int, default=[2])
    add("--contestants", nargs="+", choices=CONTESTANTS, help="default: all that fit the device")
    add("--queries", type=int, default=0, help="of brute force, the rest scaled; 0 is all")
    add("--repeats", type=int, default=5)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--again", action="store_true", help="also measure what the CSV has")
    add("--out", type=Path, help="CSV; default: neighbors-DEVICE.csv beside this file")
    return parser.parse_args()


def main() -> None:
    wanted = parsed()
    device = torch.device(wanted.device)
    names = wanted.contestants or (ON_CUDA if wanted.device == "cuda" else ON_CPU)
    out = wanted.out or HERE / f"neighbors-{wanted.device}.csv"
    run = datetime.now(UTC).isoformat(timespec="seconds")
    torch.set_float32_matmul_precision("highest")  # no TF32: the others' float32 is float32
    peak = sgemm_gflops(device)
    print(f"sgemm {peak:.0f} GFLOP/s, {torch.get_num_threads()} threads", flush=True)
    for workload in wanted.workloads:
        for n in wanted.n:
            queries = min(n, wanted.queries or n)
            x = None
            for k in wanted.k:
                group = {"workload": workload, "n": n, "k": k, "device": wanted.device}
                if not wanted.again and _measured(group, names, queries, out):
                    continue
                x = workloads.make(workload, n).to(device) if x is None else x
                print(f"{workload}, N = {n:,}, D = {x.shape[1]:,}, k = {k}")
                rows = measure(x, k, names, queries, wanted.repeats)
                ours = next((row["time_s"] for row in rows if row["contestant"] == "siutils"), None)
                for row in rows:
                    row["ratio"] = row["time_s"] / ours if ours else None
                extra = {"d": x.shape[1], "sgemm_gflops": peak, "run": run}
                table = store([group | row | extra for row in rows], out)
                record(run, device, out)
                draw(table, out.with_suffix(".svg"))


def _measured(group: dict, names: list[str], queries: int, out: Path) -> bool:
    if not out.exists():
        return False
    table = pd.read_csv(out).set_index(KEY).index
    return all(
        tuple((group | {"contestant": name, "queries": many})[field] for field in KEY) in table
        for name in names
        for many in [group["n"] if name in WHOLE else queries]
    )


if __name__ == "__main__":
    sys.exit(main())
