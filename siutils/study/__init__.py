"""What the reference study printed, and its experiments as functions that return tables."""

from siutils.study.printed import load_study
from siutils.study.tables import beside_study, study_n, training_labels, training_note, wide_indices
from siutils.study.transfer import BASELINES, transfer_correlations, transfer_experiment

__all__ = [
    "BASELINES", "beside_study", "load_study", "study_n", "training_labels", "training_note",
    "transfer_correlations", "transfer_experiment", "wide_indices",
]  # fmt: skip
