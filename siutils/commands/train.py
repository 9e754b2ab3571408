"""The command ``siutils train``, and the plan of trainings that ``siutils report`` shows, too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from siutils.commands.folders import Commands, failed, say

if TYPE_CHECKING:
    from siutils.study import Training

LONG = 100_000  # images, repeats counted, from which trainings are worth an estimate


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a profile and change it.

    >>> add_profile(parser := argparse.ArgumentParser())
    >>> parser.parse_args(["--set", "seed=7"])
    Namespace(profile='quick', settings=['seed=7'])
    """
    parser.add_argument("--profile", default="quick", help="parameter profile (default: quick)")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace one parameter of the profile; may be repeated; a list is written a,b",
    )


def add_train(commands: Commands) -> None:
    """Adds ``siutils train``: the trainings of a profile, without the report.

    >>> add_train((parser := argparse.ArgumentParser()).add_subparsers())
    >>> parser.parse_args(["train", "--only", "resnet18"]).only
    ['resnet18']
    """
    parser = commands.add_parser(
        "train",
        help="train the networks of a profile, so that its report finds them trained",
        description="Train the networks of a profile, one after the other, in the cache that the "
        "report uses. Stopped at any moment, the same command goes on from the last epoch.",
    )
    add_profile(parser)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="trainings whose name begins so, such as resnet18; may be repeated",
    )
    parser.add_argument("--plan", action="store_true", help="show the plan and train nothing")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from siutils.report import ReportError, profile_parameters

    try:
        parameters = profile_parameters(options.profile, settings=options.settings)
        for training in show_plan(parameters, options.only):
            if not options.plan:
                _run(training, parameters["device"])
    except ReportError as error:
        return failed("train", str(error), error.exit_code)
    except (ValueError, FileNotFoundError) as error:
        return failed("train", str(error), 2)
    except (RuntimeError, OSError) as error:
        return failed("train", str(error), 1)
    return 0


def _run(training: Training, device: str) -> None:
    history = training.run(device, progress=say).history
    best, n = history["val_accuracy"].max(), len(training.val)
    say(f"{training.name}: {best:.2%} of {n:,} validation images are right")


def show_plan(parameters: Mapping[str, Any], only: Sequence[str] = ()) -> list[Training]:
    """Writes to stderr how long the trainings take; returns those that are wanted.

    Args:
        parameters: of the notebooks.
        only: beginnings of names; empty: all trainings.

    Raises:
        ValueError: no training has such a name.

    >>> from siutils.report import profile_parameters
    >>> [training.name for training in show_plan(profile_parameters("tiny"), ["efficientnet_b0"])]
    ['efficientnet_b0, pretrained', 'efficientnet_b0, trained']
    """
    from siutils.study import planned_trainings

    trainings = planned_trainings(parameters)
    for beginning in only:
        if not any(training.name.startswith(beginning) for training in trainings):
            names = "; ".join(training.name for training in trainings)
            raise ValueError(f"only: no training begins with {beginning!r}; there are: {names}")
    wanted = [t for t in trainings if not only or t.name.startswith(tuple(only))]
    total, images = 0.0, sum(t.recipe.epochs * len(t.train) for t in wanted)
    for training in wanted if images >= LONG else ():
        epochs, n = training.recipe.epochs, len(training.train)
        minutes = training.minutes(parameters["device"])
        total += minutes
        left = f"about {minutes:.0f} min left" if minutes else "finished"
        say(f"{training.name}: {epochs} × {n:,} images, {left}", sys.stderr)
    if total:
        say(f"all trainings: about {total / 60:.1f} h left", sys.stderr)
    return wanted
