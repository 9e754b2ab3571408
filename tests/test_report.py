"""Real papermill runs in real kernels; the two sample notebooks are executed once."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import CHROMIUM, requests_of_page
from sample_notebooks import code, write_notebook, write_profile, write_samples

from siutils.core.files import write_file
from siutils.core.provenance import git_state
from siutils.report import execution
from siutils.report import run as run_module
from siutils.report.execution import IncompleteError, KernelMissingError, OutputError
from siutils.report.folder import check_report, read_run, save_run
from siutils.report.pages import check_page
from siutils.report.parameters import ParameterError
from siutils.report.progress import Progress
from siutils.report.results import Results
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


@contextmanager
def refused(kind, message):
    """Expect an error of one clear line."""
    with pytest.raises(kind, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


# --- a complete report ---------------------------------------------------------------------------


def test_everything_is_there_and_small(report):
    files = {p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file()}
    pages = {"index.html", "01_blobs.html", "02_other.html"}
    results = {"figures/curves.svg", "tables/table1.csv", "tables/table2.csv"}
    records = {"notebooks/01_blobs.ipynb", "notebooks/02_other.ipynb", "records/01_blobs.json"}
    assert files == pages | results | records | {"run.json"}
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


def test_pages_show_results_and_parameters(report):
    alt = 'alt="High-order SI falls with the order for both networks."'
    page, index = ((report / f"{name}.html").read_text() for name in ("01_blobs", "index"))
    noise = "<td><code>noise</code></td><td>0.25</td><td>standard deviation of the blobs"
    for part in (alt, noise, "SI is <strong>", ">0.1741</td>"):
        assert part in page
    assert "output_dir" not in page.partition('<details class="code">')[0]
    links = 'href="02_other.html"', 'href="tables/table2.csv"'
    table = "Table 1. Separation of the raw pixels."
    for part in (alt, table, *links, "How well are two blobs separated?", "0123456789abcdef"):
        assert part in index


def test_executed_notebooks_hold_no_progress(report):
    notebook = nbformat.read(report / "notebooks" / "01_blobs.ipynb", as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert [o.output_type for o in outputs] == ["display_data"] * 3


def test_sample_notebook_runs_in_plain_papermill_from_anywhere(samples, tmp_path):
    (tmp_path / "tables").mkdir()
    source = str(samples / "02_other.ipynb").replace("{0}", "{{0}}")
    command = [Path(sys.executable).parent / "papermill", source, "out.ipynb", "--no-progress-bar"]
    command += ["-f", samples / "profiles" / "quick.yml"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "tables" / "table2.csv").read_text().split() == ["epoch", "1", "2", "3"]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium installed")
def test_pages_make_no_request_in_a_browser(report, tmp_path):
    for page in report.glob("*.html"):
        dom, asked = requests_of_page(page, tmp_path)
        assert asked == []
        assert "</footer>" in dom
        assert page.stem == "index" or ">Show all code</button>" in dom
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
    assert issubclass(ParameterError, ValueError)
    with refused(ParameterError, message):
        run_report(profile, notebooks=samples, output=output, parameters=chosen)
    assert not output.exists()


@pytest.mark.parametrize(
    ("parameters", "profile", "message"),
    [
        ("n: int = 1", "n: 1\nn: 2\n", "'n' is given twice"),
        ("n: int = 1", "- n\n", "expected lines 'name: value', got a list"),
        ("n: int = 1", "n: {a: 1}\n", "'n' must be a name with a plain value"),
        ("n: int = 1", "n: [1\n", "no valid YAML"),
        ("n: int = 1", "1: 2\n", "1 must be a name"),
        ("n: int = 1", "n: " + "[" * 20_000, "no valid YAML"),
        ("n: int = 1  # or more, ≥ 1", "n: 0\n", "parameter 'n': must be ≥ 1, got 0"),
        ("n: list[int] = [1]  # 0: all", "n: [1, -1]\n", "parameter 'n': must be ≥ 0, got -1"),
        ("n_plan: list[int] = [1, 2]", "n_plan: [1]\n", "'n_plan': expected 2 values .*, got 1"),
        ("n: int = 1", "no_such: 2\n", "parameter 'no_such': no notebook declares it"),
        ("n = 4", "", "01_one.ipynb: parameter 'n' has no known annotation"),
        ("n: dict = {}", "", "01_one.ipynb: parameter 'n' has no known annotation"),
        ("n: int = 2 * m", "", "01_one.ipynb: the default of 'n' is no literal"),
    ],
)
def test_wrong_profiles_and_declarations(tmp_path, parameters, profile, message):
    folder = one_notebook(tmp_path, "1", parameters=parameters, profile=profile)
    with refused(ParameterError, message):
        run_one(folder)


def test_a_profile_that_is_a_folder(samples, tmp_path):
    (tmp_path / "profiles" / "quick.yml").mkdir(parents=True)
    write_notebook(tmp_path / "01_one.ipynb", code("1"))
    with refused(ParameterError, r"quick\.yml: no valid YAML: .*Is a directory"):
        run_one(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seed": -1}, "parameter 'seed': must be ≥ 0, got -1"),
        ({"networks": ["resnet81", "vgg16", "vgg16"]}, "resnet81"),
        ({"epochs": [1]}, "epochs"),
        ({"curve_network": "nosuch"}, "nosuch"),
        ({"dataset": "/no/such"}, "no such|no existing folder"),
        ({"device": "abacus"}, "device must be"),
        ({"recipe": "cake"}, "cake"),
        ({"transfer_networks": ["nosuch"]}, "nosuch"),
    ],
)
def test_what_fails_later_is_found_before_the_first_notebook(tmp_path, parameters, message):
    with refused(ParameterError, message):
        run_report("quick", output=tmp_path / "out", parameters=parameters)
    assert not list(tmp_path.iterdir())


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


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Make `python3` a kernel that is started by these words."""

    def make(*words):
        file = tmp_path / "kernels" / "python3" / "kernel.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"argv": words, "display_name": "", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    return make


