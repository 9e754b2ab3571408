"""Where numbers come from: versions of the packages, the machine."""

from __future__ import annotations

import importlib.metadata
import platform
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


def _processor() -> str:
    """Returns the model of the CPU from Linux, else from the platform."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
