"""The commands for images of one's own, ``siutils rank`` and ``siutils layers``.

Each checks what it was given as far as that is quick, then runs the notebook of its page, in
``pages/``, as `siutils report` runs the project's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from siutils.data import ImageFiles

Commands = Any  # what add_subparsers() returns, which argparse does not name
REPORT_CODES = """\
exit codes:
  0  the report is complete; the path of index.html is printed
  1  unexpected error
  2  wrong usage, unknown profile, unknown or mistyped parameter
  3  the output folder cannot be created or written, or the disk is full
  4  there is no Jupyter kernel, or it does not start
  5  the kernel died while a cell ran
  6  time-out
  7  a cell raised an error
  8  a cell did not run, a promised file is missing, or a checked folder is not one whole run
  9  a notebook cannot be shown as an offline page
130  interrupted; 143 terminated
"""
_PAGE_CODES = REPORT_CODES.replace(
    "wrong usage, unknown profile, unknown or mistyped parameter",
    "wrong usage; images, networks, weights or layers that cannot be used; too little disk",
)
_PAGES = Path(__file__).parent / "pages"
_UNUSABLE = ("ValueError", "FileNotFoundError", "CannotWrite")  # of a cell: what was given is wrong
_WEIGHTS = "its best published weights, a name such as IMAGENET1K_V1, a state_dict file or random"


def failed(command: str, message: str, code: int) -> int:
    """Prints in one line what went wrong and returns the exit code."""
    say(f"siutils {command}: error: {message}", sys.stderr)
    return code


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line at once; whatever it holds, it stays one line without terminal commands."""
    if not line.isprintable():
        from siutils.core import visible  # late, since it takes torch along

        line = visible(line)
    print(line, file=file, flush=True)


class Parser(argparse.ArgumentParser):
    """A parser whose messages may repeat what it was given."""

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.splitlines():
            say(line, file or sys.stderr)


def add_rank(commands: Commands) -> None:
    """``siutils rank``: networks on the images of a folder."""
    parser = _add_page(
        commands,
        "rank",
        "rank networks by how well they separate the classes of an image folder",
        "Score networks on the images of a folder, by the Separation Index family and other "
        "scores, test which differences are real, and write an offline HTML report.",
    )
    parser.add_argument(
        "--models",
        required=True,
        type=_listed,
        metavar="A,B,…",
        help="networks of torchvision, or timm:NAME; NAME=WEIGHTS for other weights, "
        "so that resnet18,resnet18=random compares two",
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help=f"of a network: {_WEIGHTS}; may be repeated",
    )
    parser.set_defaults(run=_rank)


def _rank(options: argparse.Namespace) -> int:
    def check() -> dict[str, Any]:
        from siutils.data import find_images
        from siutils.networks import check_model, parse_models
        from siutils.ranking import FOLDS

        files = find_images(options.data)
        _check_classes([files], FOLDS, options.per_class or FOLDS)
        for name, weights in parse_models(options.models, options.weights).values():
            check_model(name, weights)
        return {"models": options.models, "weights": options.weights}

    return _page("rank", options, check)


def add_layers(commands: Commands) -> None:
    """``siutils layers``: the layers of a network on the images of a folder."""
    parser = _add_page(
        commands,
        "layers",
        "show at which layers of a network the classes of an image folder come apart",
        "Score the output of each layer on the images of a folder: train/ and test/ or val/ in "
        "it, or two random halves. Writes an offline HTML report.",
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="network of torchvision, or timm:NAME"
    )
    parser.add_argument(
        "--weights", default="DEFAULT", help=f"{_WEIGHTS} (default: its best published weights)"
    )
    parser.add_argument(
        "--layers",
        type=_listed,
        default=["stages"],
        metavar="A,B,…",
        help="stages, blocks, all, or names as in named_modules() (default: stages)",
    )
    parser.add_argument(
        "--pool",
        type=_listed,
        default=["flattened", "mean"],
        metavar="A,B,…",
        help="features of a layer: flattened, mean over space, or a number, the side of a grid "
        "(default: flattened,mean)",
    )
    parser.add_argument(
        "--memory", type=float, default=4.0, metavar="GB", help="for features (default: 4)"
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="look at the network with random weights, too: what of the curve is architecture",
    )
    parser.set_defaults(run=_layers)


