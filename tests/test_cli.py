import io
import json
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from sample_notebooks import code, write_notebook, write_profile

from siutils import SeparationIndex, __version__
from siutils.commands import train as command_train
from siutils.commands.command_line import main


@pytest.fixture
def notebooks(tmp_path):
    parameters = "epochs: int = 4\nrate: float = 0.1\nfast: bool = False\nsizes: list[int] = [1]"
    source = "assert (epochs, rate, fast, sizes) == (2, 0.001, True, [8, 16])"
    write_notebook(tmp_path / "nb" / "01_one.ipynb", code(source, parameters=parameters))
    write_profile(tmp_path / "nb", "quick", "epochs: 3\n")
    return tmp_path / "nb"


def report(notebooks, *arguments):
    output = notebooks.parent / "out"
    return main(["report", "--notebooks", str(notebooks), "--output", str(output), *arguments])


def error_of(command, capsys):
    """The one line that says what went wrong."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"siutils {command}: error: ")
    return line


def test_report_runs_with_typed_settings_and_prints_the_index(notebooks, capsys):
    settings = ["--set", "epochs=2", "--set", "rate=1e-3", "--set", "fast=true"]
    assert report(notebooks, *settings, "--set", "sizes=8,16") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{notebooks.parent / 'out' / 'index.html'}\n"
    lines = printed.err.splitlines()
    assert lines[0].startswith("01_one  cell 1/3  0:0")
    assert lines[-1].startswith("01_one  3 cells  0:0")
    assert len(lines) == 4
    out = str(notebooks.parent / "out")
    number = json.loads((notebooks.parent / "out" / "run.json").read_text())["run"]
    assert main(["report", "--check", out]) == 0
    assert capsys.readouterr().out == f"{out}: run {number}, complete, 3 files\n"
    assert main(["report", "--check", str(notebooks)]) == 8
    assert error_of("report", capsys).endswith("nb: no complete report; it holds no run.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "quik"], "profile: no 'quik' in "),
        (["--set", "epoch=1"], "'epoch': no notebook declares it; did you mean 'epochs'?"),
        (["--set", "epochs=two"], "parameter 'epochs': expected int, got 'two'"),
        (["--set", "fast=maybe"], "parameter 'fast': expected bool, got 'maybe'"),
        (["--set", "sizes=1,x"], "parameter 'sizes': expected int, got 'x'"),
        (["--set", "epochs"], "--set 'epochs': write name=value"),
        (["--timeout", "-1"], "timeout_s: expected a positive number of seconds, got -1.0"),
        (["--notebooks", "/no/such"], "notebooks: no *.ipynb in /no/such"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(notebooks, capsys, arguments, message):
    assert report(notebooks, *arguments) == 2
    assert message in error_of("report", capsys)


def test_a_failing_cell_has_a_code_of_its_own(notebooks, capsys):
    assert report(notebooks, "--quiet") == 7
    assert "error: 01_one, cell 3/3: AssertionError:" in error_of("report", capsys)


def test_an_unwritable_output_has_a_code_of_its_own(notebooks, capsys):
    (notebooks.parent / "out").write_text("a file")
    assert report(notebooks) == 3
    assert "output: cannot write" in error_of("report", capsys)


WRONG = ("", "nonsense", "report --timeout soon", "score", "score x.npy --json --csv")


@pytest.mark.parametrize("arguments", WRONG)
def test_argparse_errors_are_code_2(arguments):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments.split())


def test_version_and_help(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"siutils {__version__}\n"
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    text = capsys.readouterr().out
    for number in range(10):
        assert f"\n  {number}  " in text


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    x = rng.normal(size=(60, 4)) + y[:, None]
    np.savez(tmp_path / "train.npz", features=x[:40], labels=y[:40])
    np.savez(tmp_path / "test.npz", features=x[40:], labels=y[40:])
    np.save(tmp_path / "x.npy", x[:40])
    np.save(tmp_path / "y.npy", y[:40])
    names = pd.DataFrame(x[:40]).assign(label=np.array(["ant", "bee", "cat"])[y[:40]])
    names.to_csv(tmp_path / "train.csv", index=False)
    np.save(tmp_path / "short.npy", y[:9])
    np.save(tmp_path / "nan.npy", np.where(x[:40] > 2, np.nan, x[:40]))
    return tmp_path


def score(samples, *arguments):
    return main(["score", *(str(samples / a) if "." in a else a for a in arguments)])


def test_score_prints_the_report_of_the_class(samples, capsys):
    with np.load(samples / "train.npz") as data:
        index = SeparationIndex(data["features"], data["labels"], normalize=True)
    expected = index.report(3, interval=True)
    options = ["--normalize", "--order", "3"]
    assert score(samples, "train.npz", *options, "--csv") == 0
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(capsys.readouterr().out)), expected)
    assert score(samples, "x.npy", "--labels", "y.npy", *options, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    pd.testing.assert_frame_equal(pd.DataFrame(rows).astype(expected.dtypes), expected)
    assert score(samples, "train.csv", *options) == 0
    head, blank, columns, *lines = capsys.readouterr().out.splitlines()
    assert (
        head
        == "undefined = 0, n = 40, n_features = 4, n_classes = 3, normalize = True, n_constant = 0"
    )
    assert (blank, columns.split()[:3]) == ("", ["index", "order", "value"])
    for line, (name, order, value) in zip(lines, expected.to_numpy()[:, :3], strict=True):
        assert line.split()[:3] == [name, str(order), f"{value:.5f}"]


def test_score_of_test_samples_is_cross_si(samples, capsys):
    with np.load(samples / "train.npz") as a, np.load(samples / "test.npz") as b:
        index = SeparationIndex(a["features"], a["labels"])
        expected = index.cross_si(b["features"], b["labels"])
    assert score(samples, "train.npz", "--test", "test.npz", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    (row,) = (r for r in rows if r["index"] == "cross_si")
    assert (row["value"], row["n"], row["n_reference"]) == (expected, 20, 40)
    assert row["low"] <= expected <= row["high"]
    assert sum(r["index"].startswith("cross_") for r in rows) == 8  # SI, center, 3 of 2 orders
    assert score(samples, "train.npz", "--test", "x.npy", "--test-labels", "y.npy", "--csv") == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    found = table.set_index("index")["value"]
    assert found["cross_si"] == 1.0  # each test sample is a training sample


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.npz"], "gone.npz: no such file"),
        (["x.npy"], "x.npy: no labels in it; name their file with --labels"),
        (["train.npz", "--test", "x.npy"], "x.npy: no labels in it; name their file with --test-l"),
        (["train.npz", "--test-labels", "y.npy"], "--test-labels needs --test"),
        (["x.npy", "--labels", "short.npy"], "features and labels must have the same length"),
        (["nan.npy", "--labels", "y.npy"], "features must be finite"),
        (["train.npz", "--order", "40"], "order must lie in 1 … 39"),
        (["train.npz", "--order", "0"], "order must lie in 1 … 39"),
        (["train.npz", "--device", "abacus"], "device must be 'auto', 'cpu', 'cuda'"),
        (["train.csv", "--test", "test.npz"], "labels must be"),
    ],
)
def test_wrong_input_of_score_is_one_line_and_code_2(samples, capsys, arguments, message):
    assert score(samples, *arguments) == 2
    assert message in error_of("score", capsys)


def test_an_unexpected_error_of_score_is_one_line_and_code_1(samples, capsys, monkeypatch):
    monkeypatch.setattr(SeparationIndex, "report", Mock(side_effect=MemoryError("no room")))
    assert score(samples, "train.npz") == 1
    assert error_of("score", capsys).endswith("error: unexpected MemoryError: no room")


def test_python_runs_the_package_as_the_command(capsys):
    words = [sys.executable, "-m", "siutils", "--version"]
    assert subprocess.check_output(words, text=True) == f"siutils {__version__}\n"


def test_help_imports_nothing_slow():
    code = "import sys; from siutils.commands import main\ntry: main(['score', '--help'])\nexcept "
    code += "SystemExit: print(sorted({'torch', 'numpy', 'pandas'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "\n  2  wrong usage" in ran.stdout


def test_train_trains_what_the_report_wants_and_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIUTILS_CACHE", str(tmp_path))
    train = ["train", "--profile", "tiny", "--only", "efficientnet_b0, tr"]
    assert main([*train, "--plan"]) == 0
    assert capsys.readouterr().out == ""
    assert main(train) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in first] == 2 * ["efficientnet_b0, trained"]
    assert main(train) == 0
    assert capsys.readouterr().out.splitlines() == first[1:]  # no epoch any more
    (folder,) = (tmp_path / "training").iterdir()
    assert json.loads((folder / "meta.json").read_text())["recipe"]["name"] == "fast"


def test_train_shows_how_long_it_will_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIUTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(command_train, "LONG", 500)  # images of all together, not of any one
    assert main(["train", "--profile", "tiny", "--plan"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("efficientnet_b0, pretrained: 1 × 40 images, about 0 min left")
    assert len(lines) == 14 + 1
    assert lines[-1] == "all trainings: about 0.0 h left"
    assert main(["train", "--profile", "tiny", "--only", "squeezenet"]) == 2
    assert "begins with 'squeezenet'; there are: efficientnet_b0," in capsys.readouterr().err
