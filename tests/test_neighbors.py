"""kneighbors equals a float64 brute force: same indices, same bits, however it is computed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import brute_neighbors, index_values

from siutils import kneighbors
from siutils.neighbors import pairs as _pairs
from siutils.neighbors import projection
from siutils.neighbors import sketch as _sketch
from siutils.neighbors.pairs import block_neighbors, merge
from siutils.neighbors.search import METHODS
from siutils.neighbors.sketch import Frame

RNG = np.random.default_rng(0)
GAUSS = RNG.normal(size=(240, 9))
BASE = RNG.normal(size=(1, 12))
AROUND = RNG.normal(size=(6, 24, 12))
AROUND *= (1 + 1e-7 * RNG.normal(size=(6, 24, 1))) / np.linalg.norm(AROUND, axis=2, keepdims=True)
SHELLS = (8 * RNG.normal(size=(6, 1, 12)) + np.concatenate([AROUND, 0 * AROUND[:, :1]], 1)).reshape(
    -1, 12
)
CASES = {
    "gauss": GAUSS,
    "wide": RNG.normal(size=(60, 300)),  # D > N
    "one_dimension": RNG.normal(size=(200, 1)),
    "duplicates": GAUSS[RNG.integers(0, 40, 240)],
    "all_equal": np.ones((90, 5)),
    "grid": np.stack(np.meshgrid(np.arange(15.0), np.arange(15.0)), -1).reshape(-1, 2),
    "one_hot": np.eye(120),
    "offset_1e3": GAUSS.astype(np.float32) + np.float32(1e3),
    "offset_1e6": GAUSS + 1e6,
    "offset_1e6_float32": GAUSS.astype(np.float32) + np.float32(1e6),
    "scales": GAUSS * 10.0 ** np.arange(-8, 10, 2),
    "tiny": GAUSS * 1e-8,
    "huge": GAUSS * 1e8,
    "denormal": GAUSS * 1e-310,
    "denormal_float32": (GAUSS * 1e-40).astype(np.float32),
    "constant_and_zero_features": np.concatenate([GAUSS, np.zeros((240, 2)), np.ones((240, 2))], 1),
    "far_outlier": np.concatenate([GAUSS, np.full((1, 9), 1e9)]),
    "copies_and_an_outlier": np.concatenate([GAUSS[:20].repeat(6, 0), np.full((1, 9), 1e20)]),
    "near_ties": BASE + 1e-7 * RNG.normal(size=(150, 12)),
    "clusters_of_near_ties": SHELLS,
    "one_hot_off_the_lattice": np.eye(130) * 0.1,
    "float16": GAUSS.astype(np.float16),
    "uint8": RNG.integers(0, 256, (150, 20)).astype(np.uint8),
    "uint16": RNG.integers(0, 50_000, (150, 4)).astype(np.uint16),
    "big_endian": GAUSS.astype(">f4"),
    "int64": RNG.integers(-9, 9, (150, 4)),
    "bool": RNG.integers(0, 2, (100, 12)).astype(bool),
}


def check(x, k, queries=None, **options):
    found = kneighbors(x, k, queries, **options)
    distances, indices = brute_neighbors(x, k, queries)
    np.testing.assert_array_equal(found.indices.cpu().numpy(), indices)
    np.testing.assert_array_equal(found.distances.cpu().numpy(), distances)


every_case = pytest.mark.parametrize("name", [n for n in CASES if n != "denormal"])
both_methods = pytest.mark.parametrize("method", ["brute", "projection"])
has_bfloat16 = pytest.mark.skipif(
    not _sketch.has_bfloat16(torch.device("cpu")), reason="this CPU has no fast bfloat16 products"
)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:underflow")
@pytest.mark.parametrize("method", METHODS)
@every_case
def test_equals_float64_brute_force_to_the_bit(name, method):
    x = CASES[name]
    check(x, 3, method=method)
    check(x, 4, x[10:40].copy(), method=method, chunk_size=7)


@has_bfloat16
@pytest.mark.filterwarnings("ignore:overflow", "ignore:underflow")
@both_methods
@every_case
def test_bfloat16_products_change_no_bit(monkeypatch, name, method):
    monkeypatch.setattr(_sketch, "HALVE", 1)
    check(CASES[name], 3, method=method)
    check(CASES[name], 4, CASES[name][10:40].copy(), method=method)


@both_methods
@pytest.mark.parametrize("halve", [1, 10**9])
def test_sketches_without_room_are_made_anew(monkeypatch, method, halve):
    monkeypatch.setattr(_pairs.Job, "room", 0)
    monkeypatch.setattr(_sketch, "HALVE", halve)  # bfloat16 products or none
    x = RNG.normal(size=(600, 64)).astype(np.float32)
    check(x, 3, method=method)
    check(x, 3, RNG.normal(size=(90, 64)).astype(np.float32), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_denormal_features_are_scaled_where_their_squares_would_vanish(method):
    x = GAUSS * 2.0**-1040
    found = kneighbors(x, 3, method=method)
    expected = brute_neighbors(x * 2.0**1000, 3)[1]  # a power of two, exact
    np.testing.assert_array_equal(found.indices.numpy(), expected)
    assert (found.distances > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_only_true_copies_are_left_out(method):
    """Late rows that collide with a copy in the fingerprint, but before which copies are few."""
    x = np.array([[0, 0], [0, 1e-20], [0, 2e-20], [0, 3e-20], [0, 0], [1, 0]])
    check(x, 1, method=method)
    assert kneighbors(x, 1, method=method).indices[0] == 4
    late = np.concatenate([GAUSS, [GAUSS[0]], np.full((1, 9), 1e20)])
    check(late, 3, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_squares_may_leave_the_range_of_float64(method):
    for x in (
        np.concatenate([GAUSS, np.full((1, 9), 1e200)]),  # only those of one sample
        np.concatenate([GAUSS[:20].repeat(6, 0), GAUSS[:5]]) * 1e200,
    ):
        found = kneighbors(x, 3, method=method)
        distances, indices = brute_neighbors(x * 2.0**-200, 3)  # a power of two, exact
        np.testing.assert_array_equal(found.indices.numpy(), indices)
        np.testing.assert_array_equal(found.distances.numpy(), distances * 2.0**200)


def test_automatic_choice_on_a_large_set():
    """Large enough for projections: low rank and noise, with copies, near ties and an outlier."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(9000, 8)) @ rng.normal(size=(8, 64)) + 0.02 * rng.normal(size=(9000, 64))
    x[8000:8300], x[8999] = x[:300], 1e4
    x[8300:8400] = x[0] * (1 + 1e-7 * rng.normal(size=(100, 1)))
    x = x.astype(np.float32)
    found = kneighbors(x, 3)
    rows = np.r_[0:20, 4000:4020, 8000:8010, 8300:8320, 8999]
    near = brute_neighbors(x, 4, x[rows])[1]  # itself included: drop it by index
    for row, others in zip(rows, near, strict=True):
        assert found.indices[row].tolist() == [i for i in others if i != row][:3]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", ["auto", "projection", "brute"])
