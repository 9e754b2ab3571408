"""Checks of inputs, devices, files, cache keys, splits, and data as text."""

from siutils.core.array_files import read_labels, read_samples
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
    user_path,
    write_file,
)
from siutils.core.foreign import load_foreign
from siutils.core.inputs import (
    as_matrix,
    check_finite,
    check_same_length,
    column_names,
    in_order,
    mapped_file,
)
from siutils.core.keys import code_key, fingerprint, model_key
from siutils.core.labels import Labels, as_labels, joint_labels, parse_labels
from siutils.core.provenance import commit_text, git_state
from siutils.core.splits import balanced_subset, capped_subset, train_val_split
from siutils.core.text import in_csv, in_figure, in_html, in_markdown, visible

__all__ = [
    "CannotWrite", "Labels", "as_integers", "as_labels", "as_matrix", "balanced_subset",
    "cache_dir", "capped_subset", "check_finite", "check_positive", "check_same_length", "code_key",
    "column_names", "commit_text", "data_dir", "did_you_mean", "fingerprint", "git_state",
    "home_dir", "in_csv", "in_figure", "in_html", "in_markdown", "in_order", "joint_labels",
    "load_checkpoint", "load_foreign", "mapped_file", "model_key", "parse_labels", "read_labels",
    "read_samples", "remove_leftovers", "replacing", "resolve_device", "save_checkpoint",
    "train_val_split", "trainings_dir", "user_path", "visible", "write_file",
]  # fmt: skip
