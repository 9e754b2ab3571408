import pytest
from sample_notebooks import code, write_notebook, write_profile

from siutils import __version__
from siutils.cli import main


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


def test_report_runs_with_typed_settings_and_prints_the_index(notebooks, capsys):
    settings = ["--set", "epochs=2", "--set", "rate=1e-3", "--set", "fast=true"]
    assert report(notebooks, *settings, "--set", "sizes=8,16") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{notebooks.parent / 'out' / 'index.html'}\n"
    lines = printed.err.splitlines()
    assert lines[0].startswith("01_one  cell 1/3  0:0")
    assert lines[-1].startswith("01_one  3 cells  0:0")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "quik"], "profile: no 'quik' in "),
        (
            ["--set", "epoch=1"],
            "parameter 'epoch': no notebook declares it; did you mean 'epochs'?",
        ),
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
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"siutils report: error: {message}")
    assert printed.err.count("\n") == 1


def test_a_failing_cell_has_a_code_of_its_own(notebooks, capsys):
    assert report(notebooks, "--quiet") == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("siutils report: error: 01_one, cell 3/3: AssertionError:")


def test_an_unwritable_output_has_a_code_of_its_own(notebooks, capsys):
    (notebooks.parent / "out").write_text("a file")
    assert report(notebooks) == 3
    assert "output: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["report", "--timeout", "soon"]])
def test_argparse_errors_are_code_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"siutils {__version__}\n"
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    text = capsys.readouterr().out
    for number in range(10):
        assert f"\n  {number}  " in text
