"""Features and labels in the forms that people have: what each is taken for, or what is said.

The ids of these tests make the table in docs/inputs.md: input -> what happens.
"""

import datetime
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from reference import center_values, index_values
from torchmetrics import MetricTracker
from torchmetrics.wrappers import BootStrapper

from siutils import SeparationIndex, SeparationIndexMetric, kneighbors
from siutils.core import as_labels, as_matrix, joint_labels, parse_labels

X = np.array([[1.0, 2.0], [3.0, 4.0]])
FRAME = pd.DataFrame(X, columns=["a", "b"])


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FEATURES = {
    "a DataFrame -> a column per feature": (FRAME, X),
    "a DataFrame with nullable numbers -> their values": (FRAME.astype("Float64"), X),
    "a DataFrame with booleans beside numbers -> 0 and 1": (
        pd.DataFrame({"a": [True, False], "b": [1.5, 2.0]}), [[1.0, 1.5], [0.0, 2.0]],
    ),
    "a Series of arrays -> a sample per array": (pd.Series(list(X)), X),
    "a column of lists -> a sample per list": (pd.DataFrame({"emb": X.tolist()}), X),
    "a list of tensors (D,) -> a sample per tensor": ([torch.tensor(row) for row in X], X),
    "a list of tensors (B, D) -> batches, one behind the other": (
        [torch.tensor(X[:1]), torch.tensor(X[1:])], X,
    ),
    "a list of arrays (B, D) -> batches, one behind the other": ([X[:1], X[1:]], X),
    "big-endian numbers -> their values": (X.astype(">f4"), X),
    "an array with negative strides -> its values": (X[::-1, ::-1], X[::-1, ::-1]),
    "long double -> rounded to float64": (X.astype(np.longdouble), X),
    "booleans -> 0 and 1": (X > 1, (X > 1).astype(int)),
    "Python numbers in an object array -> their values": (X.astype(object), X),
    "float8 -> float32": (torch.tensor(X).to(torch.float8_e4m3fn), X),
    "uint16, uint32, uint64 -> their values": (X.astype(np.uint64), X),
    "a tensor that requires a gradient -> its values": (torch.tensor(X, requires_grad=True), X),
    "an output with a graph -> its values": (torch.tensor(X, requires_grad=True) * 2, X * 2),
    "a quantized tensor -> its values": (
        torch.quantize_per_tensor(torch.tensor(X).float(), 1.0, 0, torch.qint8), X,
    ),
    "a sparse matrix of SciPy -> dense, a part at a time": (scipy.sparse.csr_matrix(X), X),
    "a sparse tensor -> dense": (torch.tensor(X).to_sparse(), X),
    "a read-only array -> its values, without a warning": (read_only(X), X),
    "(N, D, 1, 1), as pooling layers return it -> (N, D)": (X[:, :, None, None], X),
}  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), FEATURES.values(), ids=FEATURES)
def test_features(values, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = as_matrix(values, "features")
    assert matrix.dim() == 2
    assert not matrix.requires_grad
    np.testing.assert_array_equal(matrix.double().numpy(), expected)
    two = kneighbors(values, 1)
    assert two.indices.tolist() == [[1], [0]]


BAD_FEATURES = {
    "(N, C, H, W) -> refused; the error says how to flatten": (
        np.ones((2, 3, 4, 4)), ValueError, r"got \(2, 3, 4, 4\): features.reshape\(2, -1\)",
    ),
    "one number per sample, (N,) -> refused; the error says what to write": (
        np.ones(3), ValueError, r"got \(3,\): features.reshape\(-1, 1\)",
    ),
    "integers beyond 2^53 -> refused, as float64 would round them": (
        np.array([[2**53 + 2]]), ValueError, r"integers beyond 2\^53",
    ),
    "uint64 beyond 2^63 -> refused, as float64 would round them": (
        np.array([[2**63 + 1]], dtype=np.uint64), ValueError, r"integers beyond 2\^53",
    ),
    "a DataFrame with a column of text -> refused by its name": (
        FRAME.assign(b=["x", "y"]), TypeError, "column 'b' must be numeric",
    ),
    "text, also of digits -> refused": (np.array([["1", "2"]]), TypeError, "real numbers"),
    "text in an object array -> refused": (
        np.array([["1", 2]], dtype=object), TypeError, "real numbers",
    ),
    "complex numbers -> refused": (X + 1j, TypeError, "real numbers"),
    "lists of different lengths -> refused": ([[1, 2], [3]], TypeError, "real numbers"),
    "None -> refused": (None, (TypeError, ValueError), "features must"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "error", "message"), BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_features_that_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        as_matrix(values, "features")


DAYS = np.array(["2024-01-02", "2024-01-01"], dtype="datetime64[D]")
LABELS = {  # the codes, and the names where they are no integers
    "integers -> as they are, gaps and negative ones too": ([7, -1], [7, -1], None),
    "whole floats -> integers": (np.array([1.0, 2.0]), [1, 2], None),
    "bfloat16 -> integers": (torch.tensor([1.0, 0.0]).bfloat16(), [1, 0], None),
    "big-endian and reversed integers -> their values": (
        np.array([1, 2], ">i4")[::-1], [2, 1], None,
    ),
    "uint64 beyond 2^63 -> classes of that value": (
        np.array([2**64 - 1, 1], dtype=np.uint64), [1, 0], [1, 2**64 - 1],
    ),
    "a list of strings -> names": (["cat", "ant", "cat"], [1, 0, 1], ["ant", "cat"]),
    "strings of digits -> names": (["01", "1"], [0, 1], ["01", "1"]),
    "an object array of strings -> names": (
        np.array(["x", "y"], dtype=object), [0, 1], ["x", "y"],
    ),
    "bytes -> names": (np.array([b"x", b"y"]), [0, 1], ["x", "y"]),
    "booleans -> the classes False and True": ([True, False], [1, 0], [False, True]),
    "one-hot rows -> the place of the 1": (np.eye(3), [0, 1, 2], None),
    "a one-hot DataFrame -> names of its columns": (
        pd.get_dummies(pd.Series(["u", "v", "u"])), [0, 1, 0], ["u", "v"],
    ),
    "(N, 1) -> (N,)": (np.array([[1], [2]]), [1, 2], None),
    "a filtered Series -> by position": (pd.Series([5, 6, 7])[[2, 0]], [7, 5], None),
    "a nullable Series -> its values": (pd.Series([3, 1], dtype="Int64"), [3, 1], None),
    "a categorical column of names -> names in alphabetical order": (
        pd.Series(["b", "a"]).astype(pd.CategoricalDtype(["b", "a", "c"])), [1, 0], ["a", "b"],
    ),
    "a categorical column of integers -> integers": (
        pd.Series([5, 7], dtype="category"), [5, 7], None,
    ),
    "dates -> classes in the order of time": (DAYS, [1, 0], np.sort(DAYS)),
    "a list of dates -> classes in the order of time": (
        [datetime.date(2024, 1, 2), datetime.date(2024, 1, 1)], [1, 0], np.sort(DAYS),
    ),
    "a list of numbers as tensors -> integers": (
        [torch.tensor(1), torch.tensor(0)], [1, 0], None,
    ),
    "a list of batches -> one behind the other": (
        [torch.tensor([1, 2]), torch.tensor([3])], [1, 2, 3], None,
    ),
    "a generator -> its values": ((i for i in (2, 1)), [2, 1], None),
    "a DataFrame with one column -> its values": (
        pd.DataFrame({"y": ["a", "b"]}), [0, 1], ["a", "b"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "codes", "names"), LABELS.values(), ids=LABELS)
def test_labels(values, codes, names):
    labels = as_labels(values)
    assert labels.codes.tolist() == codes
    assert labels.codes.dtype == torch.int64
    if names is None:
        assert labels.names is None
    else:
        np.testing.assert_array_equal(labels.names, names)


BAD_LABELS = {
    "fractions -> refused": ([0.5, 1.0], TypeError, r"labels\[0\] is 0.5"),
    "names and numbers in one list -> refused": (
        ["a", 1],
        TypeError,
        "of one kind; got integers and others",
    ),
    "None or NaN among labels -> refused with the place": (
        ["a", None],
        ValueError,
        r"labels\[1\] is missing",
    ),
    "a missing value of pandas -> refused with the place": (
        pd.Series([1, None], dtype="Int64"),
        ValueError,
        r"labels\[1\] is missing",
    ),
    "an empty name -> refused with the place": (["a", " "], ValueError, r"labels\[1\] .* empty"),
    "rows that are not one-hot, such as soft labels -> refused": (
        [[0.5, 0.5], [1, 0]],
        ValueError,
        "one-hot",
    ),
    "a set, a dictionary, a string -> refused, as they have no order of samples": (
        {1, 2},
        TypeError,
        "in the order of the samples; got set",
    ),
    "complex numbers -> refused": ([1j], TypeError, "all of one kind; got complex"),
    "no label at all -> refused": ([], ValueError, r"N ≥ 1; got \(0,\)"),
}


@pytest.mark.parametrize(("values", "error", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        as_labels(values)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["1", "2"], [1, 2]),
        (["1.0", "2.0"], [1, 2]),
        (["-1", "1"], [-1, 1]),
        (["01", "1"], ["01", "1"]),
        (
            ["nan", "NA", "None", "01", "1", "1e5", "cat"],
            ["nan", "NA", "None", "01", "1", "1e5", "cat"],
        ),
        (["1e5", "2"], [100_000, 2]),
    ],
)
def test_labels_that_were_written_as_text(column, expected):
    assert parse_labels(column)[0].tolist() == expected


def test_text_of_two_sets_is_read_alike():
    first, second = parse_labels(["1", "2"], ["1", "other"])
    assert first.tolist() == ["1", "2"]
    assert second.tolist() == ["1", "other"]
    for column, message in ((["1", ""], r"labels\[1\] is missing"), (["1", "nan"], r"labels\[1\]")):
        with pytest.raises(ValueError, match=message):
            parse_labels(column)
    with pytest.raises(TypeError, match=r"0\.5"):
        parse_labels(["0.5", "1"])


def data(n=40):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return rng.normal(size=(n, 4)) + y[:, None], y


NAMES = np.array(["bee", "ant", "cat"])


def test_names_are_kept_everywhere():
    x, y = data()
    by_code = SeparationIndex(x, y)
    s = SeparationIndex(x, NAMES[y])
    assert s.classes.tolist() == ["ant", "bee", "cat"]
    order = np.argsort(NAMES)
    np.testing.assert_array_equal(s.si(per="class"), by_code.si(per="class")[order])
    assert s.confusion().index.tolist() == ["ant", "bee", "cat"]
    assert s.confusion(2).loc["bee", "cat"] == by_code.confusion(2).loc[0, 2]
    for table, known in (
        (s.hardest(3), by_code.hardest(3)),
        (s.label_errors(5), by_code.label_errors(5)),
        (s.neighbor_table([4, 1]), by_code.neighbor_table([4, 1])),
    ):
        assert table["label"].tolist() == NAMES[known["label"]].tolist()
    classes = s.compare(SeparationIndex(x[:, :1], NAMES[y])).classes
    assert classes["label"].tolist() == ["ant", "bee", "cat"]
    cross = s.cross(x[:9], [*NAMES[y[:8]], "dog"])
    assert cross.missing_classes.tolist() == ["dog"]
    assert cross.si() == by_code.cross(x[:9], [*y[:8], 9]).si()
    with pytest.raises(ValueError, match="labels differ at sample 0"):
        s.compare(SeparationIndex(x, y))
    with pytest.raises(
        TypeError, match=r"labels must be of one kind: labels hold .*, but test_labels hold int64"
    ):
        s.cross(x, y)
    assert SeparationIndex(x, y).classes.tolist() == [0, 1, 2]


def test_columns_of_two_tables_are_matched_by_name():
    x, y = data()
    frame = pd.DataFrame(x, columns=list("abcd"))
    s = SeparationIndex(frame, y, normalize=True)
    test = frame[list("dbca")].iloc[:9]
    assert s.cross(test, y[:9]).si() == s.cross(x[:9], y[:9]).si()
    with pytest.raises(ValueError, match=r"lacks \['a'\] and has \['z'\]"):
        s.cross(test.rename(columns={"a": "z"}), y[:9])


def test_what_the_caller_changes_afterwards_changes_nothing():
    x, y = data()
    tensor, labels = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())
    s = SeparationIndex(tensor, labels)
    cross = s.cross(tensor[:9], labels[:9])
    tensor.zero_(), labels.zero_()
    known = SeparationIndex(x, y)
    assert s.si() == known.si()
    assert s.high_order_si(2, per="sample").equal(known.high_order_si(2, per="sample"))
    assert cross.anti_si(2) == known.cross(x[:9], y[:9]).anti_si(2)
    kept = SeparationIndex(tensor, labels, copy=False)
    assert kept._features.data_ptr() == tensor.data_ptr()


def test_a_memory_map_is_not_copied_and_must_not_shrink(tmp_path):
    x, y = data()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    s = SeparationIndex(mapped, y)
    assert s._features.data_ptr() == mapped.ctypes.data
    assert s.si() == SeparationIndex(x, y).si()
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"x\.npy must hold 1,408 bytes, but has 200 now"):
        s.high_order_si(3)


