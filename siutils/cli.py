"""The command ``siutils``; each subcommand is one ``_add_…`` with its function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from siutils.provenance import package_version

_EXIT_CODES = """\
exit codes:
  0  the report is complete; the path of index.html is printed
  1  unexpected error
  2  wrong usage, unknown profile, unknown or mistyped parameter
  3  the output folder cannot be created or written, or the disk is full
  4  there is no Jupyter kernel, or it does not start
  5  the kernel died while a cell ran
  6  time-out
  7  a cell raised an error
  8  a cell did not run, or a promised file is missing
  9  a notebook cannot be shown as an offline page
130  interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="siutils",
        description="How well does a representation separate the classes, and where in the "
        "network does that happen?",
    )
    parser.add_argument("--version", action="version", version=f"siutils {package_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_report(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        return _failed(options.command, "interrupted", 130)
    return code


def _failed(command: str, message: str, code: int) -> int:
    print(f"siutils {command}: error: {message}", file=sys.stderr)
    return code


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="run the notebooks and write an HTML report",
        description="Run the notebooks with the parameters of a profile and write an offline HTML "
        "report. Nothing is run before every parameter has been checked.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="quick", help="parameter profile (default: quick)")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the run (default: reports/<profile> in the checkout, else below the "
        "working directory)",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace one parameter of the profile; may be repeated; a list is written a,b",
    )
    parser.add_argument("--notebooks", metavar="DIR", help="folder of other notebooks to run")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds that each notebook may take"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    # Imported here: `siutils --version` and `--help` need neither torch nor papermill.
    from siutils.parameters import ReportError, parse_settings
    from siutils.report import declared_in, notebook_folder, run_report

    try:
        declared = declared_in(notebook_folder(options.notebooks))
        by_notebook = {path.name: found for path, found in declared.items()}
        index = run_report(
            options.profile,
            notebooks=options.notebooks,
            output=options.output,
            parameters=parse_settings(options.settings, by_notebook),
            timeout_s=options.timeout,
            progress=not options.quiet,
        )
    except ReportError as error:
        return _failed("report", str(error), error.exit_code)
    print(index)
    return 0
