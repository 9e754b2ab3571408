"""Progress of a report in the terminal; nothing of it reaches the stored notebooks."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from siutils.core import visible


class Progress:
    """Tells which cell of a notebook runs and for how long.

    On a terminal one line is rewritten each second, elsewhere each code cell and each line of a
    training gets a line.

    Args:
        name: Name of the notebook.
        cells: How many cells it has.
        status: File to which the notebook writes what it is doing, see `Results.progress`.
        show: Whether to write at all; ``where`` is kept in any case.
    """

    def __init__(self, name: str, cells: int, status: Path, show: bool = True) -> None:
        self.name = name
        self._status, self._told = status, ""
        self.cells = cells
        self.where = ""  # "cell 5/23", empty before the first cell
        self._show = show
        self._live = sys.stderr.isatty()
        self._start = time.monotonic()
        self._done = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._status.unlink(missing_ok=True)
        if self._show:
            self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._done.set()
        self._status.unlink(missing_ok=True)
        if self._ticker.is_alive():
            self._ticker.join()
        if self._show:
            state = f"{self.cells} cells" if kind is None else f"stopped in {self.where or 'start'}"
            self._write(state, last=True)

    def cell_started(self, cell: Any, cell_index: int, **_: Any) -> None:
        """Hook for nbclient's ``on_cell_start``."""
        self.where = f"cell {cell_index + 1}/{self.cells}"
        if self._show and not self._live and cell.cell_type == "code":
            self._write(self.where)

    def _tick(self) -> None:
        while not self._done.wait(1.0):
            told = self._status.read_text(encoding="utf-8") if self._status.is_file() else ""
            if self._live or told != self._told:
                self._write(f"{self.where or 'starting'}  {told}".rstrip())
            self._told = told

    def _write(self, state: str, last: bool = False) -> None:
        line = f"{visible(f'{self.name}  {state}')}  {clock(time.monotonic() - self._start)}"
        if self._live:
            line = f"\r\x1b[K{line}"
        sys.stderr.write(line if self._live and not last else line + "\n")
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """Formats a duration as minutes and seconds, with hours if there are any.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