def test_a_missing_kernel(samples, tmp_path, kernel, monkeypatch):
    kernel("/no/such/python", "-m", "ipykernel_launcher")
    with pytest.raises(KernelMissingError, match="'python3' needs '/no/such/python', not found"):
        run_report(notebooks=samples, output=tmp_path / "run")
    monkeypatch.setattr(execution, "KERNEL", "no-such-kernel")
    with pytest.raises(KernelMissingError, match="there is no Jupyter kernel 'no-such-kernel'"):
        run_report(notebooks=samples, output=tmp_path / "run")


def test_a_kernel_that_does_not_start(tmp_path, kernel):
    kernel("false")
    with pytest.raises(KernelMissingError, match="01_one: the kernel did not start"):
        run_one(one_notebook(tmp_path / "notebooks", "1"))


def test_a_page_that_cannot_be_shown_is_refused_before_it_runs(tmp_path):
    cells = [nbformat.v4.new_markdown_cell(r"$\nosuch{x}$"), *code("raise SystemError")]
    write_notebook(tmp_path / "01_one.ipynb", cells)
    write_profile(tmp_path, "quick", "")
    with pytest.raises(PageError, match=r"01_one: formula .* has no MathML"):
        run_one(tmp_path)


# --- what goes wrong while a notebook runs -------------------------------------------------------


@pytest.fixture
def earlier(tmp_path):
    """A complete report of an earlier run, written by hand."""
    page = tmp_path / "out" / "01_one.html"
    write_file(page, "an earlier page of run old")
    files = {page.name: hashlib.sha256(page.read_bytes()).hexdigest()}
    save_run(page.parent, {"run": "old", "state": "complete", "files": files})
    return page.parent


def fails(folder, kind, message, **options):
    """Run, expect one clear line, and find the report of an earlier run untouched."""
    with refused(kind, message):
        run_one(folder, **options)
    assert check_report(folder / "out")["run"] == "old"
    assert (folder / "out.unfinished" / "notebooks" / "01_one.partial.ipynb").stat().st_size > 100
    with pytest.raises(IncompleteError, match="no complete report; it holds an unfinished run"):
        check_report(folder / "out.unfinished")


