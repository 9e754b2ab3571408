"""kneighbors within limits: little memory, Ctrl-C, threads, a terminal or none."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from allocations import Largest
from reference import brute_neighbors
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from siutils import kneighbors
from siutils.core.inputs import as_matrix, check_finite
from siutils.neighbors import pairs as _pairs
from siutils.neighbors import projection
from siutils.neighbors import screen as _screen
from siutils.neighbors import search as neighbors
from siutils.neighbors import sketch as _sketch
from siutils.neighbors.search import METHODS, _extent
from siutils.separation.runs import neighbors_among

X = np.random.default_rng(0).normal(size=(240, 9))

LIMITED = """
import resource, sys, warnings
import numpy as np, torch
warnings.simplefilter("ignore")  # a read-only array
def limit(more):
    used = 1024 * int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + more, used + more))
"""
MAPPED = """
from siutils import kneighbors
torch.set_num_threads(1)
kneighbors(np.random.default_rng(0).normal(size=(500, 8)), 1)  # loads what loads late
limit({limit})
x = np.load(sys.argv[1], mmap_mode="r")
assert x.nbytes > 2 * {limit}
some = slice(None, None, len(x) // 20)
if sys.argv[2] == "own":
    distances, indices = (part[some] for part in kneighbors(x, 2))
else:
    distances, indices = kneighbors(x, 2, x[some], method=sys.argv[2])
np.savez(sys.argv[3], distances=distances, indices=indices)
"""
MOMENTS = """
from siutils.separation.separation_index import moments
torch.zeros(2**22 - 2**10, dtype=torch.float64)  # freed: from now on such blocks are of the heap
x = torch.from_numpy(np.load(sys.argv[1], mmap_mode="r"))
moments(x[:, :200])
limit(2**27)
mean, std = moments(x)
assert mean.tolist() == [0.5] * x.shape[1] and len(std.unique()) == 1
"""
needs_rlimit = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")


def run_limited(code, *arguments):
    one = os.environ | {"OMP_NUM_THREADS": "1"}  # more share the heap otherwise
    subprocess.run([sys.executable, "-c", LIMITED + code, *arguments], check=True, env=one)


def assert_exact(x, queries=None, **options):
    found = kneighbors(x, 3, queries, **options)
    distances, indices = brute_neighbors(x, 3, queries)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_array_equal(found.distances.numpy(), distances)


@needs_rlimit
@pytest.mark.parametrize(
    ("method", "shape", "limit"),
    [
        ("auto", (45_000, 2_000), 170 * 2**20),
        ("projection", (45_000, 2_000), 170 * 2**20),
        ("own", (23_000, 5_000), 215 * 2**20),
    ],
)
def test_memory_map_larger_than_the_memory_of_the_process(tmp_path, method, shape, limit):
    rng = np.random.default_rng(1)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    x[:, :64] = rng.normal(size=(len(x), 64))  # the rest are zeros, a hole in the file
    x.flush()
    run_limited(MAPPED.format(limit=limit), tmp_path / "x.npy", method, tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    distances, indices = brute_neighbors(x[:, :64], 3, x[:: len(x) // 20, :64])
    two = slice(1, 3) if method == "own" else slice(2)  # without the sample itself
    np.testing.assert_array_equal(found["indices"], indices[:, two])
    np.testing.assert_allclose(found["distances"], distances[:, two], rtol=1e-14)


@needs_rlimit
def test_moments_of_many_features_take_little_memory(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (10_000, 5_000))
    x[::2] = 1
    x.flush()
    run_limited(MOMENTS, tmp_path / "x.npy")


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_chunks_change_no_bit(one_thread, method):
    x = np.round(X[:90], 1)  # near ties and exact ones
    for threads, chunk in ((1, None), (1, 1), (2, 7), (2, None), (3, 64), (2, 10_000)):
        torch.set_num_threads(threads)
        assert_exact(x, method=method, chunk_size=chunk)


def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch):
    real, sizes = _pairs.squared_distances, []

    def scarce(q, x, row, col, unit=1):
        sizes.append(len(row))
        if len(row) > 2000:
            raise torch.OutOfMemoryError("injected")
        return real(q, x, row, col, unit)

    monkeypatch.setattr(_pairs, "squared_distances", scarce)
    assert_exact(X, method="exact")
    assert max(sizes) > 2000
    long = np.random.default_rng(1).normal(size=(3000, 2))  # a single row makes 3,000 pairs
    monkeypatch.setattr(neighbors, "REFERENCES", 1500)
    assert_exact(long, long[:9] + 1, method="exact")
    monkeypatch.setattr(_pairs, "squared_distances", Mock(side_effect=MemoryError("none left")))
    with pytest.raises(MemoryError, match="a single row"):
        kneighbors(X, 3, method="exact")


@pytest.mark.parametrize("says", ["can't allocate memory", "could not create a primitive"])
def test_out_of_memory_in_a_product_halves_the_chunk_and_goes_on(monkeypatch, says):
    real, sizes = torch.mm, []

    def scarce(a, b, **out):
        sizes.append(len(a))
        if len(a) > 16:
            raise RuntimeError(f"DefaultCPUAllocator: {says}: injected")
        return real(a, b, **out)

    monkeypatch.setattr(torch, "mm", scarce)
    assert_exact(X, X[:100].copy(), method="brute")
    assert sizes[0] > 16 >= sizes[-1]


@pytest.mark.parametrize("queries", [None, X[:100].copy()])
def test_maxima_that_leave_no_room_for_products_become_fewer(monkeypatch, queries):
    real, sizes = _screen.Screen._maxima, []

    def scarce(self, low, high, *args, **options):
        sizes.append(high - low)
        if high - low > 30:
            raise MemoryError("out of memory while screening a single row")
        return real(self, low, high, *args, **options)

    monkeypatch.setattr(_screen.Screen, "_maxima", scarce)
    assert_exact(X, queries, method="brute")
    assert sizes[0] > 30 >= sizes[-1]


class Scarce(TorchDispatchMode):
    """Refuses to make room for more than 4000 numbers at once."""

    refused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        size_at = {torch.ops.aten.empty: 0, torch.ops.aten.new_empty: 1}.get(func.overloadpacket)
        if size_at is not None and np.prod(args[size_at]) > 4000:
            self.refused += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: injected")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["projection", "brute"])
@pytest.mark.parametrize("halve", [1, 10**9])
def test_no_room_for_sketches_or_maxima_costs_time_only(monkeypatch, method, halve):
    monkeypatch.setattr(_sketch, "HALVE", halve)  # bfloat16 products or none
    x = np.random.default_rng(3).normal(size=(400, 40)).astype(np.float32)
    for queries in (None, x[:90] + 1):
        with Scarce() as scarce:
            assert_exact(x, queries, method=method, chunk_size=50)
        assert scarce.refused > 1


def test_sketches_stay_within_a_quarter_of_the_features_and_a_billion(monkeypatch):
    x, refs = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)), torch.arange(3000)
    job = _pairs.Job(x, x, 2, True, 1.0, 0.25, x.mean(0).double(), None)
    assert job.room == 10**9 + 3000 * 64
    frame = _sketch.Frame(job.center, job.scale, torch.float32)
    for room in (0, 10**5, 10**9):
        monkeypatch.setattr(_pairs.Job, "room", room)
        none = _pairs.no_neighbors(3000, 2, x.device)
        kept = _screen.Screen(job, frame, refs, refs, 3000, none).refs.bytes
        assert kept <= room
        assert (kept > 0) == (room == 10**9)


@pytest.mark.parametrize(
    ("owner", "name", "method"), [(torch, "mm", "brute"), (projection, "candidates", "projection")]
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch, owner, name, method):
    monkeypatch.setattr(owner, name, Mock(side_effect=RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        kneighbors(X, 3, method=method)


def _live_numbers():
    gc.collect()
    return sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor)


def test_interrupt_leaves_nothing_behind(monkeypatch):
    before = (_live_numbers(), threading.active_count(), torch.get_num_threads())
    real = _screen.Screen._settle

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C sends
        return real(*arguments)

    monkeypatch.setattr(_screen.Screen, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kneighbors(X, 3)
    monkeypatch.undo()
    assert (_live_numbers(), threading.active_count(), torch.get_num_threads()) == before
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_inference_mode_enabled()
    assert not tqdm._instances
    assert_exact(X)


@pytest.mark.parametrize(("terminal", "delay"), [(True, 0), (False, 0), (True, _pairs.DELAY)])
def test_progress_shows_on_a_terminal_only_and_not_of_short_work(monkeypatch, terminal, delay):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(_pairs, "DELAY", delay)
    monkeypatch.setattr(sys, "stderr", stderr)
    kneighbors(X, 3, chunk_size=50)
    assert ("comparing" in stderr.getvalue()) == (terminal and not delay)
    assert delay == 0 or not stderr.getvalue()


def test_too_little_memory_to_choose_a_projection_leaves_all_dimensions(monkeypatch):
    full = Mock(side_effect=RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    monkeypatch.setattr(projection, "candidates", full)
    assert_exact(np.random.default_rng(2).normal(size=(300, 80)), method="projection")


def test_checking_features_takes_memory_that_their_number_does_not_change():
    x = torch.ones(1, 1).expand(300, 2**19)  # 600 MB, were they there
    with Largest() as largest:
        check_finite(as_matrix(x, "features"), "features")
        low, high = _extent(x, "features")
    assert largest.bytes <= 4 * 2**22
    assert bool((low == 1).all() & (high == 1).all())


@pytest.mark.parametrize("ties", ["exact", "equal roots of different squares"])
def test_neighbors_among_chosen_samples_are_the_same_in_blocks(monkeypatch, ties):
    circle = np.exp(2j * np.pi * np.arange(240) / 240).view(float).reshape(-1, 2)
    circle[121] = 0
    x = torch.from_numpy(np.round(X, 1) if ties == "exact" else circle)
    rows = torch.arange(1, len(x), 2)
    expected = torch.from_numpy(brute_neighbors(x[rows].numpy(), 4)[1])
    assert torch.equal(neighbors_among(x, rows, 4), expected)
    for entries in (1, 300):
        monkeypatch.setattr("siutils.separation.runs.BLOCK", entries)
        assert torch.equal(neighbors_among(x, rows, 4), expected)
