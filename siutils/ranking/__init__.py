"""Other scores that rank networks, and their agreement with accuracy."""

from siutils.ranking.correlation import null_band, rank_correlation, require_equal_n, rounded
from siutils.ranking.score_table import score_table
from siutils.ranking.transferability import (
    FOLDS,
    h_score,
    leep,
    linear_probe,
    logme,
    nce,
    nearest_center,
    regularized_h_score,
    silhouette,
    transrate,
)

__all__ = [
    "FOLDS", "h_score", "leep", "linear_probe", "logme", "nce", "nearest_center", "null_band",
    "rank_correlation", "regularized_h_score", "require_equal_n", "rounded", "score_table",
    "silhouette", "transrate",
]  # fmt: skip