def test_constant_features_keep_their_unit_and_are_counted():
    x, y = data()
    flat = np.hstack([x, np.full((40, 1), 0.1)])
    test = np.hstack([x[:20] + 0.01, np.arange(20)[:, None] % 2])  # varies among these only
    s = SeparationIndex(flat, y, normalize=True)
    mean, std = x.mean(0), x.std(0, ddof=1) + 1e-10
    scaled = np.hstack([(x - mean) / std, np.zeros((40, 1))])
    queries = np.hstack([(test[:, :4] - mean) / std, test[:, 4:] - 0.1])
    known = index_values(scaled, y, 2, queries, y[:20])
    cross = s.cross(test, y[:20])
    assert cross.si() == known["si"].mean()
    assert cross.center_si() == center_values(scaled, y, queries, y[:20]).mean()
    for report in (s.report(), cross.report()):
        assert report["n_constant"].tolist() == [1] * len(report)
    assert "n_constant" not in SeparationIndex(flat, y).report()


@pytest.mark.parametrize("power", [153, 200, 300, -80])
def test_z_scores_of_values_whose_squares_leave_float64(power):
    x, y = data()
    known = SeparationIndex(x, y, normalize=True).si(per="sample")
    huge = SeparationIndex(x * 10.0**power, y, normalize=power > 0)
    if power > 0:
        assert huge.si(per="sample").equal(known)
    with pytest.raises(ValueError, match="features span more than float64 can hold"):
        SeparationIndex([[1.7e308], [-1.7e308], [0.0]], [0, 1, 1], normalize=True)