def test_larger_sets_for_every_chunk_and_thread_count(method, threads):
    rng = np.random.default_rng(1)
    low_rank = rng.normal(size=(4500, 6)) @ rng.normal(size=(6, 40))
    x = (low_rank + 0.05 * rng.normal(size=(4500, 40))).astype(np.float32)
    x[100:130] = x[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = kneighbors(x, 3, method=method, chunk_size=None if threads == 1 else 501)
    finally:
        torch.set_num_threads(before)
    rows = np.r_[0:140, 4400:4500]
    squared = kneighbors(x, 4, x[rows], method="exact")  # itself included: drop it by index
    for row, own, near in zip(rows, found.indices[rows].tolist(), squared.indices, strict=True):
        expected = [i for i in near.tolist() if i != row][:3]
        assert own == expected


def assert_same(found, expected):
    assert torch.equal(found.indices.cpu(), expected.indices)
    assert torch.equal(found.distances.cpu(), expected.distances)


@pytest.mark.parametrize("method", ["auto", "projection", "brute"])
@pytest.mark.parametrize(
    "setting", [torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta")]
)
def test_autocast_and_default_device_of_the_caller_change_nothing(setting, method):
    x = torch.randn(4200, 64, generator=torch.Generator().manual_seed(2))
    before, expected = x.clone(), kneighbors(x, 2, method=method)
    with setting:
        found = kneighbors(x, 2, method=method)
    assert_same(found, expected)
    assert torch.equal(x, before)


def low_precision_set():
    """Low rank plus little noise, large enough for projections, near ties and copies within."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4200, 5, generator=generator) @ torch.randn(5, 64, generator=generator)
    x += 1e-4 * torch.randn(4200, 64, generator=generator)
    x[4000:] = x[:200]
    return x


@both_methods
def test_lower_matmul_precision_of_the_caller_changes_nothing(method):
    x = low_precision_set()
    expected = kneighbors(x, 2, method=method)
    assert _sketch.full_precision(x.device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16 products where the CPU has them
    try:
        found = kneighbors(x, 2, method=method)
        assert not _sketch.full_precision(x.device)  # so these were float64 products
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same(found, expected)


@settings(max_examples=60, deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(4, 24), st.integers(1, 5)),
             elements=st.floats(-4, 4, width=16)),
    method=st.sampled_from(METHODS),
)  # fmt: skip
def test_property_any_small_matrix(x, method):
    check(x, 3, method=method)


def goes_wrong(x, method, expected):
    try:
        return not torch.equal(kneighbors(x, 2, method=method).indices, expected)
    except RuntimeError as error:  # so few are left that it shows
        return "a bound ruled out a neighbor" in str(error)


@both_methods
def test_without_its_margin_the_bound_of_products_is_wrong(monkeypatch, method):
    """The error margin earns its keep: near ties are lost as soon as it is taken away."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(1, 256)) + 1.2e-4 * rng.normal(size=(1000, 256))).astype(np.float32)
    x[0] = 4.0  # keeps the scale of the data at 1, so that float32 products are coarse
    expected = kneighbors(x, 2, method="exact").indices
    assert torch.equal(kneighbors(x, 2, method=method).indices, expected)
    monkeypatch.setattr(Frame, "gamma", 0.0)
    monkeypatch.setattr(Frame, "eta", 0.0)
    monkeypatch.setattr(_sketch, "WIDEN", 1.0)
    assert goes_wrong(x, method, expected)


@has_bfloat16
@both_methods
def test_without_its_margin_the_bound_of_bfloat16_products_is_wrong(monkeypatch, method):
    x = np.random.default_rng(6).normal(size=(1500, 64)).astype(np.float32)
    expected = kneighbors(x, 2, method="exact").indices
    monkeypatch.setattr(_sketch, "HALVE", 1)
    assert torch.equal(kneighbors(x, 2, method=method).indices, expected)
    monkeypatch.setattr(Frame, "eta", 2.0**-22)  # as if sketches were float32
    monkeypatch.setattr(Frame, "lift", 1.0)
    assert goes_wrong(x, method, expected)


@both_methods
def test_without_its_margin_the_bound_of_differences_is_wrong(monkeypatch, method):
    """Points around each center, as far from it as float32 can tell: float64 must decide."""
    rng = np.random.default_rng(4)
    around = rng.normal(size=(30, 40, 64))
    around /= np.linalg.norm(around, axis=2, keepdims=True)
    center = 8 * rng.normal(size=(30, 1, 64))
    x = np.concatenate([center, center + around], 1).reshape(-1, 64).astype(np.float32)
    expected = kneighbors(x, 2, method="exact").indices
    assert torch.equal(kneighbors(x, 2, method=method).indices, expected)
    gamma = property(lambda frame: 1.01 * (frame.width + 4) * frame.roundoff)
    monkeypatch.setattr(Frame, "gamma", gamma)  # products keep theirs
    monkeypatch.setattr(_sketch, "summation", lambda terms, roundoff: 0.0)
    assert goes_wrong(x, method, expected)


@pytest.mark.parametrize("method", ["auto", "projection", "brute"])
def test_thousands_of_equal_distances(method):
    """One-hot rows: all are equally far, so the lowest indices win. And a grid, by the oracle."""
    found = kneighbors(torch.eye(2000), 2, method=method)
    expected = torch.tensor([[0, 1]]).repeat(2000, 1)
    expected[0], expected[1] = torch.tensor([1, 2]), torch.tensor([0, 2])
    assert torch.equal(found.indices, expected)
    assert (found.distances == np.sqrt(2.0)).all()
    side = np.arange(66.0)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * 0.25 + 1e6
    check(grid, 4, method=method)


def test_products_decide_only_where_they_are_exact():
    """One value that is no multiple of the others' unit, and float64 differences decide again."""
    x = np.eye(130)
    x[7, 7] += 2.0**-50
    assert _pairs._lattice(job_of(np.eye(130))) is not None
    assert _pairs._lattice(job_of(x)) is None
    assert _pairs._lattice(job_of(np.eye(130) + 2.0**40)) is None  # its digits leave no room
    check(x, 3)
    check(np.eye(130) + 2.0**40, 3)


def job_of(x):
    x = torch.from_numpy(x)
    return _pairs.Job(x, x, 1, True, 1.0, 1.0, x.mean(0), None)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(5, 200), st.sampled_from([1, 2, 7, 40])),
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=4),
    digits=st.sampled_from([1, 3, 17]),
    copies=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    method=st.sampled_from(METHODS),
)
def test_property_mixed_scales_copies_and_queries(
    seed, shape, exponents, digits, copies, dtype, method
):
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=shape), digits)
    x *= 10.0 ** rng.choice(exponents, size=(len(x), 1))
    x = x[rng.integers(0, len(x) // 3 + 1, len(x))] if copies else x
    x = x.astype(dtype)
    check(x, 3, method=method)
    check(x, 4, x[rng.permutation(len(x))[:9]], method=method)


@settings(max_examples=100, deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(9, 24), st.integers(1, 5)),
             elements=st.floats(-4, 4, width=16)),
    cuts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    k=st.integers(1, 8),
    order=st.permutations(range(3)),
)  # fmt: skip
def test_property_blocks_merge_in_any_order_and_grouping(x, cuts, k, order):
    """Blocks of references, some empty or smaller than k, equal ones among them."""
    first, second = sorted(cuts)
    x = torch.from_numpy(x)
    parts = [(0, first), (first, second), (second, len(x))]
    a, b, c = (
        block_neighbors(x, x[parts[i][0] : parts[i][1]], k, first_query=0, first=parts[i][0])
        for i in order
    )
    distances, indices = brute_neighbors(x.numpy(), k)
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c))):
        np.testing.assert_array_equal(merged.indices.numpy(), indices)
        # not torch.sqrt, which can be off by a bit on the CPU
        np.testing.assert_array_equal(np.sqrt(merged.distances.numpy()), distances)


