"""`siutils score` reads what people have; what may be misread, is missing or unsafe is one error.

The ids of these tests make the table in docs/inputs.md: file -> what happens.
"""

import json
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from harmful import Harmful

from siutils import SeparationIndex
from siutils.commands import main
from siutils.core.array_files import InputError, read_labels, read_samples

N = 24
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, N)
X = (RNG.normal(size=(N, 3)) + Y[:, None]).astype(np.float32).round(3)
NAMES = np.array(["cat", "ant", "dog"])[Y]
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])
FULL = FRAME.assign(label=NAMES)
SHUFFLED = FULL.sample(frac=1, random_state=0)  # its index is in no order


@pytest.fixture
def score(tmp_path, monkeypatch, capsys):
    """Runs `siutils score` in an empty folder; gives the values of si and cross_si."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["score", *map(str, arguments), "--json"])
        printed = capsys.readouterr()
        if code:
            assert (code, printed.out) == (2, "")
            raise InputError(printed.err)
        rows = {row["index"]: row["value"] for row in json.loads(printed.out) if row["order"] == 1}
        return rows["si"], rows.get("cross_si")

    return run


def arrow(name):
    import pyarrow as pa
    from pyarrow import feather, parquet

    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    table = pa.table({"embedding": lists, "label": pa.array(NAMES), "width": pa.array(Y)})
    if name == "stream.arrow":
        with pa.ipc.new_stream(name, table.schema) as stream:
            stream.write_table(table)
    elif name == "fixed.parquet":
        parquet.write_table(table, name)
    else:
        feather.write_feather(table, name)


def h5(name):
    import h5py

    with h5py.File(name, "w") as file:
        file["train/features"], file["train/labels"] = X, NAMES.astype("S")


def safetensors(name):
    from safetensors.torch import save_file

    save_file({"embeddings": torch.from_numpy(X), "targets": torch.from_numpy(Y)}, name)


def plain_csv(name):
    FULL.to_csv(name, index=False)


T = torch.from_numpy
PATHS = [f"x/{i}.png" for i in range(N)]
PARTS = [(T(X[:9]), T(Y[:9])), (T(X[9:]), T(Y[9:]))]
FILES = {  # file, how it is written
    "CSV -> columns are features, label is the label": ("a.csv", plain_csv),
    "CSV with an index that pandas saved -> the index is no feature": ("a.csv", FULL.to_csv),
    "CSV with the index of shuffled rows -> the index is no feature": ("a.csv", SHUFFLED.to_csv),
    "CSV with a column of unique ids -> they name the samples": (
        "a.csv", lambda f: FULL.assign(id=range(90, 90 + N)).to_csv(f, index=False),
    ),
    "CSV with a column of file names -> they name the samples": (
        "a.csv", lambda f: FULL.assign(path=PATHS).to_csv(f, index=False),
    ),
    "CSV, target or class instead of label -> the label": (
        "a.csv", lambda f: FRAME.assign(Target=NAMES).to_csv(f, index=False),
    ),
    "TSV -> as CSV": ("a.tsv", lambda f: FULL.to_csv(f, sep="\t", index=False)),
    "CSV with semicolons and decimal commas -> as CSV": (
        "a.csv", lambda f: FULL.to_csv(f, sep=";", decimal=",", index=False),
    ),
    "CSV with a byte-order mark -> as CSV": (
        "a.csv", lambda f: FULL.to_csv(f, encoding="utf-8-sig", index=False),
    ),
    "CSV in UTF-16 -> as CSV": ("a.csv", lambda f: FULL.to_csv(f, encoding="utf-16", index=False)),
    "CSV in Latin-1 -> as CSV": (
        "a.csv", lambda f: FULL.replace("cat", "é").to_csv(f, encoding="latin-1", index=False),
    ),
    "CSV in .gz, .bz2 or .xz -> as CSV": ("a.csv.xz", lambda f: FULL.to_csv(f, index=False)),
    "Parquet -> as CSV": ("a.parquet", FULL.to_parquet),
    "Parquet with __index_level_0__ -> the index is no feature": ("a.parquet", SHUFFLED.to_parquet),
    "Parquet with a categorical label -> names": (
        "a.parquet", lambda f: FULL.astype({"label": "category"}).to_parquet(f),
    ),
    "Parquet with a column of lists -> they are the features, no other column is": (
        "a.parquet", lambda f: pd.DataFrame({"e": list(X), "label": NAMES, "n": Y}).to_parquet(f),
    ),
    "Parquet with a column of lists of fixed size -> the same": ("fixed.parquet", arrow),
    "Feather -> as Parquet": ("lists.feather", arrow),
    "Arrow stream, as Hugging Face datasets keep them -> as Parquet": ("stream.arrow", arrow),
    ".npz with features and labels -> these": (
        "a.npz", lambda f: np.savez(f, features=X, labels=Y),
    ),
    ".npz with X and y -> these": ("a.npz", lambda f: np.savez(f, X=X, y=NAMES)),
    ".npz with embeddings, targets and more -> these": (
        "a.npz", lambda f: np.savez(f, embeddings=X, targets=Y, ids=np.arange(N)),
    ),
    ".npz without names -> the matrix and the vector": ("a.npz", lambda f: np.savez(f, X, Y)),
    ".pt with nested dictionaries -> as .npz": (
        "a.pt", lambda f: torch.save({"out": {"x": T(X), "y": T(Y)}}, f),
    ),
    ".pt with lists of batches -> one behind the other": (
        "a.pt", lambda f: torch.save({"x": [T(X[:9]), T(X[9:])], "y": [T(Y[:9]), T(Y[9:])]}, f),
    ),
    ".pt with a list of pairs -> batches of features and labels": (
        "a.pth", lambda f: torch.save(PARTS, f),
    ),
    ".pt with NumPy arrays inside -> as .npz": (
        "a.pt", lambda f: torch.save({"features": X, "labels": NAMES.tolist()}, f),
    ),
    ".h5 with groups -> as .npz": ("a.h5", h5),
    ".safetensors -> as .npz": ("a.safetensors", safetensors),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write"), FILES.values(), ids=FILES)
def test_file_with_features_and_labels(score, name, write):
    write(name)
    assert score(name)[0] == pytest.approx(SeparationIndex(X, Y).si(), abs=1e-12)


LABEL_FILES = {
    "--labels .txt -> a label per line": ("y.txt", "\n".join(NAMES) + "\n"),
    "--labels .csv without a header -> a label per line": ("y.csv", "\n".join(map(str, Y))),
    "--labels .csv with a header -> a label per line": (
        "y.csv", "anything\n" + "\n".join(map(str, Y)),
    ),
    "--labels .csv with several columns -> the column label": (
        "y.csv", "file,label\n" + "\n".join(f"{i}.png,{name}" for i, name in enumerate(NAMES)),
    ),
    "--labels .json -> a list, alone or under labels": (
        "y.json", json.dumps({"labels": Y.tolist()}),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), LABEL_FILES.values(), ids=LABEL_FILES)
def test_file_of_labels(score, tmp_path, name, content):
    np.save("x.npy", X)
    (tmp_path / name).write_text(content)
    assert score("x.npy", "--labels", name)[0] == SeparationIndex(X, Y).si()


def test_folders_of_shards(score, tmp_path):
    expected = SeparationIndex(X, Y).si()
    for i in range(12):  # 10 comes after 2
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.save(f"arrays/emb_{i}.npy", X[2 * i : 2 * i + 2])
        (tmp_path / "tables").mkdir(exist_ok=True)
        part = FULL.iloc[2 * i : 2 * i + 2]
        part[["c", "label", "a", "b"] if i % 2 else list(part)].to_parquet(f"tables/{i}.parquet")
    np.save("y.npy", Y)
    assert score("arrays", "--labels", "y.npy")[0] == expected
    assert score("tables")[0] == expected
    (tmp_path / "tables" / "other.csv").write_text("a,label\n1,1\n")
    with pytest.raises(
        InputError, match=r"shards must be of one format; there are \['.csv', '.par"
    ):
        score("tables")


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.pt", "a.parquet", "x.npy"])
def test_standard_input(score, tmp_path, name):
    np.save("y.npy", Y)
    np.save("x.npy", X), np.savez("a.npz", X=X, y=Y), torch.save({"x": T(X), "y": T(Y)}, "a.pt")
    FULL.to_csv("a.csv", index=False), FULL.to_parquet("a.parquet")
    command = [
        sys.executable,
        "-c",
        "import sys; from siutils.commands import main; sys.exit(main())",
    ]
    more = ["--labels", "y.npy"] if name == "x.npy" else []
    with (tmp_path / name).open("rb") as file:
        done = subprocess.run(
            [*command, "score", "-", "--json", *more], stdin=file, capture_output=True, text=True
        )
    assert done.stderr == ""
    assert json.loads(done.stdout)[0]["value"] == SeparationIndex(X, Y).si()


def test_second_set_is_matched_by_name(score):
    FULL.to_csv("a.csv", index=False)
    FULL[["label", "c", "a", "b"]].iloc[:9].to_csv("t.csv", index=False)
    expected = SeparationIndex(X, Y).cross(X[:9], Y[:9]).si()
    assert score("a.csv", "--test", "t.csv")[1] == expected
    FULL.rename(columns={"a": "z"}).to_csv("z.csv", index=False)
    with pytest.raises(InputError, match=r"lacks \['a'\] and has \['z'\]"):
        score("a.csv", "--test", "z.csv")
    FRAME.assign(label=Y).to_csv("i.csv", index=False)
    with pytest.raises(InputError, match=r"no class of it, such as 'ant', is in i\.csv"):
        score("i.csv", "--test", "a.csv")
    FRAME.assign(label=[*Y[:-1], "other"]).to_csv("o.csv", index=False)
    assert score("i.csv", "--test", "o.csv")[1] == 1 - 1 / N  # each is its own neighbor but one


def test_named_label_column(score):
    FRAME.assign(species=NAMES, y=Y).to_csv("a.csv", index=False)
    with pytest.raises(
        InputError, match="'species' must be numeric to be a feature, but holds 'dog'"
    ):
        score("a.csv")
    FRAME.assign(target=NAMES, y=1).to_csv("a.csv", index=False)
    with pytest.raises(InputError, match="columns 'target', 'y' may all be the labels"):
        score("a.csv")
    FRAME.assign(species=NAMES).to_csv("a.csv", index=False)
    assert score("a.csv", "--label-column", "species")[0] == SeparationIndex(X, Y).si()
    with pytest.raises(InputError, match="no column 'specie'; did you mean 'species'"):
        score("a.csv", "--label-column", "specie")


def test_names_of_samples_and_text_are_kept(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("file,a,label\n1.png,0.5,01\n2.png,1.5,1\n3.png,2,NA\n4.png,3,cat\n")
    samples = read_samples(file)
    assert samples.names.tolist() == ["1.png", "2.png", "3.png", "4.png"]
    assert samples.labels.tolist() == ["01", "1", "NA", "cat"]
    file.write_text("x,y,z\n1,2,3\n")
    assert read_samples(file).labels is None  # y is a coordinate here


def test_npy_is_memory_mapped_and_stays_as_it_is(tmp_path):
    np.save(tmp_path / "x.npy", X)
    features = read_samples(tmp_path / "x.npy").features
    assert isinstance(features, np.memmap)
    features[0, 0] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), X)
    np.save(tmp_path / "y.npy", Y)
    assert read_labels(tmp_path / "y.npy", N).labels.tolist() == Y.tolist()


def ragged(path):
    pd.DataFrame({"e": [[1.0, 2.0], [1.0]], "label": [0, 1]}).to_parquet(path)


BAD = {  # what else than a text to write into a file
    "saved pickle": lambda path: torch.save({"features": Harmful(path.parent / "harm")}, path),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Harmful(path.parent / "harm"))),
    "objects": lambda path: np.save(path, np.array([Harmful(path.parent / "harm")])),
    "other names": lambda path: np.savez(path, u=Y, v=Y),
    "two matrices": lambda path: np.savez(path, X=X, embeddings=X, y=Y),
    "ragged": ragged,
    "null": lambda path: pd.DataFrame({"e": [[1.0], None], "label": [0, 1]}).to_parquet(path),
}
REFUSED = {
    "a pickle inside .pt -> refused, nothing is run": (
        "a.pt", "saved pickle", "more than arrays in it; nothing was run",
    ),
    "a plain pickle called .pt -> refused, nothing is run": (
        "a.pt", "plain pickle", "more than arrays in it; nothing was run",
    ),
    ".pkl -> refused, never read": (
        "a.pkl", "plain pickle", "a pickle can run code and is never read",
    ),
    "an object array in .npy -> refused": (
        "a.npy", "objects", "cannot be read: Array can't be memory-mapped: Python objects",
    ),
    "a damaged .npy -> refused": (
        "a.npy", "nonsense", "cannot be read",
    ),
    "a damaged .npz -> refused": (
        "a.npz", "nonsense", "cannot be read",
    ),
    ".npz with unknown names -> refused with the names": (
        "a.npz", "other names", "no features in it; it holds ['u', 'v']",
    ),
    ".npz with two matrices that may be the features -> refused": (
        "a.npz", "two matrices", "'X', 'embeddings' may all be the features",
    ),
    "an empty CSV -> refused": (
        "a.csv", "", "the first line must name the columns, but there is none",
    ),
    "a CSV without a header -> refused": (
        "a.csv", "1,2\n3,4\n", "the first line must name the columns, but holds numbers",
    ),
    "a CSV with a column of text -> refused by its name": (
        "a.csv", "a,b,label\n1,x y,0\n", "column 'b' must be numeric",
    ),
    "a CSV with a column twice -> refused": (
        "a.csv", "a,a,label\n1,2,0\n", "column 'a' is there twice",
    ),
    "a CSV with repeated ids -> refused, as they may be labels": (
        "a.csv", "id,a\n1,2\n1,3\n", "column 'id' may be an index or a label",
    ),
    "a CSV with labels only -> refused": (
        "a.csv", "label\n1\n", "no features in it",
    ),
    "lists of different lengths in Parquet -> refused": (
        "a.parquet", "ragged", "column 'e' must hold lists of equally many numbers",
    ),
    "a missing list in Parquet -> refused": (
        "a.parquet", "null", "column 'e' lacks the list of 1 rows",
    ),
    "another suffix -> refused with the known ones": (
        "a.xlsx", "1 2 3", "the suffix must be one of .csv, .tsv",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    BAD.get(content, lambda path: path.write_text(content))(path)
    with pytest.raises(InputError) as caught:
        read_samples(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("package", "name"),
    [("pyarrow", "a.parquet"), ("h5py", "a.h5"), ("safetensors.torch", "a.safetensors")],
)
def test_a_missing_reader_says_what_to_install(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"needs the package .*: pip install siutils\[files\]"):
        read_samples(tmp_path / name)


def test_no_home_and_no_file(tmp_path):
    for name, message in (("~nosuch/a.npy", "home"), (tmp_path / "a.npy", "no such file")):
        with pytest.raises(ValueError, match=message):
            read_samples(name)
