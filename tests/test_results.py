import base64
import json
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from siutils.core.files import write_file
from siutils.report.results import Results, data_uri, default_output, figure_html, table_html


@pytest.fixture
def out(tmp_path):
    return Results("01_demo", output_dir=tmp_path / "run")


def record(out):
    return json.loads((out.folder / "records" / "01_demo.json").read_text())


def figure():
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, 1], [0, 1])
    return fig


@pytest.mark.parametrize(("format", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_figure_is_stored_recorded_and_closed(out, format, start):
    fig = figure()
    out.figure(fig, "line", alt="A rising line.", caption="Line.", format=format)
    assert (out.folder / "figures" / f"line.{format}").read_bytes().startswith(start)
    assert not plt.fignum_exists(fig.number)
    told = record(out)["figures"][f"line.{format}"]
    assert told == {"alt": "A rising line.", "caption": "Line.", "width": 384}


def test_equal_figures_give_equal_files_and_change_no_setting(out):
    before = mpl.rcParams.copy()
    out.figure(figure(), "a", alt="line")
    out.figure(figure(), "b", alt="line")
    first, second = (out.folder / "figures" / name for name in ("a.svg", "b.svg"))
    assert first.read_bytes() == second.read_bytes()
    assert mpl.rcParams == before


def test_figure_html_escapes_and_holds_the_image(out):
    out.figure(figure(), "a", alt="line")
    file = out.folder / "figures" / "a.svg"
    uri = data_uri(file)
    assert base64.b64decode(uri.partition(",")[2]) == file.read_bytes()
    page = figure_html(uri, 'a "quoted" <alt>', "SI > 0", 384)
    escaped = 'alt="a &quot;quoted&quot; &lt;alt&gt;"', "<figcaption>SI &gt; 0</figcaption>"
    for part in (*escaped, "width:384px"):
        assert part in page


def test_table_is_stored_in_full_precision_with_its_index(out):
    frame = pd.DataFrame({"si": [1 / 3, 0.5]}, index=pd.Index(["a", "b"], name="model"))
    before = frame.copy()
    out.table(frame, "t", caption="Two rows.")
    pd.testing.assert_frame_equal(frame, before)
    file = out.folder / "tables" / "t.csv"
    pd.testing.assert_frame_equal(pd.read_csv(file, index_col="model"), frame, check_exact=True)
    assert record(out)["tables"] == {"t.csv": {"caption": "Two rows."}}
    rows = frame.reset_index()
    for show, told in ((["si"], {"show": ["si"]}), ([], {})):
        out.table(rows, "t", show=show)
        assert record(out)["tables"] == {"t.csv": {"caption": ""} | told}
        assert file.read_text().startswith("model,si\n")
    for part in (rows[["si"]][1:], pd.DataFrame({"si": [0.5]})):
        out.table(part, "t")
        assert file.read_text() == "si\n0.5\n"


def cells(frame):
    return re.findall(r"<td[^>]*>(.*?)</td>", table_html(frame))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.174064, np.nan], ["0.1741", "–"]),
        ([1.0, 0.5], ["1.0000", "0.5000"]),
        ([12.3456, 3.2], ["12.35", "3.20"]),
        ([12345.6, 1.0], ["12,346", "1"]),
        ([0.00001, 0.5], ["1.0e-05", "0.5000"]),
        ([-0.25, 0.0], ["-0.2500", "0.0000"]),
        ([50_000, 400], ["50,000", "400"]),
        ([True, False], ["yes", "no"]),
        (["<b>", None], ["&lt;b&gt;", "–"]),
        ([float("inf"), 0.5], ["inf", "0.5000"]),
    ],
)
def test_table_cells_are_readable(values, shown):
    assert cells(pd.DataFrame({"x": values})) == shown


def test_table_puts_text_left_and_shows_two_level_headers():
    page = table_html(pd.DataFrame({("train", "si"): [0.5], ("model", ""): ["vgg16"]}))
    assert '<th>train si</th><th style="text-align:left">model</th>' in page


def test_record_merges_facts_and_takes_numpy(out):
    out.record(dataset="digits", n=np.int64(3))
    out.record(n=4, values=np.array([1.5, 2.5]), folder=out.folder)
    known = {"dataset": "digits", "n": 4, "values": [1.5, 2.5], "folder": str(out.folder)}
    assert record(out)["facts"] == known
    environment = record(out)["environment"]
    assert environment["peak_memory_mb"] > 10
    assert environment["threads"] == torch.get_num_threads()
    assert environment["devices"][0] == "cpu"


def test_a_new_run_starts_a_new_record(out):
    out.record(old=1)
    Results("01_demo", output_dir=out.folder)
    assert record(out)["facts"] == {}


def test_wrong_input_is_refused(out):
    with pytest.raises(ValueError, match="alt: figure 'a' needs a description"):
        out.figure(figure(), "a", alt=" ")
    with pytest.raises(ValueError, match="format: expected 'svg' or 'png', got 'pdf'"):
        out.figure(figure(), "a", alt="x", format="pdf")
    with pytest.raises(ValueError, match="name: use letters"):
        out.table(pd.DataFrame({"a": [1]}), "../a")
    with pytest.raises(TypeError, match="frame: expected a pandas DataFrame, got list"):
        out.table([1], "a")
    with pytest.raises(ValueError, match="table 'a' has no row"):
        out.table(pd.DataFrame({"a": []}), "a")
    with pytest.raises(ValueError, match="loss: a fact must be finite"):
        out.record(loss=float("nan"))
    with pytest.raises(ValueError, match="profile: use letters"):
        Results("a", profile="a/b")
    with pytest.raises(OSError, match="Not a directory"):
        Results("a", output_dir="/dev/null/run")
    plt.close("all")


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "\ud800")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(OSError, match=r"folder\.txt"):
        write_file(tmp_path / "folder.txt", "a file cannot replace a folder")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder.txt"]


def test_default_folder_is_in_the_checkout_or_the_working_directory(tmp_path, monkeypatch):
    from siutils.report import results

    assert default_output("quick") == results.home_dir() / "reports" / "quick"
    monkeypatch.setattr(results, "home_dir", lambda: tmp_path / "cache")  # as if installed
    monkeypatch.chdir(tmp_path)
    assert default_output("quick") == tmp_path / "reports" / "quick"
