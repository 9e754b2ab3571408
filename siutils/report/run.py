"""The strict run of the notebooks: checked before, executed by papermill, verified after.

A run's folder holds per notebook ``<name>.html`` and the executed ``notebooks/<name>.ipynb``, what
the notebooks wrote (``figures/``, ``tables/``, ``records/``), ``index.html`` and ``run.json``; see
`siutils.report.folder` for how it comes about in whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from siutils.core import (
    cache_dir,
    commit_text,
    data_dir,
    fingerprint,
    git_state,
    home_dir,
    resolve_device,
    trainings_dir,
    write_file,
)
from siutils.report.execution import (
    IncompleteError,
    NotebookRun,
    OutputError,
    check_kernel,
    execute,
    one_line,
    read_notebook,
)
from siutils.report.folder import (
    output_errors,
    probe,
    publish,
    save_run,
    target_folder,
    unfinished,
)
from siutils.report.parameters import (
    Parameter,
    ParameterError,
    ReportError,
    check_parameters,
    declared_parameters,
    parsed_settings,
    read_profile,
)
from siutils.report.progress import clock
from siutils.report.provenance import environment_facts, package_version
from siutils.report.results import data_uri, default_output, figure_html, table_html

if TYPE_CHECKING:
    from siutils.report.pages import Entry, Frame

PACKAGE = Path(__file__).resolve().parents[1]
TITLE = "Separation Index report"
LEAD = (
    "How well does a representation separate the classes, and where in the network does that "
    "happen?"
)


class PageError(ReportError):
    """A notebook cannot be shown as an offline page."""

    exit_code = 9


def run_report(
    profile: str = "quick",
    *,
    notebooks: str | Path | None = None,
    output: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    progress: bool = True,
) -> Path:
    """Runs every notebook of a folder with one profile and writes the HTML report.

    Args:
        profile: Name of a parameter file ``<notebooks>/profiles/<profile>.yml``.
        notebooks: Folder of the notebooks; by default the project's own.
        output: Folder of the run; by default ``reports/<profile>`` in the checkout, or below the
            working directory where the package is installed.
        parameters: Values that replace those of the profile.
        timeout_s: Seconds that each notebook may take; None for no limit.
        progress: Whether to write progress to stderr.

    Returns:
        The path of ``index.html``.

    Raises:
        ReportError: One of its subclasses, each with an ``exit_code``: `ParameterError` (also a
            ValueError), `OutputError`, `KernelMissingError`, `KernelDiedError`,
            `NotebookTimeoutError`, `CellError`, `IncompleteError`, `PageError`.

    >>> run_report("quick", notebooks="/no/such/folder")
    Traceback (most recent call last):
        ...
    siutils.report.parameters.ParameterError: notebooks: no *.ipynb in /no/such/folder
    """
    if timeout_s is not None and timeout_s <= 0:
        raise ParameterError(f"timeout_s: expected a positive number of seconds, got {timeout_s}")
    folder = notebook_folder(notebooks)
    declared = declared_in(folder)
    values = _profile_values(folder, profile, declared, parameters)
    target = target_folder(output or default_output(profile))
    _check_plan(_defaults(declared) | values, own=notebooks is None)
    runs = [NotebookRun(path, read_notebook(path), found) for path, found in declared.items()]
    about = {"profile": profile, "parameters": dict(values)}
    with output_errors(target), unfinished(target, _key(runs, about), about) as (work, state):
        probe(work)
        if any("cache_dir" in cell.source for run in runs for cell in run.source.cells):
            with output_errors(cache_dir(), "cache"):
                probe(cache_dir())
        check_kernel()
        given = values | {"profile": profile, "output_dir": str(work)}
        for run in runs:
            run.given = {name: given[name] for name in given.keys() & run.declared.keys()}
        code = git_state(home_dir())
        frame = _frame(state, runs, code)
        for run in runs:  # a formula that cannot be shown is better known now than in an hour
            _page(run, frame)
        done = state.setdefault("notebooks", {})
        for run in runs:
            if run.name in done:
                run.resume(work, done[run.name]["seconds"])
            else:
                execute(run, work, timeout_s, progress)
                done[run.name] = _notebook_facts(run)
            write_file(work / f"{run.name}.html", _page(run, frame))
            save_run(work, state)
        _check_data(runs, work, state)
        facts = _facts(state, runs, code)
        frame = replace(frame, unfinished=False)
        for run in runs:
            write_file(work / f"{run.name}.html", _page(run, frame))
        write_file(work / "index.html", _index(runs, frame, facts, work))
        publish(work, target, facts)
    return target / "index.html"


def profile_parameters(
    profile: str,
    notebooks: str | Path | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the parameters of all notebooks as a profile sets them, defaults included.

    Args:
        profile, notebooks: as in `run_report`.
        settings: ``name=value`` texts that replace some.

    Raises:
        ParameterError: as `run_report`.

    >>> profile_parameters("tiny")["dataset"]
    'digits'
    """
    folder = notebook_folder(notebooks)
    declared = declared_in(folder)
    parameters = parse_settings(settings, notebooks)
    return _defaults(declared) | _profile_values(folder, profile, declared, parameters)


