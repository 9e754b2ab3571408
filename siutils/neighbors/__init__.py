"""Exact nearest neighbors: matrices become neighbors."""

from siutils.neighbors.pairs import Neighbors, little_room, squared_distances
from siutils.neighbors.search import kneighbors

__all__ = [
    "Neighbors", "kneighbors", "little_room", "squared_distances",
]  # fmt: skip
