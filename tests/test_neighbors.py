"""kneighbors equals a float64 brute force: same indices, same bits, however it is computed."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import brute_neighbors

from siutils import kneighbors
from siutils.neighbors import sketch as _sketch
from siutils.neighbors.pairs import block_neighbors, merge
from siutils.neighbors.search import METHODS
from siutils.neighbors.sketch import Frame

RNG = np.random.default_rng(0)
GAUSS = RNG.normal(size=(240, 9))
BASE = RNG.normal(size=(1, 12))
AROUND = RNG.normal(size=(6, 24, 12))
AROUND *= (1 + 1e-7 * RNG.normal(size=(6, 24, 1))) / np.linalg.norm(AROUND, axis=2, keepdims=True)
CENTERS = 8 * RNG.normal(size=(6, 1, 12))
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
    "a_copy_and_an_outlier": np.concatenate([GAUSS, [GAUSS[0]], np.full((1, 9), 1e20)]),
    "every_40th_is_far": GAUSS * np.where(np.arange(240) % 40, 1, 1000)[:, None],
    "near_ties": BASE + 1e-7 * RNG.normal(size=(150, 12)),
    "clusters_of_near_ties": np.concatenate([CENTERS, CENTERS + AROUND], 1).reshape(-1, 12),
    "one_hot_off_the_lattice": np.eye(130) * 0.1,
    "turned_one_hot": np.linalg.qr(RNG.normal(size=(130, 130)))[0],  # equal but for rounding
    "one_hot_far_from_zero": np.eye(130) + 2.0**40,
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
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_array_equal(found.distances.numpy(), distances)


def assert_same(found, expected):
    assert torch.equal(found.indices.cpu(), expected.indices)
    assert torch.equal(found.distances.cpu(), expected.distances)


every_case = pytest.mark.parametrize("name", [n for n in CASES if n != "denormal"])
every_method = pytest.mark.parametrize("method", METHODS)
fast_methods = pytest.mark.parametrize("method", ["auto", "projection", "brute"])
both_methods = pytest.mark.parametrize("method", ["brute", "projection"])
has_bfloat16 = pytest.mark.skipif(
    not _sketch.has_bfloat16(torch.device("cpu")), reason="this CPU has no fast bfloat16 products"
)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:underflow")
@every_method
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


@every_method
def test_only_true_copies_are_left_out(method):
    """Late rows that collide with a copy in the fingerprint, but before which copies are few."""
    check(np.array([[0, 0], [0, 1e-20], [0, 2e-20], [0, 3e-20], [0, 0], [1, 0]]), 1, method=method)


@every_method
@pytest.mark.parametrize(
    ("x", "exponent"),
    [
        (GAUSS * 2.0**-1040, -1000),  # denormal: squares would vanish
        (np.concatenate([GAUSS, np.full((1, 9), 1e200)]), 200),  # only those of one sample overflow
        (np.concatenate([GAUSS[:20].repeat(6, 0), GAUSS[:5]]) * 1e200, 200),
    ],
)
def test_squares_may_leave_the_range_of_float64(x, exponent, method):
    found = kneighbors(x, 3, method=method)
    distances, indices = brute_neighbors(x * 2.0**-exponent, 3)  # a power of two, exact
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_array_equal(found.distances.numpy(), distances * 2.0**exponent)


@pytest.mark.parametrize(("threads", "chunk_size"), [(1, None), (2, 501)])
@fast_methods
def test_large_sets_for_every_chunk_and_thread_count(one_thread, method, threads, chunk_size):
    """Large enough for projections: low rank and noise, with copies, near ties and an outlier."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(9000, 8)) @ rng.normal(size=(8, 64)) + 0.02 * rng.normal(size=(9000, 64))
    x[8000:8300], x[8999] = x[:300], 1e4
    x[8300:8400] = x[0] * (1 + 1e-7 * rng.normal(size=(100, 1)))
    x[100:130] = x[0]
    x = x.astype(np.float32)
    found = kneighbors(x, 3, method=method, chunk_size=chunk_size).indices
    rows = np.r_[0:20, 100:130, 4000:4020, 8000:8010, 8300:8320, 8999]
    near = brute_neighbors(x, 4, x[rows])[1]  # itself included: drop it by index
    for row, others in zip(rows, near, strict=True):
        assert found[row].tolist() == [i for i in others if i != row][:3]


