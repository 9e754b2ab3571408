"""How well does a representation separate the classes, and where in the network?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siutils import ranking
    from siutils.data import load_dataset
    from siutils.features import extract_features
    from siutils.layers import layer_curve
    from siutils.neighbors import Neighbors, kneighbors
    from siutils.networks import create_model
    from siutils.report import run_report
    from siutils.separation import SeparationIndex, SeparationIndexMetric

__version__ = "0.1.0"

__all__ = [
    "Neighbors",
    "SeparationIndex",
    "SeparationIndexMetric",
    "create_model",
    "extract_features",
    "kneighbors",
    "layer_curve",
    "load_dataset",
    "ranking",
    "run_report",
]

# Loaded when first used: torchvision and torchmetrics take seconds, SeparationIndex needs neither.
_HOMES = {
    "Neighbors": "neighbors",
    "SeparationIndex": "separation",
    "SeparationIndexMetric": "separation",
    "create_model": "networks",
    "extract_features": "features",
    "kneighbors": "neighbors",
    "layer_curve": "layers",
    "load_dataset": "data",
    "run_report": "report",
}


def __getattr__(name: str) -> Any:
    if name == "ranking":
        return import_module("siutils.ranking")
    if name in _HOMES:
        return getattr(import_module(f"siutils.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'siutils' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
