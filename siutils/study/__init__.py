"""What the reference study printed, and its experiments as functions that return tables."""

from siutils.study.pretrained import imagenet_models
from siutils.study.printed import load_study
from siutils.study.tables import beside_study, study_n, training_labels, training_note, wide_indices
from siutils.study.trainings import (
    Trained,
    Training,
    curve_training,
    planned_trainings,
    ranking_trainings,
    shortcut_trainings,
    some_classes,
    split,
    tasks,
)
from siutils.study.transfer import BASELINES, transfer_correlations, transfer_experiment

__all__ = [
    "BASELINES", "Trained", "Training", "beside_study", "curve_training", "imagenet_models",
    "load_study", "planned_trainings", "ranking_trainings", "shortcut_trainings", "some_classes",
    "split", "study_n", "tasks", "training_labels", "training_note", "transfer_correlations",
    "transfer_experiment", "wide_indices",
]  # fmt: skip
