"""What the reference study printed, and its experiments as functions that return tables."""

from siutils.study.experiments import (
    compare_variants,
    demonstration,
    input_sizes,
    over_seeds,
    run_curves,
    study_input,
    variant_steps,
)
from siutils.study.plan import planned_trainings
from siutils.study.pretrained import imagenet_models
from siutils.study.printed import check_printed, load_study
from siutils.study.tables import beside_study, study_n, training_labels, training_note, wide_indices
from siutils.study.trainings import (
    SHORTCUTS,
    STAGES,
    Trained,
    Training,
    candidate_trainings,
    curve_training,
    ranking_trainings,
    some_classes,
    split,
    tasks,
    variant_trainings,
)
from siutils.study.transfer import (
    transfer_answer,
    transfer_correlations,
    transfer_experiment,
    transfer_within,
)

__all__ = [
    "SHORTCUTS", "STAGES", "Trained", "Training", "beside_study", "candidate_trainings",
    "check_printed", "compare_variants", "curve_training", "demonstration", "imagenet_models",
    "input_sizes", "load_study", "over_seeds", "planned_trainings", "ranking_trainings",
    "run_curves", "some_classes", "split", "study_input", "study_n", "tasks", "training_labels",
    "training_note", "transfer_answer", "transfer_correlations", "transfer_experiment",
    "transfer_within", "variant_steps", "variant_trainings", "wide_indices",
]  # fmt: skip
