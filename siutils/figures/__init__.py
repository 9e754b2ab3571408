"""Tables in, figures out; nothing is computed here."""

from siutils.figures.layers import change_dots, flow_areas, image_rows, layer_bands
from siutils.figures.names import with_names_as_text
from siutils.figures.networks import class_map, network_strips, ranking_dots, transition_maps
from siutils.figures.plots import (
    COLORS,
    LINES,
    MARKERS,
    class_bars,
    confusion_map,
    image_grid,
    neighbor_arrows,
    neighbor_strips,
    network_dots,
    order_curves,
    score_scatters,
    size_curve,
    training_curves,
)

__all__ = [
    "COLORS", "LINES", "MARKERS", "change_dots", "class_bars", "class_map", "confusion_map",
    "flow_areas", "image_grid", "image_rows", "layer_bands", "neighbor_arrows", "neighbor_strips",
    "network_dots", "network_strips", "order_curves", "ranking_dots", "score_scatters",
    "size_curve", "training_curves", "transition_maps",
]  # fmt: skip

globals().update({
    name: with_names_as_text(drawn) for name in __all__ if callable(drawn := globals()[name])
})  # fmt: skip
