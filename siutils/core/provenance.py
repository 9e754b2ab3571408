"""The state of the code that made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def git_state(folder: Path) -> dict[str, Any]:
    """Returns the commit of a checkout and whether files changed since; None if unknown.

    A repository that merely contains the folder does not count.

    >>> git_state(Path("a folder that is no checkout"))
    {'commit': None, 'dirty': None}
    """
    commit = None
    if (folder / ".git").exists():
        commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain") if commit else None
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def commit_text(state: dict[str, Any]) -> str:
    """Formats a commit for reading.

    >>> commit_text({"commit": "0123456789abcdef", "dirty": True})
    '0123456789 (modified)'
    """
    if not state["commit"]:
        return "unknown"
    return f"{state['commit'][:10]}{' (modified)' if state['dirty'] else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