FULL = "open('/dev/full', 'w', buffering=1).write('a\\n')"
DIE, EXIT = "import os; os.kill(os.getpid(), 9)", "raise SystemExit(0)"
NOTES = "e = RuntimeError('half\\nway'); e.add_note('two layers are kept'); raise e"


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        (["x = 1", "raise KeyError('a\\nb')", "x"], "CellError", ", cell 2/3: KeyError: .*"),
        ([NOTES], "CellError", ".* RuntimeError: half way; two layers are kept"),
        ([FULL], "OutputError", ", cell 1/1: OSError: .*No space left on device.*"),
        (["1", DIE, "1"], "KernelDiedError", ", cell 2/3: the kernel died .*"),
        (["1", EXIT, "1", "1"], "IncompleteError", ": 2 of 4 code cells did not run"),
    ],
)
@pytest.mark.usefixtures("earlier")
def test_a_cell_that_fails(tmp_path, cells, kind, message):
    message = f"01_one{message}; partial notebook: .*ipynb$"
    fails(one_notebook(tmp_path, *cells), getattr(execution, kind), message)


@pytest.mark.usefixtures("earlier")
def test_a_time_out_counts_the_whole_notebook(tmp_path):
    folder = one_notebook(tmp_path, "import time", *["time.sleep(1.5)"] * 20)
    start = time.monotonic()
    late = r"01_one, cell \d+/21: not done after 4 s"
    fails(folder, execution.NotebookTimeoutError, late, timeout_s=4)
    assert time.monotonic() - start < 20


@pytest.mark.usefixtures("earlier")
def test_a_promised_file_that_is_not_written(tmp_path):
    folder = one_notebook(tmp_path, "x = 1", about={"promises": ["a"]})
    fails(folder, IncompleteError, "promised .*/a is missing")
    (folder / "out.unfinished" / "a").write_text("of an earlier attempt")
    fails(folder, IncompleteError, "01_one: the promised .*/a is missing")


# --- one run or none -----------------------------------------------------------------------------

WAIT = """\
import os, time; from pathlib import Path
Path(output_dir, 'pid').write_text(str(os.getpid())); time.sleep(seconds)"""
PROGRAM = """\
import json, sys; from siutils import report
report.run_report(notebooks=sys.argv[1], output=sys.argv[2], parameters=json.loads(sys.argv[3]))"""


@contextmanager
def waiting(folder, **parameters):
    """A run in a process of its own whose only cell waits; yields it and its kernel's number."""
    declared = "seconds: int = 300\nseed: int = 42\noutput_dir: str = ''"
    one_notebook(folder, WAIT, parameters=declared)
    words = [str(folder), str(folder / "out"), json.dumps(parameters)]
    pid = folder / "out.unfinished" / "pid"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *words]) as process:
        wait_for(lambda: pid.exists() and pid.read_text())
        try:
            yield process, int(pid.read_text())
        finally:
            process.kill()


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path):
    with waiting(tmp_path) as (process, kernel):
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not runs(kernel))
    assert run_one(tmp_path, parameters={"seconds": 0}).is_file()
    left = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert left == {"index.html", "run.json", "01_one.html", "notebooks/01_one.ipynb"}
    assert not (tmp_path / "out.unfinished").exists()


def test_a_second_run_is_refused_by_name_and_process(tmp_path):
    with waiting(tmp_path, seed=7) as (process, _):
        for seed in (7, 8):
            start = time.monotonic()
            message = rf"the run 'quick', process {process.pid} on .*, is writing there"
            with refused(OutputError, message):
                run_one(tmp_path, parameters={"seed": seed, "seconds": 0})
            assert time.monotonic() - start < 10
        assert read_run(tmp_path / "out.unfinished")["parameters"]["seed"] == 7


HALF = """\
import time; from siutils.core.files import replacing; from pathlib import Path
with replacing(Path(output_dir, 'tables', 'a.csv')) as temporary:
    temporary.write_text('half')
    Path(output_dir, 'pid').write_text('1')
    time.sleep(300)"""
