"""The Separation Index along a network, and tests of its changes from layer to layer."""

from siutils.layers.curve import LayerScores, layer_curve, layer_scores
from siutils.layers.explanations import findings, sentence
from siutils.layers.transitions import (
    class_arrival,
    flows,
    layer_steps,
    paired_tests,
    settled_at,
    shortest_prefix,
)

__all__ = [
    "LayerScores", "class_arrival", "findings", "flows", "layer_curve",
    "layer_scores", "layer_steps", "paired_tests", "sentence", "settled_at", "shortest_prefix",
]  # fmt: skip
