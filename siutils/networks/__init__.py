"""Networks and their weights, by name."""

from siutils.networks.architectures import MODELS
from siutils.networks.models import create_model, stage_table
from siutils.networks.modules import inference, load_weights, unwrapped
from siutils.networks.presets import transform_text
from siutils.networks.published import (
    check_model,
    load_model,
    parse_models,
    untrained_twin,
)

__all__ = [
    "MODELS", "check_model", "create_model", "inference", "load_model", "load_weights",
    "parse_models", "stage_table", "transform_text", "untrained_twin",
    "unwrapped",
]  # fmt: skip
