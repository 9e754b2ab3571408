"""Exact nearest neighbors: matrices become neighbors."""

from siutils.neighbors.pairs import Neighbors, squared_distances
from siutils.neighbors.search import kneighbors

__all__ = ["Neighbors", "kneighbors", "squared_distances"]
