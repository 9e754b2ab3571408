"""What a notebook hands over: figures, tables, computed text and facts, each stored and shown.

A run's folder holds ``figures/``, ``tables/`` and ``records/<notebook>.json``; ``report.py`` reads
the records for ``run.json`` and the index page. Everything is written under a temporary name and
renamed, so a killed run never leaves half a file behind.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import resource
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from siutils.core import home_dir, in_csv, in_html, write_file
from siutils.report.folder import read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DASH = "\N{EN DASH}"  # stands for a missing value in a table
_MIME = {"svg": "image/svg+xml", "png": "image/png"}


class Results:
    """The place where one notebook puts its results.

    Args:
        notebook: Name of the notebook without ``.ipynb``; names the record file.
        output_dir: Folder of the run. Empty: ``reports/<profile>.notebooks`` in the checkout this
            package lies in, else below the working directory.
        profile: Name of the parameter profile, used for the default folder.

    Raises:
        ValueError: If a name holds anything but letters, digits, ``-`` and ``_``, or the folder
            holds a complete report, whose results would be mixed with these.
        OSError: If the folder cannot be created or written.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> out = Results("demo", output_dir=folder.name)
    >>> out.table(pd.DataFrame({"n": [2], "si": [0.5]}), "t")
    >>> print((out.folder / "tables" / "t.csv").read_text().strip())
    n,si
    2,0.5
    >>> folder.cleanup()
    """

    def __init__(self, notebook: str, output_dir: str | Path = "", profile: str = "quick") -> None:
        self.notebook = _checked_name("notebook", notebook)
        self.profile = _checked_name("profile", profile)
        alone = default_output(f"{profile}.notebooks")
        self.folder = (Path(output_dir).expanduser() if str(output_dir) else alone).resolve()
        run = read_run(self.folder)
        if run.get("state") == "complete":
            raise ValueError(f"output_dir: {self.folder} holds a complete report; choose another")
        self._start = time.monotonic()
        self._record: dict[str, Any] = {
            "run": run.get("run"),
            "notebook": notebook,
            "profile": profile,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": {},
            "figures": {},
            "tables": {},
        }
        self._save()

    def figure(
        self, fig: Figure, name: str, *, alt: str, caption: str = "", format: str = "svg"
    ) -> None:
        """Store ``fig`` as ``figures/<name>.<format>``, show it with its alt text, and close it.

        Args:
            fig: A matplotlib figure.
            name: File name without suffix.
            alt: What the figure shows, for readers who do not see it. Must not be empty.
            caption: Text below the figure.
            format: ``"svg"`` (curves, bars) or ``"png"`` (photographs, thousands of points).

        Raises:
            ValueError: If ``alt`` is empty, or ``name`` or ``format`` is not allowed.
        """
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        _checked_name("name", name)
        if not alt.strip():
            raise ValueError(
                f"alt: figure {name!r} needs a description for readers who cannot see it"
            )
        if format not in _MIME:
            raise ValueError(f"format: expected 'svg' or 'png', got {format!r}")
        buffer = io.BytesIO()
        metadata = {"Date": None} if format == "svg" else {}
        # A fixed salt and no date: equal results give byte-equal SVG files.
        with mpl.rc_context({"svg.hashsalt": "siutils"}):
            fig.savefig(buffer, format=format, dpi=144, metadata=metadata)
        width = round(fig.get_figwidth() * 96)
        plt.close(fig)
        file = f"{name}.{format}"
        write_file(self.folder / "figures" / file, buffer.getvalue())
        self._record["figures"][file] = {"alt": alt, "caption": caption, "width": width}
        self._save()
        shown = figure_html(data_uri(self.folder / "figures" / file), alt, caption, width)
        _show("text/html", shown, f"[figure {file}] {alt}")

    def table(
        self,
        frame: pd.DataFrame,
        name: str,
        *,
        caption: str = "",
        show: Sequence[str] | None = None,
    ) -> None:
        """Store ``frame`` as ``tables/<name>.csv`` and show it as a readable table.

        The file has full precision and all columns; an index is stored only where it has a name.

        Args:
            frame: At least one row.
            name: Of the file, without ending.
            caption: Shown above the table.
            show: The columns to show; default all, none for a table that is only stored.

        Raises:
            TypeError: If ``frame`` is no DataFrame.
            ValueError: If ``name`` is not allowed or ``frame`` has no row.
        """
        _checked_name("name", name)
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"frame: expected a pandas DataFrame, got {type(frame).__name__}")
        if frame.empty:
            raise ValueError(f"frame: table {name!r} has no row or no column")
        if any(level is not None for level in frame.index.names):
            frame = frame.reset_index()
        stored = frame.apply(lambda c: c if pd.api.types.is_numeric_dtype(c) else c.map(in_csv))
        content = stored.rename(columns=in_csv).to_csv(index=False)
        write_file(self.folder / "tables" / f"{name}.csv", content)
        shown = frame if show is None else frame[list(show)]
        about = {"caption": caption} | (
            {"show": [in_csv(column) for column in show]} if show else {}
        )
        self._record["tables"][f"{name}.csv"] = about
        self._save()
        if len(shown.columns):
            _show("text/html", table_html(shown, caption), shown.to_string(index=False))
        else:
            self.text(f"{caption} Stored as `tables/{name}.csv`.")

    def text(self, markdown: str) -> None:
        """Shows Markdown computed from the results; ``$…$`` is a formula.

        Names in it belong into `siutils.core.in_markdown`; HTML is shown as it is written.
        """
        _show("text/markdown", markdown, html.unescape(markdown))

    def progress(self, line: str) -> None:
        """Tells whoever waits for the notebook what it is doing; nothing of it is stored."""
        write_file(self.folder / "records" / f"{self.notebook}.progress", line)

    def record(self, **facts: Any) -> None:
        """Keeps facts (data set, checksum, …) for ``run.json``; a later value replaces an earlier.

        Raises:
            ValueError: If a value is not finite.
        """
        for key, value in facts.items():
            try:
                self._record["facts"][key] = json.loads(
                    json.dumps(value, default=_plain, allow_nan=False)
                )
            except ValueError as error:
                raise ValueError(
                    f"{key}: a fact must be finite and not recursive: {error}"
                ) from None
        self._save()

    def _save(self) -> None:
        if read_run(self.folder).get("run") != self._record["run"]:
            raise RuntimeError(f"{self.folder} has become the folder of another run")
        self._record["seconds"] = round(time.monotonic() - self._start, 2)
        self._record["environment"] = _environment()
        text = json.dumps(self._record, indent=1, ensure_ascii=False)
        write_file(self.folder / "records" / f"{self.notebook}.json", text + "\n")


def default_output(profile: str) -> Path:
    """``reports/<profile>`` in the checkout this package lies in, else in the working directory.

    >>> default_output("quick").parts[-2:]
    ('reports', 'quick')
    """
    home = home_dir()
    base = home if (home / "pyproject.toml").is_file() else Path.cwd()
    return base / "reports" / profile


def data_uri(image: Path) -> str:
    """Encodes an SVG or PNG file as an address that holds the whole image.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.svg").write_text("<svg/>")
    ...     data_uri(Path(folder) / "a.svg")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    content = base64.b64encode(image.read_bytes()).decode("ascii")
    return f"data:{_MIME[image.suffix[1:]]};base64,{content}"


