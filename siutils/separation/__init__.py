"""The Separation Index family: neighbors become indices, with intervals and tests."""

from typing import TYPE_CHECKING, Any

from siutils.separation.comparison import (
    Comparison,
    check_same_samples,
    compare,
    compare_all,
    compare_groups,
    holm,
    mean_difference,
    significant_groups,
)
from siutils.separation.cross import CrossSeparation
from siutils.separation.indices import INDEX_NAMES, INDICES, class_means
from siutils.separation.record import Record, design_effect_of
from siutils.separation.samples import label_errors, score_transitions, separated_by_first
from siutils.separation.selection import best_subset, forward_selection, single_feature_si
from siutils.separation.separation_index import SeparationIndex, moments, rescale
from siutils.separation.triplets import global_triplet_index, local_triplets
from siutils.separation.uncertainty import interval

if TYPE_CHECKING:
    from siutils.separation.metric import SeparationIndexMetric

__all__ = [
    "INDEX_NAMES", "INDICES", "Comparison", "CrossSeparation", "Record", "SeparationIndex",
    "SeparationIndexMetric", "best_subset", "check_same_samples", "class_means", "compare",
    "compare_all", "compare_groups", "design_effect_of", "forward_selection",
    "global_triplet_index", "holm", "interval", "label_errors", "local_triplets", "mean_difference",
    "moments", "rescale", "score_transitions", "separated_by_first", "significant_groups",
    "single_feature_si",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "SeparationIndexMetric":  # torchmetrics takes seconds to import
        from siutils.separation.metric import SeparationIndexMetric

        return SeparationIndexMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
