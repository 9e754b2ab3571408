"""Outputs of named layers, pooled or flattened: images become matrices."""

from siutils.features.extraction import (
    ImageTransform,
    collect,
    dry_run,
    extract_features,
    extract_from_files,
    features_key,
    input_transform,
)
from siutils.features.files import check_room, free_bytes, job_file, mark_scratch, remove_scratch
from siutils.features.layer_names import check_names, layer_names
from siutils.features.pooling import Job, Pool, check_pools, parse_pools, pool_name

__all__ = [
    "ImageTransform", "Job", "Pool", "check_names", "check_pools", "check_room", "collect",
    "dry_run", "extract_features", "extract_from_files", "features_key", "free_bytes",
    "input_transform", "job_file", "layer_names", "mark_scratch", "parse_pools", "pool_name",
    "remove_scratch",
]  # fmt: skip