def low_precision_set():
    """Low rank plus little noise, large enough for projections, near ties and copies within."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4200, 5, generator=generator) @ torch.randn(5, 64, generator=generator)
    x += 1e-4 * torch.randn(4200, 64, generator=generator)
    x[4000:] = x[:200]
    return x


@contextmanager
def medium_precision():
    """Float32 products by bfloat16 where the CPU has them, as a caller may have set it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
        assert not _sketch.full_precision(torch.device("cpu"))  # so these were float64 products
    finally:
        torch.set_float32_matmul_precision(before)


@fast_methods
@pytest.mark.parametrize(
    "setting",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        medium_precision,
    ],
)
def test_settings_of_the_caller_change_nothing(setting, method):
    x = low_precision_set()
    before, expected = x.clone(), kneighbors(x, 2, method=method)
    with setting():
        found = kneighbors(x, 2, method=method)
    assert_same(found, expected)
    assert torch.equal(x, before)


def small_matrices(least_rows):
    shapes = st.tuples(st.integers(least_rows, 24), st.integers(1, 5))
    return arrays(np.float32, shapes, elements=st.floats(-4, 4, width=16))


@settings(max_examples=60, deadline=None)
@given(x=small_matrices(4), method=st.sampled_from(METHODS))
def test_property_any_small_matrix(x, method):
    check(x, 3, method=method)


def assert_needs(margins, x, method, monkeypatch):
    """Neighbors are right, and near ties are lost as soon as these margins are replaced."""
    expected = kneighbors(x, 2, method="exact").indices
    assert torch.equal(kneighbors(x, 2, method=method).indices, expected)
    for (owner, name), value in margins.items():
        monkeypatch.setattr(owner, name, value)
    try:
        found = kneighbors(x, 2, method=method).indices
    except RuntimeError as error:
        if "a bound ruled out a neighbor" not in str(error):  # so few are left that it shows
            raise
    else:
        assert not torch.equal(found, expected)


@both_methods
def test_without_its_margin_the_bound_of_products_is_wrong(monkeypatch, method):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(1, 256)) + 1.2e-4 * rng.normal(size=(1000, 256))).astype(np.float32)
    x[0] = 4.0  # keeps the scale of the data at 1, so that float32 products are coarse
    margins = {(Frame, "gamma"): 0.0, (Frame, "eta"): 0.0, (_sketch, "WIDEN"): 1.0}
    assert_needs(margins, x, method, monkeypatch)


@has_bfloat16
@both_methods
def test_without_its_margin_the_bound_of_bfloat16_products_is_wrong(monkeypatch, method):
    x = np.random.default_rng(6).normal(size=(1500, 64)).astype(np.float32)
    monkeypatch.setattr(_sketch, "HALVE", 1)
    as_if_float32 = {(Frame, "eta"): 2.0**-22, (Frame, "lift"): 1.0}
    assert_needs(as_if_float32, x, method, monkeypatch)


@both_methods
def test_without_its_margin_the_bound_of_differences_is_wrong(monkeypatch, method):
    """Points around each center, as far from it as float32 can tell: float64 must decide."""
    rng = np.random.default_rng(4)
    around = rng.normal(size=(30, 40, 64))
    around /= np.linalg.norm(around, axis=2, keepdims=True)
    center = 8 * rng.normal(size=(30, 1, 64))
    x = np.concatenate([center, center + around], 1).reshape(-1, 64).astype(np.float32)
    gamma = property(lambda frame: 1.01 * (frame.width + 4) * frame.roundoff)  # of products: kept
    margins = {(Frame, "gamma"): gamma, (_sketch, "summation"): lambda terms, roundoff: 0.0}
    assert_needs(margins, x, method, monkeypatch)


@fast_methods
def test_thousands_of_equal_distances(method):
    side = np.arange(66.0)
    check(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * 0.25 + 1e6, 4, method=method)


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
    x=small_matrices(9),
    cuts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    k=st.integers(1, 8),
    order=st.permutations(range(3)),
)
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


def test_memory_maps_strided_input_and_bfloat16(tmp_path):
    np.save(tmp_path / "x.npy", GAUSS)
    check(np.load(tmp_path / "x.npy", mmap_mode="r"), 2)
    check(GAUSS[::2, ::-1], 2)
    bfloat = torch.from_numpy(GAUSS).bfloat16()
    assert_same(kneighbors(bfloat, 2), kneighbors(bfloat.double(), 2))


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
@fast_methods
def test_cuda_equals_cpu_on_larger_sets_even_with_tf32_on(monkeypatch, method, tf32):
    x = low_precision_set()
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    assert_same(kneighbors(x.cuda(), 3, method=method), kneighbors(x, 3, method="exact"))
