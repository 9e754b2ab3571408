"""The command ``siutils``; each subcommand is one ``_add_…`` with its function."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from siutils import __version__
from siutils.commands.folders import (
    REPORT_CODES,
    Commands,
    Parser,
    add_layers,
    add_rank,
    failed,
    say,
)
from siutils.commands.train import add_profile, add_train, show_plan

if TYPE_CHECKING:
    import pandas as pd

_SCORE_NOTES = """\
files, by suffix:
  .npy                    the features, memory-mapped
  .npz .pt .pth           arrays named features and labels, X and y, embeddings and targets, …,
                          also nested; or one array, the features
  .h5 .safetensors        the same (pip install siutils[files])
  .csv .tsv .txt          a row per sample and a header; also .gz, .bz2, .xz; the label column is
                          called label, target, class, … or named by --label-column
  .parquet .feather .arrow  the same, or a column of lists (pip install siutils[files])
  a folder                of shards of one of these formats
  -                       one of these from standard input
Labels are integers or class names; their own file may also be .txt or .json. An index that pandas
saved and file names are no features. Columns of --test are matched by name. Nothing in a file is
ever run.

exit codes:
  0  the table is printed
  1  unexpected error
  2  wrong usage, or a file that does not hold what it should
130  interrupted; 143 terminated
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(
        prog="siutils",
        description="How well does a representation separate the classes, and where in the "
        "network does that happen?",
    )
    parser.add_argument("--version", action="version", version=f"siutils {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_report(commands)
    add_train(commands)
    _add_score(commands)
    add_rank(commands)
    add_layers(commands)
    options = parser.parse_args(arguments)
    try:
        with _orderly_end():
            code: int = options.run(options)
    except KeyboardInterrupt as error:  # as an error it ends kernels and removes temporary files
        logging.getLogger("asyncio").disabled = True  # reports tasks that now have no kernel
        return failed(options.command, *(error.args or ("interrupted", 130)))
    return code


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Makes SIGTERM, which else ends Python on the spot, an error like Ctrl-C."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("terminated", 143)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _add_report(commands: Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="run the notebooks and write an HTML report",
        description="Run the notebooks with the parameters of a profile and write an offline HTML "
        "report. Nothing is run before every parameter has been checked.",
        epilog=REPORT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_profile(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the run (default: reports/<profile> in the checkout, else below the "
        "working directory)",
    )
    parser.add_argument(
        "--check",
        metavar="DIR",
        help="run nothing; verify that every page, table and figure in a folder is of one run",
    )
    parser.add_argument("--notebooks", metavar="DIR", help="folder of other notebooks to run")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds that each notebook may take"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    # Imported here: `siutils --version` and `--help` need neither torch nor papermill.
    from siutils import report

    try:
        if options.check is not None:
            run = report.check_report(options.check)
            say(f"{options.check}: run {run['run']}, complete, {len(run['files'])} files")
            return 0
        if not options.notebooks and not options.quiet:
            parameters = report.profile_parameters(options.profile, settings=options.settings)
            with suppress(ValueError, FileNotFoundError):  # run_report says what is wrong
                show_plan(parameters)
        index = report.run_report(
            options.profile,
            notebooks=options.notebooks,
            output=options.output,
            parameters=report.parse_settings(options.settings, options.notebooks),
            timeout_s=options.timeout,
            progress=not options.quiet,
        )
    except report.ReportError as error:
        return failed("report", str(error), error.exit_code)
    say(str(index))
    return 0


def _add_score(commands: Commands) -> None:
    parser = commands.add_parser(
        "score",
        help="print the Separation Index family of features in a file",
        description="Print every index of labeled features, with the number of samples and what "
        "random labels would give.",
        epilog=_SCORE_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("features", metavar="FEATURES", help="file of the features")
    parser.add_argument(
        "--labels", metavar="FILE", help="file of the labels (default: those in FEATURES)"
    )
    parser.add_argument(
        "--test", metavar="FILE", help="also score these samples among FEATURES (cross SI)"
    )
    parser.add_argument(
        "--test-labels", metavar="FILE", help="file of their labels (default: those in --test)"
    )
    parser.add_argument("--label-column", metavar="NAME", help="column or array of the labels")
    parser.add_argument("--order", type=int, default=2, metavar="K", help="highest (default: 2)")
    parser.add_argument("--normalize", action="store_true", help="z-score each feature first")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: a list, one object a row")
    form.add_argument("--csv", action="store_true", help="print CSV")
    parser.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> int:
    try:
        table = _score_table(options)
    except (ValueError, TypeError) as error:
        return failed("score", str(error), 2)
    except Exception as error:  # one line, and a code that scripts can tell from wrong input
        return failed("score", f"unexpected {type(error).__name__}: {error}", 1)
    if options.json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(rows, indent=2))  # all digits, which to_json does not print
    elif options.csv:
        print(table.to_csv(index=False), end="")
    else:
        print(_readable(table))
    return 0


def _score_table(options: argparse.Namespace) -> pd.DataFrame:
    """Scores the features with intervals, and the test samples among them."""
    import pandas as pd

    from siutils.core import parse_labels, resolve_device
    from siutils.separation import SeparationIndex

    try:
        device = resolve_device(options.device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if options.test_labels and not options.test:
        raise ValueError("--test-labels needs --test")
    sets = [_samples(options.features, options.labels, "--labels", options.label_column)]
    if options.test:
        label_file = options.test_labels
        sets.append(_samples(options.test, label_file, "--test-labels", options.label_column))
    labels = [samples.labels for samples in sets]
    written = [i for i, samples in enumerate(sets) if samples.written]
    for i, parsed in zip(written, parse_labels(*(labels[i] for i in written)), strict=True):
        labels[i] = parsed
    features = [samples.features for samples in sets]
    how: dict[str, Any] = {
        "device": device,
        "memory": 5e8,
        "copy": False,
    }  # the features take the rest
    index = SeparationIndex(features[0], labels[0], options.normalize, **how)
    if not options.test:
        return index.report(options.order, interval=True)
    cross = index.cross(features[1], labels[1])
    if len(cross.missing_classes) == cross.n_classes:
        raise ValueError(
            f"{options.test}: no class of it, such as '{cross.classes[0]}', is in "
            f"{options.features}, which has '{index.classes[0]}' and others"
        )
    crossed = cross.report(options.order, interval=True)
    crossed["index"] = "cross_" + crossed["index"]
    own = index.report(options.order, interval=True)
    counts = dict.fromkeys(crossed.columns.difference(own.columns), "Int64")  # empty for own rows
    return pd.concat([own, crossed], ignore_index=True).astype(counts)


def _samples(file: str, label_file: str | None, option: str, column: str | None) -> Any:
    from siutils.core import read_labels, read_samples

    samples = read_samples(file, None if label_file else column)
    if label_file:
        labels = read_labels(label_file, len(samples.features), column)
        samples = samples._replace(labels=labels.labels, written=labels.written)
    if samples.labels is None:
        raise ValueError(
            f"{file}: no labels in it; name their file with {option}, or their column with "
            "--label-column"
        )
    return samples


def _readable(table: pd.DataFrame) -> str:
    """Formats a report: what all rows share on one line, then a row for each index."""
    shared = [c for c in table if c != "index" and len(table) > 1 and table[c].nunique() == 1]
    shared = [c for c in shared if not table[c].isna().any()]
    line = ", ".join(f"{column} = {table[column].iloc[0]}" for column in shared)
    rest = table.drop(columns=shared)
    for column in rest.select_dtypes("Int64"):
        rest[column] = rest[column].astype(object).fillna("–")
    rows = rest.to_string(index=False, na_rep="–", float_format="%.5f")
    return f"{line}\n\n{rows}" if line else rows