COMMAND = """\
import signal, sys; from siutils.commands import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs lack
sys.exit(main(['report', '--notebooks', sys.argv[1], '--output', sys.argv[1] + '/out']))"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_end_by_signal_leaves_no_traceback_and_no_temporary_file(tmp_path, number, code):
    one_notebook(tmp_path, HALF, parameters="output_dir: str = ''")
    words = [sys.executable, "-c", COMMAND, str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_for((tmp_path / "out.unfinished" / "pid").exists)
        assert list(tmp_path.rglob("*.tmp"))
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == code
    assert errors[-1] in ("siutils report: error: interrupted", "siutils report: error: terminated")
    assert all(line.startswith("01_one  ") for line in errors[:-1]), errors
    assert not list(tmp_path.rglob("*.tmp"))


SECOND = """\
from pathlib import Path
first, last = (Path(output_dir, 'tables', name) for name in ('1.csv', '2.csv'))
last.write_text(str(seed) + first.read_text()) if Path(place).exists() else 1 / 0"""


def two_notebooks(folder, place):
    declared = f"seed: int = 42\nplace: str = {str(place)!r}\noutput_dir: str = ''"
    first = "from pathlib import Path\nfolder = Path(output_dir, 'tables'); folder.mkdir()"
    first += "\n_ = (folder / '1.csv').write_text(str(seed))"
    for name, source in (("1", first), ("2", SECOND)):
        about = {"promises": [f"tables/{name}.csv"]}
        write_notebook(folder / f"{name}.ipynb", code(source, parameters=declared), **about)
    write_profile(folder, "quick", "")
    return folder


def test_the_same_run_goes_on_and_another_begins_anew(tmp_path):
    """A failed run over a complete report changes nothing of it, whatever follows."""
    place = tmp_path / "there"
    folder = two_notebooks(tmp_path, place)
    place.touch()
    run_one(folder)
    complete, work = folder / "out", folder / "out.unfinished"
    number = check_report(complete)["run"]
    place.unlink()
    with refused(execution.CellError, "2, cell 3/3: ZeroDivisionError"):
        run_one(folder, parameters={"seed": 7})
    assert check_report(complete)["run"] == number
    assert (complete / "tables" / "2.csv").read_text() == "4242"
    left = read_run(work)
    assert f"Run {left['run']} is not complete" in (work / "1.html").read_text()
    stamp = (work / "tables" / "1.csv").stat().st_mtime_ns
    place.touch()
    run_one(folder, parameters={"seed": 7})
    run = check_report(complete)
    assert (run["run"], run["started"]) == (left["run"], left["started"])
    assert (complete / "tables" / "1.csv").stat().st_mtime_ns == stamp
    assert (complete / "tables" / "2.csv").read_text() == "77"
    assert "is not complete" not in (complete / "1.html").read_text()
    place.unlink()
    with refused(execution.CellError, "2, cell 3/3"):
        run_one(folder, parameters={"seed": 8})
    place.touch()
    run_one(folder, parameters={"seed": 9})  # another run: nothing of seed 8 is left
    assert (complete / "tables" / "2.csv").read_text() == "99"
    assert check_report(complete)["run"] not in (number, left["run"])


def test_a_change_of_notebooks_or_code_is_another_run(tmp_path, monkeypatch):
    folder = two_notebooks(tmp_path, tmp_path / "there")
    paths = sorted(folder.glob("*.ipynb"))
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1")
    monkeypatch.setattr(run_module, "PACKAGE", package)

    def key(**parameters):
        runs = [execution.NotebookRun(path, None, {}) for path in paths]
        return run_module._key(runs, {"profile": "quick", "parameters": parameters})

    first = key()
    assert key() == first
    assert key(seed=7) != first
    (package / "a.py").write_text("2")
    second = key()
    paths[0].write_text(paths[0].read_text() + " ")
    assert len({first, second, key()}) == 3


def test_check_finds_whatever_is_not_of_the_run(report, tmp_path):
    folder = tmp_path / "run"

    def refuses(message):
        with pytest.raises(IncompleteError, match=message):
            check_report(folder)
        shutil.rmtree(folder)
        shutil.copytree(report, folder)

    shutil.copytree(report, folder)
    number = check_report(folder)["run"]
    for name in ("tables/table1.csv", "figures/curves.svg", "01_blobs.html", "index.html"):
        with (folder / name).open("a") as file:
            file.write(" ")
        refuses(f"{name} is not as run {number} wrote it")
        (folder / name).unlink()
        refuses(f"{name} of run {number} is missing")
    (folder / "tables" / "old.csv").write_text("of another run")
    refuses(r"tables/old\.csv is not as run")
    save_run(folder, read_run(folder) | {"run": "another"})
    refuses("the page 01_blobs.html does not name run another")
    (folder / "run.json").unlink()
    refuses("no complete report; it holds no run.json")


def test_files_of_others_are_never_replaced(samples, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "notes.txt"):
        with refused(OutputError, r"holds notes\.txt, which is of no report|it is a file"):
            run_report(notebooks=samples, output=output)
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished" / "a").touch()
    with refused(OutputError, r"run\.unfinished is in the way and of no run"):
        run_report(notebooks=samples, output=tmp_path / "run")
    assert {p.name for p in tmp_path.rglob("*")} == {"notes.txt", "run.unfinished", "a"}
    monkeypatch.chdir(tmp_path)
    with refused(OutputError, "as it is the working folder"):
        run_report(notebooks=samples, output=".")


def test_paths_that_cannot_be_used(samples, tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output in (tmp_path / "loop", "~nosuch/run", os.fsdecode(b"caf\xe9")):
        with refused(OutputError, "^output: '.*' cannot be used: "):
            run_report(notebooks=samples, output=output)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for output in ("run", None):
        with refused(OutputError, "output: the working folder has been deleted"):
            run_report(notebooks=samples, output=output)


def test_a_cache_that_cannot_be_written_is_found_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIUTILS_CACHE", str(tmp_path / "file" / "cache"))
    folder = one_notebook(tmp_path, "1", "# uses cache_dir")
    with refused(OutputError, "cache: cannot write .*/file.*: Not a directory"):
        run_one(folder)
    assert not list(tmp_path.glob("out*"))


def test_notebooks_that_saw_different_data_make_no_report(tmp_path):
    source = "import siutils.report\nout = siutils.report.Results(name, output_dir)"
    source += "\nout.record(dataset='mine', checksum=name)"
    for name in ("1", "2"):
        declared = f"name: str = '{name}'\noutput_dir: str = ''"
        write_notebook(tmp_path / f"{name}.ipynb", code(source, parameters=declared))
    write_profile(tmp_path, "quick", "")
    with refused(IncompleteError, "2: the data set mine has changed since the notebook before"):
        run_one(tmp_path)
    assert read_run(tmp_path / "out.unfinished")["key"] == ""


def test_results_of_a_notebook_alone_never_mix_with_a_report(report, tmp_path):
    assert Results("a", profile="demo").folder.name == "demo.notebooks"
    with pytest.raises(ValueError, match="holds a complete report; choose another"):
        Results("01_blobs", report)
    out = Results("a", tmp_path)
    save_run(tmp_path, {"run": "another"})
    with pytest.raises(RuntimeError, match="has become the folder of another run"):
        out.record(n=1)


def test_progress_on_a_terminal_is_one_line_that_ticks(monkeypatch, tmp_path):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    status = tmp_path / "01_one.progress"
    with Progress("01_one", 3, status) as progress:
        progress.cell_started(nbformat.v4.new_code_cell("1"), 1)
        status.write_text("resnet18: epoch 1/2")
        time.sleep(1.3)
    assert "\r\x1b[K01_one  cell 2/3  resnet18: epoch 1/2  0:01" in terminal.getvalue()
    assert not status.exists()
    assert terminal.getvalue().endswith("\r\x1b[K01_one  3 cells  0:01\n")
    assert terminal.getvalue().count("\n") == 1


def test_progress_in_a_file_has_each_line_of_a_training_once(capsys, tmp_path):
    status = tmp_path / "01_one.progress"
    with Progress("01_one", 3, status):
        for line in ("epoch 1/2", "epoch 2/2"):
            status.write_text(line)
            time.sleep(2.2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["01_one", "starting"], ["01_one", "starting"], ["01_one", "3 cells"],
    ]  # fmt: skip
    assert ["epoch 1/2" in lines[0], "epoch 2/2" in lines[1]] == [True, True]


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