def test_duplicates_of_the_same_and_of_other_classes():
    """Self is dropped by index, so a duplicate counts, whatever its class."""
    x = np.concatenate([GAUSS[:60], GAUSS[:60], GAUSS[:20]])
    labels = np.r_[np.arange(60) % 3, np.arange(60) % 3, np.arange(20) % 2]
    found = labels[kneighbors(x, 2).indices.numpy()] == labels[:, None]
    expected = index_values(x, labels, 2)
    np.testing.assert_array_equal(found[:, 0], expected["si"])
    np.testing.assert_array_equal(found.all(1), expected["high_order_si"])


def test_memory_maps_read_only_and_strided_input(tmp_path):
    np.save(tmp_path / "x.npy", CASES["gauss"])
    check(np.load(tmp_path / "x.npy", mmap_mode="r"), 2)
    frozen = GAUSS.copy()
    frozen.flags.writeable = False
    check(frozen, 2)
    check(GAUSS[::2, ::-1], 2)
    bfloat = torch.from_numpy(GAUSS).bfloat16()
    expected = brute_neighbors(bfloat.double().numpy(), 2)[1]
    np.testing.assert_array_equal(kneighbors(bfloat, 2).indices.numpy(), expected)


X = GAUSS[:10]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kneighbors(X, 10), ValueError, "k=10 neighbors were asked for"),
        (lambda: kneighbors(X[:1], 1), ValueError, "each sample has only 0"),
        (lambda: kneighbors(X, 0), ValueError, "k must be at least 1"),
        (lambda: kneighbors(X, 1.0), TypeError, "k must be an integer"),
        (lambda: kneighbors(X, True), TypeError, "k must be an integer"),
        (lambda: kneighbors(X[0], 1), ValueError, "features must have shape"),
        (lambda: kneighbors(X[:, :0], 1), ValueError, "features must have shape"),
        (lambda: kneighbors(X, 1, X[:, :3]), ValueError, "queries have 3 dimensions"),
        (lambda: kneighbors(np.where(X[4, 0] == X, np.nan, X), 1), ValueError, "row 4 has NaN"),
        (lambda: kneighbors(X, 1, X / 0.0), ValueError, "queries must be finite"),
        (lambda: kneighbors(X.astype(complex), 1), TypeError, "features must be real numbers"),
        (lambda: kneighbors(X.astype(str), 1), TypeError, "features must be real numbers"),
        (lambda: kneighbors(X, 1, method="tree"), ValueError, "method must be one of"),
        (lambda: kneighbors(X, 1, chunk_size=0), ValueError, "chunk_size must be at least 1"),
    ],
)
def test_wrong_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_cuda_equals_cpu_to_the_bit(name):
    cpu, gpu = (kneighbors(CASES[name], 3, device=d) for d in ("cpu", "cuda"))
    assert_same(gpu, cpu)


