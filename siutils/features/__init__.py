"""Outputs of named layers, pooled or flattened: images become matrices."""

from siutils.features.extraction import ImageTransform, Pass, extract_features, extract_from_files
from siutils.features.files import check_room, free_bytes, job_file, mark_scratch, remove_scratch
from siutils.features.layer_names import check_names, layer_names
from siutils.features.pooling import Job, Pool, check_pools, parse_pools, pool_name

__all__ = [
    "ImageTransform", "Job", "Pass", "Pool", "check_names", "check_pools", "check_room",
    "extract_features", "extract_from_files", "free_bytes", "job_file", "layer_names",
    "mark_scratch", "parse_pools", "pool_name", "remove_scratch",
]  # fmt: skip