def test_tensors_of_inference_mode_and_meta_defaults():
    x, y = data()
    with torch.inference_mode():
        s = SeparationIndex(torch.from_numpy(x), y, normalize=True)
    with torch.autocast("cpu"):
        assert s.report(2)["value"].equals(SeparationIndex(x, y, normalize=True).report(2)["value"])


def test_joint_labels_keep_integers():
    first, second = as_labels([3, 1]), as_labels(np.array([1, 9]))
    assert joint_labels(first, second, "a", "b") == (first, second)


METRIC = {
    "torchmetrics: one-hot or (B, 1) labels -> integers": (np.eye(3)[data()[1]], None),
    "torchmetrics: whole floats -> integers": (data()[1].astype(float), None),
    "torchmetrics: names -> refused, as batches know nothing of each other": (
        NAMES[data()[1]], "labels must be integers in a metric",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "message"), METRIC.values(), ids=METRIC)
def test_labels_of_the_metric(labels, message):
    x, y = data()
    metric = SeparationIndexMetric()
    if message:
        with pytest.raises(TypeError, match=message):
            metric.update(torch.from_numpy(x), labels)
        return
    metric.update(torch.from_numpy(x), labels)
    assert metric.compute()["si"] == SeparationIndex(x, y).si()


def test_the_metric_in_a_training_loop():
    x, y = (torch.from_numpy(each) for each in data())
    metric = SeparationIndexMetric()
    values = [metric(x[start : start + 13], y[start : start + 13]) for start in (0, 13, 26)]
    assert values[1]["si"] == SeparationIndex(x[13:26], y[13:26]).si()
    assert metric(x[39:], y[39:]) == {}  # one sample has no neighbor
    assert metric(x[39], y[39]) == {}
    assert metric.compute()["si"] == SeparationIndex(torch.cat([x, x[39:]]), [*y, y[39]]).si()
    figure, _ = metric.plot()
    assert figure is not None


def test_the_metric_in_wrappers_of_torchmetrics():
    x, y = (torch.from_numpy(each) for each in data())
    tracker = MetricTracker(SeparationIndexMetric(index="anti_si"))
    for part in (slice(0, 20), slice(0, 40)):
        tracker.increment()
        tracker.update(x[part], y[part])
    expected = [SeparationIndex(x[:n], y[:n]).anti_si(2) for n in (20, 40)]
    assert tracker.compute_all().tolist() == pytest.approx(expected)
    assert tracker.best_metric() == pytest.approx(min(expected))
    bootstrap = BootStrapper(SeparationIndexMetric(index="si"), num_bootstraps=3)
    bootstrap.update(x, y)
    with pytest.warns(UserWarning, match="of the samples have an exact copy"):
        assert bootstrap.compute()["mean"] > SeparationIndex(x, y).si()
