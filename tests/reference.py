"""Naive float64 oracles, written from the definitions, slow and simple."""

from __future__ import annotations

import numpy as np


def brute_neighbors(features, k, queries=None):
    """All distances in float64 (differences, squares, sum), sorted by (distance, index).

    Returns (distances, indices) as NumPy arrays of shape (M, k); without queries each sample's
    neighbors are searched among all other samples.
    """
    x = np.asarray(features, dtype=np.float64)
    q = x if queries is None else np.asarray(queries, dtype=np.float64)
    squared = np.empty((len(q), len(x)))
    for i, row in enumerate(q):
        squared[i] = tree_sum((x - row) ** 2)
        if queries is None:
            squared[i, i] = np.inf
    indices = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squared, indices, axis=1)), indices


def tree_sum(terms):
    """Sum over the last axis by halving: the second half is added to the first until one is left.

    A sum in another order differs in the last bit, and that bit decides ties.
    """
    while terms.shape[-1] > 1:
        half = (terms.shape[-1] + 1) // 2
        head = terms[..., :half].copy()
        head[..., : terms.shape[-1] - half] += terms[..., half:]
        terms = head
    return terms[..., 0]


def zscore(features):
    """Subtract the mean, divide by the sample standard deviation (N − 1) plus 1e-10."""
    x = np.asarray(features, dtype=np.float64)
    return (x - x.mean(axis=0)) / (x.std(axis=0, ddof=1) + 1e-10)


def index_values(features, labels, order, queries=None, query_labels=None):
    """Per-sample values of the five indices from their definitions, one loop per sample."""
    _, neighbors = brute_neighbors(features, order, queries)
    own = labels if queries is None else query_labels
    values = {name: [] for name in ("si", "high_order_si", "soft_order_si", "anti_si")}
    for i, label in enumerate(own):
        hits = [int(labels[j] == label) for j in neighbors[i]]
        values["si"].append(hits[0])
        values["high_order_si"].append(int(sum(hits) == order))
        values["soft_order_si"].append(sum(hits) / order)
        values["anti_si"].append(int(sum(hits) == 0))
    return {name: np.array(v, dtype=float) for name, v in values.items()}


def center_values(features, labels, queries=None, query_labels=None):
    """1 where a sample's own class has the nearest mean; equal distances go to the lower label."""
    x, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    classes = np.unique(labels)
    means = np.stack([x[labels == c].mean(axis=0) for c in classes])
    rows = x if queries is None else np.asarray(queries, dtype=np.float64)
    nearest = [classes[np.argmin(((means - row) ** 2).sum(axis=1))] for row in rows]
    return (np.array(nearest) == (labels if queries is None else query_labels)).astype(float)


def class_values(values, labels):
    """Mean of per-sample values over each class, in ascending label order."""
    return np.array([values[labels == c].mean() for c in np.unique(labels)])


def run_scores(features, labels, queries=None, query_labels=None):
    """Separation score: all neighbors sorted, hits counted until the first change."""
    k = len(features) - (queries is None)
    _, neighbors = brute_neighbors(features, k, queries)
    scores = []
    for label, row in zip(labels if queries is None else query_labels, neighbors, strict=True):
        hits = [labels[j] == label for j in row]
        length = next((r for r, hit in enumerate(hits) if hit != hits[0]), k)
        scores.append(length if hits[0] else -length)
    return np.array(scores)
