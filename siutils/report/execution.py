"""One notebook executed by papermill, and the proof that it ran to its end.

papermill returns from a notebook that stopped early and asks for no results, so success means:
it returned, every code cell has an execution count, each promised file is there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siutils.core import write_file
from siutils.report.parameters import Parameter, ReportError, papermill_path
from siutils.report.progress import Progress

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNEL = "python3"
_KERNEL_CONFIG = {
    "KernelManager": {"transport_encryption": "auto"},
    # a kernel that is told to end in the middle of a cell would log a traceback
    "NotebookClient": {"extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]},
}


class OutputError(ReportError):
    """The output folder cannot be created or written."""

    exit_code = 3


class KernelMissingError(ReportError):
    """There is no Jupyter kernel to run the notebooks, or it does not start."""

    exit_code = 4


class KernelDiedError(ReportError):
    """The kernel of a notebook died while a cell ran."""

    exit_code = 5


class NotebookTimeoutError(ReportError):
    """A notebook took longer than it may."""

    exit_code = 6


class CellError(ReportError):
    """A cell raised an error: ``kind`` is the name of its class, ``reason`` what it says."""

    exit_code = 7
    kind = reason = ""


class IncompleteError(ReportError):
    """A notebook ended, but a cell did not run or a promised file is missing."""

    exit_code = 8


@dataclass
class NotebookRun:
    """One notebook on its way through the report."""

    path: Path
    source: NotebookNode
    declared: dict[str, Parameter]
    given: dict[str, Any] = field(default_factory=dict)
    executed: NotebookNode | None = None
    record: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.path.stem

    def resume(self, work: Path, seconds: float) -> None:
        """Takes over what an earlier attempt of the same run completed."""
        self.executed, self.seconds = read_notebook(work / "notebooks" / self.path.name), seconds
        self.completed(work, "delete this folder")

    def completed(self, work: Path, kept: str) -> None:
        """Checks that every cell ran and every promised file is there; papermill checks neither."""
        assert self.executed is not None
        code = [c for c in self.executed.cells if c.cell_type == "code" and c.source.strip()]
        missed = sum(cell.execution_count is None for cell in code)
        if missed:
            raise IncompleteError(
                f"{self.name}: {missed} of {len(code)} code cells did not run; {kept}"
            )
        for file in (work / name for name in self.promises):
            if not file.is_file():
                raise IncompleteError(f"{self.name}: the promised {file} is missing; {kept}")
        record = work / "records" / f"{self.name}.json"
        if record.is_file():
            self.record = json.loads(record.read_text(encoding="utf-8"))

    @property
    def about(self) -> dict[str, Any]:
        """The notebook's own description: title, question, main results, promised files."""
        return dict(self.source.metadata.get("siutils", {}))

    @property
    def parameters(self) -> dict[str, Any]:
        """The values in force, defaults included, without those about this machine."""
        values = {name: p.default for name, p in self.declared.items()} | self.given
        return {name: value for name, value in values.items() if name != "output_dir"}

    @property
    def main_table(self) -> str:
        name = self.about.get("main_table", "")
        return f"tables/{Path(name).stem}.csv" if name else ""

    @property
    def main_figure(self) -> str:
        name = self.about.get("main_figure", "")
        return f"figures/{name}" if name else ""

    @property
    def promises(self) -> list[str]:
        """Files that the notebook must write."""
        named = [*self.about.get("promises", []), self.main_table, self.main_figure]
        return list(dict.fromkeys(name for name in named if name))


def read_notebook(path: Path) -> NotebookNode:
    """Reads a notebook file as format 4."""
    import nbformat  # here and below: these take seconds to import, and only a report needs them

    return nbformat.read(path, as_version=4)


def check_kernel() -> None:
    """Refuses to start if no kernel can start.

    Raises:
        KernelMissingError: If there is no kernel ``python3``, or its program is missing.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    fix = "reinstall the environment, or: python -m pip install ipykernel"
    try:
        command = KernelSpecManager().get_kernel_spec(KERNEL).argv
    except NoSuchKernel:
        raise KernelMissingError(f"there is no Jupyter kernel {KERNEL!r}; {fix}") from None
    program = command[0] if command else ""
    # jupyter_client runs a bare "python" with the interpreter of this process.
    if program not in {"python", "python3"} and not shutil.which(program):
        raise KernelMissingError(
            f"the Jupyter kernel {KERNEL!r} needs {program!r}, not found; {fix}"
        )


def execute(run: NotebookRun, target: Path, timeout_s: float | None, show: bool) -> None:
    """Executes one notebook; only a complete one replaces its predecessor."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    partial = target / "notebooks" / f"{run.name}.partial.ipynb"
    write_file(partial, "")
    record = target / "records" / f"{run.name}.json"
    for file in (record, *(target / name for name in run.promises)):
        file.unlink(missing_ok=True)  # of an earlier attempt
    start = time.monotonic()
    cells = len(run.source.cells) + bool(run.given)  # papermill adds a cell with the values
    kept = f"partial notebook: {partial}"
    status = target / "records" / f"{run.name}.progress"
    with _quiet(), Progress(run.name, cells, status, show) as progress:
        try:
            run.executed = papermill.execute_notebook(
                papermill_path(run.path),
                papermill_path(partial),
                parameters=run.given,
                kernel_name=KERNEL,
                progress_bar=False,
                start_timeout=120,
                iopub_timeout=120,
                config=Config(_KERNEL_CONFIG),
                timeout_func=lambda _: timeout_s and max(0.1, start + timeout_s - time.monotonic()),
                on_cell_start=progress.cell_started,
            )
        except PapermillExecutionError as error:
            raise _cell_error(error, target, f"{run.name}, {progress.where}", kept) from None
        except CellTimeoutError as error:
            reason = f"not done after {timeout_s:g} s" if timeout_s else one_line(error)
            raise NotebookTimeoutError(f"{run.name}, {progress.where}: {reason}; {kept}") from None
        except DeadKernelError:
            raise KernelDiedError(
                f"{run.name}, {progress.where}: the kernel died (often: out of memory); {kept}"
            ) from None
        except (RuntimeError, NoSuchKernel) as error:
            if progress.where:
                raise
            raise KernelMissingError(
                f"{run.name}: the kernel did not start: {one_line(error)}"
            ) from None
    run.seconds = time.monotonic() - start
    run.completed(target, kept)
    partial.replace(partial.with_name(f"{run.name}.ipynb"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences papermill's log, whose errors we raise ourselves."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cell_error(error: Any, target: Path, where: str, kept: str) -> ReportError:
    """Turns the error of a cell into one line; a full disk is an error of the output folder."""
    full = error.ename == "OSError" and "[Errno 28]" in error.evalue
    full |= error.ename == "CannotWrite" and str(target) in error.evalue
    reason = one_line(error.evalue)
    text = f"{where}: {error.ename}: {reason}{_notes(error)}; {kept}"
    if full:
        return OutputError(text)
    cell_error = CellError(text)
    cell_error.kind, cell_error.reason = error.ename, reason
    return cell_error


def _notes(error: Any) -> str:
    """Collects what `add_note` added to an error, which name and message lack."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in error.traceback]
    ends = [i for i, line in enumerate(lines, 1) if line.startswith(f"{error.ename}: ")]
    return "".join(f"; {one_line(line)}" for line in lines[ends[-1] if ends else len(lines) :])


def one_line(text: object, limit: int = 400) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]}…"