def figure_html(source: str, alt: str, caption: str = "", width: int | None = None) -> str:
    """Writes an image with description and caption; ``source`` is a data URI or a relative address.

    >>> figure_html("data:,", "a dot").count('alt="a dot"')
    1
    """
    style = f"width:{width}px;" if width else ""
    image = (
        f'<img src="{in_html(source)}" alt="{in_html(alt)}" '
        f'style="{style}max-width:100%;height:auto">'
    )
    below = f"<figcaption>{in_html(caption)}</figcaption>" if caption else ""
    return f'<figure class="siutils-figure">{image}{below}</figure>'


# Not by pandas' Styler: it gives each cell a class and each table a style element of its own.
def table_html(frame: pd.DataFrame, caption: str = "") -> str:
    """Writes a table for reading: floats with four digits, numbers right-aligned, a dash for none.

    >>> "<td>0.1741</td>" in table_html(pd.DataFrame({"si": [0.17406]}))
    True
    """
    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    cells = [_formatted(column) for column in columns]
    left = [not pd.api.types.is_numeric_dtype(c) or c.dtype == bool for c in columns]

    def row(tag: str, texts: list[str]) -> str:
        style = [' style="text-align:left"' if is_left else "" for is_left in left]
        pairs = zip(texts, style, strict=True)
        return "<tr>" + "".join(f"<{tag}{s}>{in_html(t)}</{tag}>" for t, s in pairs) + "</tr>"

    head = row("th", [_column_title(name) for name in frame.columns])
    body = "".join(row("td", list(texts)) for texts in zip(*cells, strict=True))
    above = f"<figcaption>{in_html(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="siutils-table">{above}<div style="overflow-x:auto"><table>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div></figure>"
    )


def _column_title(name: object) -> str:
    parts = name if isinstance(name, tuple) else (name,)
    return " ".join(str(part) for part in parts if str(part)).replace("_", " ")


def _formatted(column: pd.Series) -> list[str]:
    """Formats a column with one number of decimals, so that the digits line up."""
    if pd.api.types.is_float_dtype(column):
        finite = [abs(float(v)) for v in column if math.isfinite(v)]
        largest = max(finite, default=0.0)
        decimals = 4 if largest <= 1 else max(0, 4 - len(str(int(largest))))
        return [_float(float(v), decimals) for v in column]
    if pd.api.types.is_integer_dtype(column):
        return [_DASH if pd.isna(v) else _integer(int(v)) for v in column]
    return [_cell(value) for value in column]


def _cell(value: Any) -> str:
    if value is None or value is pd.NaT or value is pd.NA:
        return _DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _float(value, 4)
    return _integer(value) if isinstance(value, int) else str(value)


def _float(value: float, decimals: int) -> str:
    if math.isnan(value):
        return _DASH
    if value and abs(value) < 0.5 * 10**-decimals:
        return f"{value:.1e}"
    return f"{value:,.{decimals}f}" if abs(value) >= 10_000 else f"{value:.{decimals}f}"


def _integer(value: int) -> str:
    return f"{value:,}" if abs(value) >= 10_000 else str(value)


def _checked_name(argument: str, name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{argument}: use letters, digits, '-' and '_' only, got {name!r}")
    return name


def _plain(value: Any) -> Any:
    """Converts NumPy and torch values to Python's, anything else to text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _environment() -> dict[str, Any]:
    """Returns peak memory, and torch's devices if the notebook uses torch."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts: dict[str, Any] = {
        "peak_memory_mb": peak // (2**20 if sys.platform == "darwin" else 1024)
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        facts["devices"] = ["cpu"]
        if torch.cuda.is_available():
            indices = range(torch.cuda.device_count())
            facts["devices"] += [torch.cuda.get_device_name(i) for i in indices]
            facts["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return facts


def _show(mime: str, content: str, plain: str) -> None:
    """Displays content in a notebook; does nothing outside of one."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display

    if InteractiveShell.initialized():
        display({mime: content, "text/plain": plain}, raw=True)