@pytest.mark.cuda
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("method", ["auto", "projection", "brute"])
def test_cuda_equals_cpu_on_larger_sets_even_with_tf32_on(method, tf32):
    x = low_precision_set()
    expected = kneighbors(x, 3, method="exact")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        found = kneighbors(x.cuda(), 3, method=method)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert_same(found, expected)


def test_far_samples_share_blocks_and_the_others_are_mixed():
    x = RNG.normal(size=(400, 6))
    x[::40] *= 1000  # in every block of 40 one, were the order that of the samples
    order = _pairs.scattered(job_of(x), torch.arange(1, 400))
    assert sorted(order.tolist()) == list(range(1, 400))
    assert set(order[-9:].tolist()) == set(range(40, 400, 40))
    assert (order[:-9].diff() > 0).double().mean() < 0.6
    check(x, 3, method="brute")
    check(x, 3, method="projection")


@has_bfloat16
@pytest.mark.parametrize("rank", [1, 64])
def test_bfloat16_is_looked_at_only_where_neighbors_are_not_closer_than_it_tells(rank):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3000, rank, generator=generator) @ torch.randn(rank, 64, generator=generator)
    base = Frame(x.mean(0).double(), 2.0**-4, torch.float32)
    assert projection.choose(x, 2, base, True, 170, 10**9).sieve == (rank == 64)
