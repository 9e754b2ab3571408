"""Gram matrices of features in float64, and where class labels lie in their singular vectors.

What `siutils.ranking.transferability` is built on: of N samples with D features only a matrix of
size min(N, D) is kept, summed in blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from siutils.separation import class_means

BLOCK = 4096  # rows or columns turned to float64 at a time
EPSILON = torch.finfo(torch.float64).eps


def center(features: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """Mean of all samples, float64 ``(D,)``."""
    return (counts.double() / len(features)) @ class_means(features, codes, len(counts))


def gram(features: Tensor, mean: Tensor) -> Tensor:
    """``XᵀX`` or ``XXᵀ``, whichever is smaller, of the features less their mean, in float64."""
    n, d = features.shape
    total = torch.zeros((min(n, d),) * 2, dtype=torch.float64, device=features.device)
    for start in range(0, max(n, d), BLOCK):
        part = slice(start, start + BLOCK)
        if n < d:
            block = (features[:, part].double() - mean[part]).T
        else:
            block = features[part].double() - mean
        total.addmm_(block.T, block)
    return total


def spectrum(
    features: Tensor, codes: Tensor, counts: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared singular values of the features less their mean, and where the labels lie in them.

    Returns:
        The squared singular values above rounding, ``(K,)``, and ``(uᵀ y)²`` for each left singular
        vector u and each class's one-hot column y, ``(K, C)``.
    """
    sigma, vectors = torch.linalg.eigh(gram(features, mean))
    # What centering leaves of constant features, squared and summed, is this times EPSILON.
    rounding = EPSILON * len(features) * mean.square().sum()
    kept = sigma > EPSILON * max(features.shape) * torch.maximum(sigma[-1], rounding)
    sigma, vectors = sigma[kept], vectors[:, kept]
    if len(features) < features.shape[1]:  # the vectors are the left ones
        one_hot = torch.nn.functional.one_hot(codes, len(counts)).double()
        return sigma, (vectors.T @ one_hot).square()
    sums = (class_means(features, codes, len(counts)) - mean) * counts[:, None]
    return sigma, (sums @ vectors).T.square() / sigma[:, None]


def shrinkage(features: Tensor, mean: Tensor, sigma: Tensor) -> float:
    """Ledoit and Wolf's, from N times the eigenvalues of the covariance."""
    n, d = features.shape
    fourth = sum(
        float((block.double() - mean).square().sum(dim=1).square().sum())
        for block in features.split(BLOCK)
    )
    squares = float(sigma.square().sum()) / n**2
    distance = squares - float(sigma.sum() / n) ** 2 / d  # of the covariance from its target
    error = (fourth / n - squares) / n
    return min(error / distance, 1.0) if d > 1 and distance > 0 else 0.0
