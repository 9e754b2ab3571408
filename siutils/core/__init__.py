"""Checks of inputs, devices, files, cache keys and splits."""

from siutils.core.array_files import label_codes, read_features, read_labels
from siutils.core.checkpoints import load_checkpoint, save_checkpoint
from siutils.core.checks import as_integers, check_positive, did_you_mean
from siutils.core.devices import resolve_device
from siutils.core.files import (
    CannotWrite,
    cache_dir,
    data_dir,
    home_dir,
    remove_leftovers,
    replacing,
    trainings_dir,
    write_file,
)
from siutils.core.inputs import as_matrix, check_finite, check_same_length
from siutils.core.keys import code_key, fingerprint, model_key
from siutils.core.provenance import commit_text, git_state
from siutils.core.splits import balanced_subset, capped_subset, train_val_split

__all__ = [
    "CannotWrite", "as_integers", "as_matrix", "balanced_subset", "cache_dir", "capped_subset",
    "check_finite", "check_positive", "check_same_length", "code_key", "commit_text", "data_dir",
    "did_you_mean", "fingerprint", "git_state", "home_dir", "label_codes", "load_checkpoint",
    "model_key", "read_features", "read_labels", "remove_leftovers", "replacing", "resolve_device",
    "save_checkpoint", "train_val_split", "trainings_dir", "write_file",
]  # fmt: skip
