"""Each format gives back what was written; what is missing or unsafe is one error with the file."""

import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from harmful import Harmful

from siutils.core.array_files import InputError, label_codes, read_features, read_labels

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.array([2, 0, 2, 5, 5, 0])


def write(folder, suffix, labels=True):
    path = folder / f"samples{suffix}"
    named = {"features": X, "labels": Y} if labels else {"features": X}
    if suffix == ".npz":
        np.savez(path, **named)
    elif suffix == ".pt":
        torch.save({name: torch.from_numpy(array) for name, array in named.items()}, path)
    else:
        table = pd.DataFrame(X, columns=["a", "b", "c"])
        if labels:
            table.insert(1, "label", Y)
        table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    return path


@pytest.fixture(params=[".npz", ".pt", ".csv", ".parquet"])
def suffix(request):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    return request.param


def test_features_and_labels_of_one_file(tmp_path, suffix):
    features, labels = read_features(write(tmp_path, suffix))
    np.testing.assert_allclose(features, X, rtol=1e-6)
    np.testing.assert_array_equal(labels, Y)
    np.testing.assert_array_equal(read_labels(write(tmp_path, suffix)), Y)


def test_a_file_without_labels_says_so(tmp_path, suffix):
    path = write(tmp_path, suffix, labels=False)
    assert read_features(path)[1] is None
    with pytest.raises(InputError, match=r"samples.*: no labels in it; it holds 'features'"):
        read_labels(path)


def test_single_arrays_need_no_name(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", X)
    torch.save(torch.from_numpy(X), tmp_path / "x.pt")
    pd.DataFrame({"anything": Y}).to_csv(tmp_path / "y.csv", index=False)
    for name in ("x.npy", "x.npz", "x.pt"):
        features, labels = read_features(tmp_path / name)
        np.testing.assert_array_equal(features, X)
        assert labels is None
        np.testing.assert_array_equal(read_labels(tmp_path / name), X)
    np.testing.assert_array_equal(read_labels(tmp_path / "y.csv"), Y)


def test_npy_is_memory_mapped_and_stays_as_it_is(tmp_path):
    np.save(tmp_path / "x.npy", X)
    features, _ = read_features(tmp_path / "x.npy")
    assert isinstance(features, np.memmap)
    features[0, 0] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), X)


def test_class_names_become_codes_shared_by_both_sets():
    names = np.array(["cat", "ant", "cat"], dtype=object), np.array(["bee", "cat"])
    assert [codes.tolist() for codes in label_codes(*names)] == [[2, 0, 2], [1, 2]]
    assert label_codes(Y)[0] is Y


BAD = {  # what else than a text to write into a file
    "list": lambda path: torch.save([torch.zeros(2)], path),
    "saved pickle": lambda path: torch.save({"features": Harmful(path.parent / "harm")}, path),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Harmful(path.parent / "harm"))),
    "objects": lambda path: np.save(path, np.array([Harmful(path.parent / "harm")])),
    "other names": lambda path: np.savez(path, x=X, y=Y),
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", "saved pickle", "more than arrays in it; nothing was run"),
        ("a.pt", "plain pickle", "more than arrays in it; nothing was run"),
        ("a.pt", "list", "a tensor or a dict of tensors was expected, got list"),
        ("a.npy", "objects", "cannot be read: Array can't be memory-mapped: Python objects"),
        ("a.npy", "nonsense", "cannot be read"),
        ("a.npz", "nonsense", "cannot be read"),
        ("a.npz", "other names", "no features in it; it holds 'x', 'y'"),
        ("a.csv", "", "cannot be read: No columns to parse"),
        ("a.csv", "1,2\n3,4\n", "the first line must name the columns, but holds numbers"),
        ("a.csv", "a,b,label\n1,x,0\n", "column 'b' must be numeric"),
        ("a.csv", "a,label\n1,0\n2,\n", "label is missing in row 1"),
        ("a.csv", "label\n1\n", "no features in it; it holds 'labels'"),
        ("a.txt", "1 2 3", "the suffix must be one of .npz, .npy, .pt, .parquet, .csv"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    BAD.get(content, lambda path: path.write_text(content))(path)
    with pytest.raises(InputError) as caught:
        read_features(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: .*pip install pyarrow"):
        read_features(tmp_path / "a.parquet")