def parse_settings(settings: Sequence[str], notebooks: str | Path | None = None) -> dict[str, Any]:
    """Parses ``name=value`` texts as the notebooks declare these parameters.

    Raises:
        ParameterError: a text has no ``=``, or a value is of another kind.

    >>> parse_settings(["epochs=1,2"])
    {'epochs': [1, 2]}
    """
    declared = declared_in(notebook_folder(notebooks))
    return parsed_settings(settings, {path.name: found for path, found in declared.items()})


def _profile_values(
    folder: Path,
    profile: str,
    declared: Mapping[Path, dict[str, Parameter]],
    parameters: Mapping[str, Any] | None,
) -> dict[str, Any]:
    values = read_profile(folder / "profiles", profile) | dict(parameters or {})
    check_parameters(values, {path.name: found for path, found in declared.items()})
    return values


def notebook_folder(notebooks: str | Path | None = None) -> Path:
    """Returns the folder of notebooks: the argument, else the package's, else the checkout's.

    Raises:
        ParameterError: If it is missing or holds no notebook.
    """
    packaged = Path(__file__).parent / "_notebooks"
    default = packaged if packaged.is_dir() else home_dir() / "notebooks"
    folder = Path(notebooks).expanduser().resolve() if notebooks else default
    if not folder.is_dir() or not any(folder.glob("*.ipynb")):
        raise ParameterError(f"notebooks: no *.ipynb in {folder}")
    return folder


def declared_in(folder: Path) -> dict[Path, dict[str, Parameter]]:
    """Reads the parameters that each notebook of a folder declares, in running order."""
    try:
        Path.cwd()  # papermill needs one
    except FileNotFoundError:
        raise OutputError("output: the working folder has been deleted; go to another") from None
    return {path: declared_parameters(path) for path in sorted(folder.glob("*.ipynb"))}


def _defaults(declared: Mapping[Path, dict[str, Parameter]]) -> dict[str, Any]:
    return {p.name: p.default for found in declared.values() for p in found.values()}


def _check_plan(values: Mapping[str, Any], own: bool) -> None:
    """Refuses a device that is not there, and networks or recipes that cannot be trained."""
    try:
        resolve_device(values.get("device", "auto"))
        if own:
            from siutils.networks import create_model
            from siutils.study import planned_trainings

            for name in ("dtypes", "epochs"):
                if len(values[name]) != len(values["networks"]):
                    raise ValueError(f"parameter {name!r}: give one for each of the networks")
            for training in planned_trainings(values):
                training.start()
            for name in values["transfer_networks"]:
                create_model(name, 2)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise ParameterError(one_line(error)) from None


def _key(runs: list[NotebookRun], about: Mapping[str, Any]) -> str:
    """Hash of what a run consists of: notebooks, parameters, code, versions, folders of data."""
    code = [p for p in sorted(PACKAGE.rglob("*.*")) if p.suffix != ".pyc" and p.is_file()]
    names = tuple(run.name for run in runs)
    places = str(data_dir()), str(trainings_dir())
    versions = environment_facts()["versions"]
    return fingerprint(about, versions, places, names, *(run.path for run in runs), *code)


def _check_data(runs: list[NotebookRun], work: Path, state: dict[str, Any]) -> None:
    """Refuses notebooks that saw different data, as where images changed between two of them."""
    seen: dict[Any, Any] = {}
    for run in runs:
        facts = run.record.get("facts", {})
        checksum = facts.get("checksum")
        if seen.setdefault(facts.get("dataset"), checksum) != checksum:
            save_run(work, state | {"key": ""})  # to be begun anew
            raise IncompleteError(
                f"{run.name}: the data set {facts['dataset']} has changed since the notebook "
                "before; run the report again"
            )


