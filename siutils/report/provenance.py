"""Where numbers come from: versions of the packages, the machine, the state of the code."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "siutils",
    "torch",
    "torchvision",
    "torchmetrics",
    "efficientnet_pytorch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "papermill",
    "nbconvert",
    "ipykernel",
)


def package_version(name: str = "siutils") -> str | None:
    """Returns the version of an installed package, None where it is not installed.

    >>> print(package_version("a package that is not installed"))
    None
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment_facts() -> dict[str, Any]:
    """Collects Python, platform and versions of the packages that the numbers depend on.

    >>> sorted(environment_facts())
    ['platform', 'processor', 'python', 'versions']
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "versions": {name: package_version(name) for name in PACKAGES},
    }


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


def _processor() -> str:
    """Returns the model of the CPU from Linux, else from the platform."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
