"""Real papermill runs in real kernels; the two sample notebooks are executed once."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from browser import CHROMIUM, requests_of_page
from sample_notebooks import code, write_notebook, write_profile, write_samples

from siutils.report import execution
from siutils.report.execution import (
    CellError,
    IncompleteError,
    KernelDiedError,
    KernelMissingError,
    NotebookTimeoutError,
    OutputError,
)
from siutils.report.pages import check_page
from siutils.report.parameters import ParameterError
from siutils.report.progress import Progress
from siutils.report.provenance import git_state
from siutils.report.run import PageError, run_report


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("braces{0}") / "notebooks")


@pytest.fixture(scope="module")
def report(samples, tmp_path_factory):
    output = tmp_path_factory.mktemp("report{0}") / "run"
    chosen = {"noise": 0.25, "shuffle": False}
    index = run_report(notebooks=samples, output=output, parameters=chosen, progress=False)
    assert index == output / "index.html"
    return output


def one_notebook(folder, *sources, parameters="", about=None, profile=""):
    write_notebook(folder / "01_one.ipynb", code(*sources, parameters=parameters), **(about or {}))
    write_profile(folder, "quick", profile)
    return folder


def run_one(folder, **options):
    return run_report(notebooks=folder, output=folder / "out", progress=False, **options)


# --- a complete report ---------------------------------------------------------------------------


def test_everything_is_there_and_small(report):
    files = {p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file()}
    assert files == {
        "index.html",
        "run.json",
        "01_blobs.html",
        "02_other.html",
        "notebooks/01_blobs.ipynb",
        "notebooks/02_other.ipynb",
        "figures/curves.svg",
        "tables/table1.csv",
        "tables/table2.csv",
        "records/01_blobs.json",
    }
    for page in report.glob("*.html"):
        assert page.stat().st_size < 300_000
        check_page(page.read_text(), page.name)


def test_profile_and_overrides_reach_the_notebooks(report):
    facts = json.loads((report / "run.json").read_text())
    assert facts["profile"] == "quick"
    assert facts["parameters"] == {"epochs": 3, "noise": 0.25, "shuffle": False}
    assert facts["notebooks"]["01_blobs"]["parameters"]["models"] == ["vgg16", "resnet18"]
    assert facts["notebooks"]["02_other"]["parameters"] == {"epochs": 3}
    assert (report / "tables" / "table2.csv").read_text().split() == ["epoch", "1", "2", "3"]


def test_run_json_says_where_the_numbers_come_from(report):
    facts = json.loads((report / "run.json").read_text())
    assert facts["versions"]["torch"]
    assert facts["cpu_count"] >= 1
    assert set(facts["git"]) == {"commit", "dirty"}
    blobs = facts["notebooks"]["01_blobs"]
    assert blobs["facts"]["data_checksum"] == "0123456789abcdef"
    assert blobs["peak_memory_mb"] > 10
    assert 0 < blobs["seconds"] <= facts["seconds"]
    assert blobs["figures"]["curves.svg"]["alt"].startswith("High-order SI falls")
    assert str(report) not in (report / "run.json").read_text()


def test_page_shows_results_and_parameters(report):
    page = (report / "01_blobs.html").read_text()
    assert 'alt="High-order SI falls with the order for both networks."' in page
    assert "<td><code>noise</code></td><td>0.25</td><td>standard deviation of the blobs" in page
    assert "output_dir" not in page.partition('<details class="code">')[0]
    assert "SI is <strong>" in page
    assert ">0.1741</td>" in page


def test_index_summarizes(report):
    page = (report / "index.html").read_text()
    for part in (
        "How well are two blobs separated?",
        "Table 1. Separation of the raw pixels.",
        'alt="High-order SI falls with the order for both networks."',
        'href="02_other.html"',
        'href="tables/table2.csv"',
        "0123456789abcdef",
    ):
        assert part in page


def test_executed_notebooks_hold_no_progress(report):
    notebook = nbformat.read(report / "notebooks" / "01_blobs.ipynb", as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert [o.output_type for o in outputs] == ["display_data"] * 3


def test_sample_notebook_runs_in_plain_papermill_from_anywhere(samples, tmp_path):
    command = [Path(sys.executable).parent / "papermill", samples / "02_other.ipynb", "out.ipynb"]
    (tmp_path / "tables").mkdir()
    command = [str(part).replace("{0}", "{{0}}") for part in command]
    done = subprocess.run(
        [*command, "-f", samples / "profiles" / "quick.yml", "--no-progress-bar"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tables" / "table2.csv").read_text().split() == ["epoch", "1", "2", "3"]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium installed")
def test_pages_make_no_request_in_a_browser(report, tmp_path):
    doms = {}
    for page in report.glob("*.html"):
        doms[page.stem], asked = requests_of_page(page, tmp_path)
        assert asked == []
        assert "</footer>" in doms[page.stem]
    dom = doms["01_blobs"]
    assert '<button type="button">Show all code</button>' in dom
    control = tmp_path / "control.html"
    control.write_text('<img src="http://pixel.example.org/x.png">')
    assert requests_of_page(control, tmp_path)[1] == ["http://pixel.example.org/x.png"]


# --- what is refused before anything runs --------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "chosen", "message"),
    [
        ("quik", {}, "profile: no 'quik' in .*; there are: long, quick; did you mean 'quick'?"),
        ("../quick", {}, "profile: no '../quick' in"),
        ("quick", {"epoch": 1}, "parameter 'epoch': no notebook declares it; did you mean"),
        ("quick", {"zzz": 1}, "parameter 'zzz': no notebook declares it; there are: dataset, "),
        ("quick", {"epochs": 2.0}, "parameter 'epochs': expected int, got float 2.0"),
        ("quick", {"epochs": True}, "parameter 'epochs': expected int, got bool True"),
        ("quick", {"epochs": None}, "parameter 'epochs': expected int, got null None"),
        ("quick", {"noise": "1e-3"}, "got str '1e-3'; in YAML write 0.001, without quotes"),
        ("quick", {"noise": float("nan")}, "parameter 'noise': expected float, got float nan"),
        ("quick", {"shuffle": 1}, "parameter 'shuffle': expected bool, got int 1"),
        ("quick", {"dataset": 1}, "parameter 'dataset': expected str, got int 1"),
        ("quick", {"models": "vgg16"}, r"parameter 'models': expected list\[str\], got str"),
        ("quick", {"models": ["vgg16", 1]}, r"parameter 'models': expected list\[str\], got list"),
        ("quick", {"output_dir": "x"}, "parameter 'output_dir': the report sets it"),
    ],
)
def test_wrong_parameters(samples, tmp_path, profile, chosen, message):
    output = tmp_path / "out"
    with pytest.raises(ParameterError, match=message) as caught:
        run_report(profile, notebooks=samples, output=output, parameters=chosen)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2\n", "'epochs' is given twice"),
        ("- epochs\n", "expected lines 'name: value', got a list"),
        ("epochs: {a: 1}\n", "'epochs' must be a name with a plain value"),
        ("epochs: [1\n", "no valid YAML"),
        ("1: 2\n", "1 must be a name"),
        ("no_such: 2\n", "parameter 'no_such': no notebook declares it"),
    ],
)
def test_wrong_profiles(tmp_path, text, message):
    folder = one_notebook(tmp_path, "1", parameters="epochs: int = 1", profile=text)
    with pytest.raises(ParameterError, match=message) as caught:
        run_one(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("epochs = 4", "01_one.ipynb: parameter 'epochs' has no known annotation"),
        ("epochs: dict = {}", "01_one.ipynb: parameter 'epochs' has no known annotation"),
        ("epochs: int = 2 * n", "01_one.ipynb: the default of 'epochs' is no literal"),
    ],
)
def test_wrong_declarations(tmp_path, parameters, message):
    with pytest.raises(ParameterError, match=message):
        run_one(one_notebook(tmp_path, "1", parameters=parameters))


def test_wrong_folders_and_limits(tmp_path):
    with pytest.raises(ParameterError, match=r"notebooks: no \*\.ipynb in"):
        run_one(tmp_path)
    (tmp_path / "01_one.ipynb").write_text("not json")
    with pytest.raises(ParameterError, match=r"01_one\.ipynb: Notebook does not appear to be JSON"):
        run_one(tmp_path)
    with pytest.raises(ParameterError, match="timeout_s: expected a positive number"):
        run_one(tmp_path, timeout_s=0)


def test_an_output_folder_below_a_file(samples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"output: cannot write .*file.*: Not a directory"):
        run_report(notebooks=samples, output=tmp_path / "file" / "run")


def test_a_full_disk(samples, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (tmp_path / "filler").write_bytes(bytes(32 * 1024))
        with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
            run_report(notebooks=samples, output=tmp_path / "run")
        assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["filler"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_missing_kernel(samples, tmp_path, monkeypatch):
    spec = {"argv": ["/no/such/python", "-m", "ipykernel_launcher"], "display_name": "Python 3"}
    write_kernel(tmp_path / "kernels" / "python3", spec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(KernelMissingError, match="'python3' needs '/no/such/python', not found"):
        run_report(notebooks=samples, output=tmp_path / "run")
    monkeypatch.setattr(execution, "KERNEL", "no-such-kernel")
    with pytest.raises(KernelMissingError, match="there is no Jupyter kernel 'no-such-kernel'"):
        run_report(notebooks=samples, output=tmp_path / "run")


def test_a_kernel_that_does_not_start(tmp_path, monkeypatch):
    write_kernel(tmp_path / "kernels" / "python3", {"argv": ["false"], "display_name": "Python 3"})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(KernelMissingError, match="01_one: the kernel did not start"):
        run_one(one_notebook(tmp_path / "notebooks", "1"))


def write_kernel(folder, spec):
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))


def test_a_page_that_cannot_be_shown_is_refused_before_it_runs(tmp_path):
    cells = [nbformat.v4.new_markdown_cell(r"$\nosuch{x}$"), *code("raise SystemError")]
    write_notebook(tmp_path / "01_one.ipynb", cells)
    write_profile(tmp_path, "quick", "")
    with pytest.raises(PageError, match=r"01_one: formula .* has no MathML"):
        run_one(tmp_path)


# --- what goes wrong while a notebook runs -------------------------------------------------------


def fails(folder, kind, message, **options):
    """Run, expect one clear line, and find the report of an earlier run untouched."""
    old = folder / "out" / "01_one.html"
    old.parent.mkdir(exist_ok=True)
    old.write_text("an earlier page")
    with pytest.raises(kind, match=message) as caught:
        run_one(folder, **options)
    assert "\n" not in str(caught.value)
    assert old.read_text() == "an earlier page"
    assert not (folder / "out" / "index.html").exists()
    assert (folder / "out" / "notebooks" / "01_one.partial.ipynb").stat().st_size > 100


def test_a_cell_error(tmp_path):
    folder = one_notebook(tmp_path, "x = 1", "raise KeyError('a\\nb')", "x")
    fails(folder, CellError, r"01_one, cell 2/3: KeyError: .*; partial notebook: .*ipynb$")


def test_a_cell_error_has_the_notes_that_were_added_to_it(tmp_path):
    error = "error = RuntimeError('half\\nway')"
    source = f"{error}\nerror.add_note('two layers are kept')\nraise error"
    message = "RuntimeError: half way; two layers are kept; partial notebook: "
    fails(one_notebook(tmp_path, source), CellError, message)


def test_a_disk_that_fills_up_meanwhile(tmp_path):
    folder = one_notebook(tmp_path, "open('/dev/full', 'w', buffering=1).write('a\\n')")
    fails(folder, OutputError, "01_one, cell 1/1: OSError: .*No space left on device")


def test_a_dead_kernel(tmp_path):
    folder = one_notebook(tmp_path, "import os", "os.kill(os.getpid(), 9)", "1")
    fails(folder, KernelDiedError, "01_one, cell 2/3: the kernel died")


def test_a_time_out_counts_the_whole_notebook(tmp_path):
    folder = one_notebook(tmp_path, "import time", *["time.sleep(1.5)"] * 20)
    start = time.monotonic()
    fails(folder, NotebookTimeoutError, r"01_one, cell \d+/21: not done after 4 s", timeout_s=4)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("earlier", "message"),
    [(True, "01_one: the promised .*/a is of an earlier run"), (False, "promised .*/a is missing")],
)
def test_a_promised_file_that_is_not_written(tmp_path, earlier, message):
    folder = one_notebook(tmp_path, "x = 1", about={"promises": ["a"]})
    (folder / "out").mkdir()
    if earlier:
        (folder / "out" / "a").write_text("of an earlier run")
    fails(folder, IncompleteError, message)


def test_cells_that_did_not_run(tmp_path):
    folder = one_notebook(tmp_path, "x = 1", "raise SystemExit(0)", "x = 2", "x = 3")
    fails(folder, IncompleteError, "01_one: 2 of 4 code cells did not run; partial notebook")


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path):
    waiting = "import os, time; from pathlib import Path"
    waiting += "\nPath(output_dir, 'pid').write_text(str(os.getpid())); time.sleep(seconds)"
    parameters = "seconds: int = 300\noutput_dir: str = ''"
    folder = one_notebook(tmp_path, waiting, parameters=parameters)
    program = "import sys; from siutils import report; "
    program += "report.run_report(notebooks=sys.argv[1], output=sys.argv[1] + '/out')"
    pid = folder / "out" / "pid"
    with subprocess.Popen([sys.executable, "-c", program, str(folder)]) as process:
        wait_for(lambda: pid.exists() and pid.read_text())
        process.send_signal(signal.SIGKILL)
    kernel = int(pid.read_text())
    wait_for(lambda: not runs(kernel))
    assert run_one(folder, parameters={"seconds": 0}).is_file()
    left = {p.relative_to(folder / "out").as_posix() for p in (folder / "out").rglob("*.*")}
    assert left == {"index.html", "run.json", "01_one.html", "notebooks/01_one.ipynb"}


def test_progress_on_a_terminal_is_one_line_that_ticks(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("01_one", 3) as progress:
        progress.cell_started(nbformat.v4.new_code_cell("1"), 1)
        time.sleep(1.3)
    assert "\r\x1b[K01_one  cell 2/3  0:01" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K01_one  3 cells  0:01\n")
    assert terminal.getvalue().count("\n") == 1


def test_the_commit_and_changes_since_are_known(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "new.py").write_text("")
    assert git_state(tmp_path)["dirty"] is True
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside")["commit"] is None


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def runs(pid):
    """Whether a process exists and is more than a zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()[:1] not in ("", "Z")