def _facts(state: dict[str, Any], runs: list[NotebookRun], code: dict[str, Any]) -> dict[str, Any]:
    """Collects the content of ``run.json``."""
    places = [run.record.get("environment", {}) for run in runs]
    devices = dict.fromkeys(device for place in places for device in place.get("devices", []))
    return {
        **{name: state[name] for name in ("run", "key", "profile", "parameters", "started")},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(run.seconds for run in runs), 1),
        "git": code,
        "devices": list(devices),
        "threads": max((place.get("threads", 0) for place in places), default=0) or None,
        "cpu_count": os.cpu_count(),
        **environment_facts(),
        "notebooks": state["notebooks"],
    }


def _notebook_facts(run: NotebookRun) -> dict[str, Any]:
    place = run.record.get("environment", {})
    return {
        "title": run.about.get("title", run.name),
        "seconds": round(run.seconds, 1),
        "peak_memory_mb": place.get("peak_memory_mb"),
        "peak_gpu_memory_mb": place.get("peak_gpu_memory_mb"),
        "parameters": run.parameters,
        **{key: run.record.get(key, {}) for key in ("facts", "figures", "tables")},
    }


def _frame(state: dict[str, Any], runs: list[NotebookRun], code: dict[str, Any]) -> Frame:
    from siutils.report.pages import Frame

    return Frame(
        profile=state["profile"],
        version=package_version() or "unknown",
        commit=commit_text(code),
        date=f"{datetime.fromisoformat(state['started']):%Y-%m-%d %H:%M} UTC",
        pages=[_entry(run) for run in runs],
        run=state["run"],
        unfinished=True,
    )


def _entry(run: NotebookRun, target: Path | None = None) -> Entry:
    """Collects what pages say about a notebook; its results, too, if there is a ``target``."""
    from siutils.report.pages import Entry

    figure = table = ""
    tables = [run.main_table, *(f"tables/{name}" for name in run.record.get("tables", {}))]
    if target and run.main_figure:
        told = run.record.get("figures", {}).get(Path(run.main_figure).name, {})
        source = data_uri(target / run.main_figure)
        figure = figure_html(
            source, told.get("alt", ""), told.get("caption", ""), told.get("width")
        )
    if target and run.main_table:
        about = run.record.get("tables", {}).get(Path(run.main_table).name, {})
        # an empty cell is no value, a class called NA is one
        frame = pd.read_csv(target / run.main_table, keep_default_na=False, na_values=[""])
        table = table_html(frame[about.get("show", list(frame))], about.get("caption", ""))
    return Entry(
        name=run.name,
        title=run.about.get("title", run.name),
        question=run.about.get("question", ""),
        dataset=str(run.parameters.get("dataset", "")),
        figure=figure,
        table=table,
        files=list(dict.fromkeys(name for name in tables if name)),
        seconds=clock(run.seconds),
    )


def _page(run: NotebookRun, frame: Frame) -> str:
    from siutils.report.pages import notebook_page

    shown = [
        (name, _shown(value), run.declared[name].help)
        for name, value in run.parameters.items()
        if name != "profile"
    ]
    try:
        return notebook_page(run.executed or run.source, _entry(run), frame, shown)
    except ValueError as error:
        raise PageError(f"{run.name}: {one_line(error)}") from None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)


def _index(runs: list[NotebookRun], frame: Frame, facts: dict[str, Any], target: Path) -> str:
    from siutils.report.pages import index_page

    entries = [_entry(run, target) for run in runs]
    peaks = [run.record.get("environment", {}).get("peak_memory_mb", 0) for run in runs]
    told = [run.record.get("facts", {}) for run in runs]
    sums = dict.fromkeys(str(v) for f in told for k, v in f.items() if "checksum" in k)
    data = dict.fromkeys(entry.dataset for entry in entries if entry.dataset)
    devices = facts["devices"] or ["cpu"]
    shown = {
        "profile": frame.profile,
        "data": ", ".join(data),
        "data checksum": ", ".join(sums),
        "device": ", ".join(d for d in devices if d != "cpu") or facts["processor"],
        "threads": str(facts["threads"] or facts["cpu_count"]),
        "duration": clock(facts["seconds"]),
        "peak memory": f"{max(peaks) / 1024:.1f} GB" if any(peaks) else "",
        "commit": frame.commit,
        "started": frame.date,
        "run": frame.run,
    }
    try:
        listed = [(label, value) for label, value in shown.items() if value]
        return index_page(replace(frame, pages=entries), listed, TITLE, LEAD)
    except ValueError as error:
        raise PageError(f"index: {one_line(error)}") from None
