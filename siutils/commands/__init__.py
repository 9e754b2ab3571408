"""The command ``siutils``."""

from siutils.commands.command_line import main

__all__ = [
    "main",
]  # fmt: skip