def _layers(options: argparse.Namespace) -> int:
    def check() -> dict[str, Any]:
        from siutils.data import find_halves
        from siutils.features import parse_pools
        from siutils.networks import check_model

        _check_classes(find_halves(options.data), 2, options.per_class or 2)
        check_model(options.model, options.weights)
        parse_pools(options.pool)
        if not options.memory > 0:
            raise ValueError(f"memory must be a positive number of GB, got {options.memory}")
        if options.untrained and options.weights == "random":
            raise ValueError("untrained: the weights are random already; leave this option out")
        names = ("model", "weights", "layers", "memory", "untrained")
        return {name: getattr(options, name) for name in names} | {"pools": options.pool}

    return _page("layers", options, check)


def _add_page(
    commands: Commands,
    name: str,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    """Adds a command that runs the notebook of a page, with the options that all of them share."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=_PAGE_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="folder with one folder of images per class"
    )
    parser.add_argument(
        "--out", metavar="DIR", help=f"folder of the report (default: reports/{name})"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument(
        "--per-class", type=int, default=0, metavar="N", help="use at most N images of each class"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="side of the images in the network (default: as its weights want it)",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out files that are no readable images; the page names them",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _page(name: str, options: argparse.Namespace, check: Callable[[], Mapping[str, Any]]) -> int:
    """Runs the notebook ``pages/<name>`` with what ``check`` returns; prints the report's path."""
    from siutils.report import CellError, ReportError

    try:
        parameters = _common(options) | dict(check())
    except (ValueError, FileNotFoundError) as error:
        return failed(name, str(error), 2)
    from siutils.report import run_report

    try:
        index = run_report(
            name,
            notebooks=_PAGES / name,
            output=options.out,
            parameters=parameters,
            progress=not options.quiet,
        )
    except CellError as error:
        if error.kind not in _UNUSABLE:
            return failed(name, str(error), error.exit_code)
        kept = "; what is finished is kept: the same command goes on from there"
        place = str(error).replace(f": {error.reason}", "")  # it may be no mistake of the user
        kept *= error.kind == "CannotWrite"
        return failed(name, f"{error.reason}{kept} (details: {place})", 2)
    except ReportError as error:
        return failed(name, str(error), error.exit_code)
    say(str(index))
    return 0


def _common(options: argparse.Namespace) -> dict[str, Any]:
    from siutils.core import resolve_device, user_path

    try:
        resolve_device(options.device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    for option in ("per_class", "size"):
        if getattr(options, option) < 0:
            raise ValueError(f"{option} must not be negative, got {getattr(options, option)}")
    names = ("device", "per_class", "size", "skip_unreadable")
    given = {name: getattr(options, name) for name in names}
    return given | {"dataset": os.path.realpath(user_path(options.data))}


def _check_classes(parts: Sequence[ImageFiles], least: int, per_class: int) -> None:
    """Refuses fewer than two classes, or fewer than ``least`` images of a class in a part."""
    classes = parts[0].classes
    if len(classes) < 2:
        raise ValueError(f"data: {parts[0].root} has one class only, {classes[0]!r}; give two")
    if per_class < least:
        raise ValueError(f"per-class must be at least {least}, got {per_class}")
    for files in parts:
        counts = files.counts()
        if min(counts) < least:
            short = classes[counts.index(min(counts))]
            half = " in each half" if len(parts) > 1 else ""
            raise ValueError(
                f"data: class {short!r} has too few images{half}, {min(counts)}; at least {least} "
                "of each class are needed: add images or remove the class"
            )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
