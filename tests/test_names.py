"""Names are text: hostile ones go through `rank`, `layers` and a report, in a real browser."""

import ast
import csv
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image
from sample_notebooks import write_profile

from siutils import figures
from siutils.core import in_csv, in_figure, visible
from siutils.core.keys import PACKAGE
from siutils.report.pages import SCRIPT, Entry, Frame, check_page, notebook_page
from siutils.report.run import notebook_folder, run_report

NAMES = (
    *("<svg onload=alert(1)>", "<img src=x onerror=alert(2)>", "<script>alert(3)<script>"),
    *('"><script>alert(4)', "' onmouseover='alert(5)", "<iframe srcdoc='<script>alert(6)'>"),
    "<meta http-equiv=refresh content='0;url=javascript:alert(7)'>",
    *(
        "<base href=http:evil.example>",
        "<form action=javascript:alert(8)>",
        "<style>*{display:none}",
    ),
    *("javascript:alert(9)", "[a](javascript:alert(10))", "![x](http:evil.example)", "<http:a.b>"),
    *("**bold** _x_", "`code`", "# heading", "- item", "1. one", "> quote", "a | b", "---"),
    *(r"$\frac$", "$x$", "$$", r"\(x\)", r"\begin{align}", r"$\unicode{0}", "&lt;b&gt;", "&#60;"),
    *("\x1b[31mred\x1b]0;title\x07", "back\b\bspace", "two\nlines", "\r\t", "a\u202ecba", "\u200b"),
    *("=1+1", "+cmd|calc", "-2+3", "@SUM(1)", "{{ 7 * 7 }}", "{0} %s", "_hidden", "NA"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of forty classes and more, whose images have hostile names, too."""
    place = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        folder = place / "<b onclick=alert(0)>" / name
        folder.mkdir(parents=True)
        for j in range(5):
            pixels = (rng.integers(0, 60, (16, 16, 3)) + 4 * i).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{NAMES[(i + j) % len(NAMES)]}{j}.png")
    return place


def run(place, command, *options):
    """The folder of a report; what the command prints has no control character."""
    data = str(place / "<b onclick=alert(0)>")
    words = [
        command,
        "--data",
        data,
        *options,
        "--size",
        "64",
        "--per-class",
        "5",
        "--out",
        command,
    ]
    siutils = [Path(sys.executable).parent / "siutils", *words]
    done = subprocess.run(siutils, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())
    return place / command


@pytest.fixture(scope="module")
def reports(place):
    shutil.copytree(notebook_folder(), place / "notebooks", ignore=shutil.ignore_patterns("0[23]*"))
    write_profile(place / "notebooks", "quick", "pixel_samples_per_class: 4\ncurve_repeats: 2\n")
    data = {"dataset": str(place / "<b onclick=alert(0)>")}
    run_report(notebooks=place / "notebooks", output=place / "report", parameters=data)
    ranked = run(place, "rank", "--models", "squeezenet1_1=random")
    layered = run(place, "layers", "--model", "squeezenet1_1", "--weights", "random")
    return place / "report", ranked, layered


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium installed")
def test_pages_show_hostile_names_and_do_nothing_else(reports, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        shown = {}
        for page in [page for folder in reports for page in folder.glob("*.html")]:
            shown[page.stem], deeds = browser.deeds(page, SCRIPT)
            assert deeds == [], page
        control = tmp_path / "control.html"
        for html in (
            *("<script>1</script>", "<svg onload=alert(1)>", "<img src=http://a.example/x.png>"),
            '<meta http-equiv=refresh content="0;url=http://b.example/">',
        ):
            control.write_text(html)
            assert browser.deeds(control, SCRIPT)[1], html
    finally:
        browser.close()
    for page, least in (("01_separation_index", 18), ("layers", 5), ("rank", 1)):
        text = " ".join(shown[page].split())
        found = [name for name in NAMES if " ".join(visible(name).split()) in text]
        assert len(found) >= least, (page, found)


def test_tables_hold_no_formula_and_figures_are_valid(reports):
    for folder in reports:
        for file in folder.rglob("*.csv"):
            with file.open(newline="") as lines:
                cells = [cell for row in csv.reader(lines) for cell in row]
            formulas = [c for c in cells if re.match(r"\s*[=+@-]", c) and not number(c)]
            assert formulas == [], file
            assert all(cell.isprintable() for cell in cells), file
        for file in folder.rglob("*.svg"):
            ET.parse(file)
    with (reports[1] / "tables" / "data.csv").open(newline="") as lines:
        assert {row["class"] for row in csv.DictReader(lines)} == {in_csv(name) for name in NAMES}


def number(text):
    try:
        return bool(float(text)) or True
    except ValueError:
        return False


def test_errors_show_no_terminal_commands(place, tmp_path):
    folder = tmp_path / "data" / "\x1b[31mred\x07\n"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    siutils = Path(sys.executable).parent / "siutils"
    given = ["--models", "squeezenet1_1=random", "--data", tmp_path / "data"]
    for words in (["rank", *given], ["report", "--profile", "\x1b[2J"], ["score", "a", "\x1b]0;x"]):
        done = subprocess.run([siutils, *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert r"\x1b" in done.stderr
        assert all(line.isprintable() for line in done.stderr.splitlines())


def drawn(figure):
    return {text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))}


def test_every_figure_takes_names_as_text(tmp_path):
    table = pd.DataFrame({"class": NAMES, "si": 0.5})
    for figure in (
        figures.class_bars(table),
        figures.class_map(table),
        figures.image_grid(np.zeros((len(NAMES), 3, 4, 4), np.uint8), NAMES),
        figures.confusion_map(pd.DataFrame(np.ones((9, 9))), NAMES[22:31]),
        figures.layer_bands(table.assign(depth=0, layer=table["class"], series="a", value=0.1)),
    ):
        figure.savefig(tmp_path / "a.svg")
        ET.parse(tmp_path / "a.svg")
        assert drawn(figure) & {in_figure(name) for name in NAMES}
        assert all("$" not in text.replace(r"\$", "") for text in drawn(figure))
    assert table["class"].tolist() == list(NAMES)
    assert all(hasattr(getattr(figures, name), "__wrapped__") for name in figures.__all__[3:])


ALLOWED = {  # who may write text of its own making where names land
    "escape": {"core/text.py"},
    "print": {"commands/folders.py", "commands/command_line.py"},  # `say`, and the table of `score`
    "to_csv": {"report/results.py", "training/files.py", "commands/command_line.py"},
    "to_html": set(),
    "write": {"report/progress.py", "features/extraction.py", "layers/scores.py"},
}


def test_nothing_else_puts_data_into_pages_tables_and_terminals():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                allowed = ALLOWED.get(name, {file.relative_to(PACKAGE).as_posix()})
                assert file.relative_to(PACKAGE).as_posix() in allowed, (file, node.lineno, name)


ENTRY = Entry("01_a", "A")
FRAME = Frame("long", "0.1.0", "0123456789", "2026-01-01", [ENTRY])


@pytest.mark.parametrize("name", NAMES)
def test_computed_markdown_runs_nothing_even_if_a_notebook_escapes_nothing(name):
    output = new_output("display_data", {"text/markdown": f"Best is **{name}**.\n\n{name}\n"})
    page = notebook_page(new_notebook(cells=[new_code_cell("1", outputs=[output])]), ENTRY, FRAME)
    assert not re.search(r"<(img|svg|iframe|meta http|base|form)[^>]*(alert|evil)", page)


@pytest.mark.parametrize(
    "html",
    [
        "<script>alert(1)</script>",
        f"<script>{SCRIPT} </script>",
        "<svg ONLOAD=alert(1)></svg>",
        '<a href="java\nscript:alert(1)">x</a>',
        '<a href=" data:text/html,<script>1</script>">x</a>',
        '<meta http-equiv="Refresh" content="0">',
        "<form><input></form>",
        "<iframe srcdoc='x'></iframe>",
        '<svg><animate attributeName="href" values="javascript:alert(1)"/></svg>',
    ],
)
def test_what_would_run_is_refused_whoever_wrote_it(html):
    with pytest.raises(ValueError, match=r"01_a\.html: <\w+[ >].*(not allowed|would)"):
        check_page(html, "01_a.html")
    output = new_output("display_data", {"text/html": html})
    with pytest.raises(ValueError, match=r"01_a\.html: <\w+"):
        notebook_page(new_notebook(cells=[new_code_cell("1", outputs=[output])]), ENTRY, FRAME)
