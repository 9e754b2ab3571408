"""Scores from the literature that predict, without training, how well a network will transfer.

Each takes features ``(N, D)`` of the target images and their labels ``(N,)``, computes in float64
and returns a float; higher is better. LEEP and NCE take the output of the source task's head in
place of features. LogME, the H-scores and TransRate need one Gram matrix of size min(N, D), summed
in blocks; it loses singular values below 1e-7 of the largest.

Only a score's order over networks means something, and only at equal N. TransRate depends on the
scale of the features, LogME, TransRate and the plain H-score on D; see each for its limits.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from siutils.core import (
    as_labels,
    as_matrix,
    check_finite,
    check_positive,
    check_same_length,
    train_val_split,
)
from siutils.ranking.spectrum import center, gram, shrinkage, spectrum
from siutils.separation import SeparationIndex, class_means

ArrayLike = Tensor | np.ndarray
FOLDS = 5  # of the linear probe: every class needs as many samples
MAX_PRECISION = 1e6  # LogME: one-hot labels are never fitted closer than to 0.001
TINY = torch.finfo(torch.float64).tiny


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log maximum evidence per sample of a linear model of the one-hot labels, mean over classes.

    For the column y of each class, ``y ~ Normal(F w, 1/β)`` and ``w ~ Normal(0, 1/α)``. The
    evidence ``p(y | F, α, β)`` is maximized by MacKay's fixed point in the basis of F's singular
    vectors, until it gains less than 1e-10 per sample. Without a bound on β an exact fit would be
    worth infinitely much: β ≤ 1e6. Features are not centered, and there is no intercept.

    Args:
        features: real ``(N, D)``.
        labels: ``(N,)`` of at least 2 classes.

    Raises:
        TypeError, ValueError: as `siutils.SeparationIndex`, or a single class.

    Source: K. You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning"
    (2021); the fixed point is that of their "Ranking and Tuning Pre-trained Models" (2022).

    Features of zero leave y ~ Normal(0, 1/2), as half of the labels are 1, so −½ log(π e):

    >>> round(logme(torch.zeros(2, 1), torch.tensor([0, 1])), 6)
    -1.072365
    """
    x, codes, counts = _checked(features, labels)
    mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    sigma, projected = spectrum(x, codes, counts, mean)
    rest = (counts - projected.sum(dim=0)).clamp(min=0)
    return float(_log_evidence(sigma, projected, rest, len(x)).mean()) / len(x)


def _log_evidence(sigma: Tensor, projected: Tensor, rest: Tensor, n: int) -> Tensor:
    """The highest log evidence of each class ``(C,)``; arguments as from ``spectrum``."""
    alpha, beta = torch.ones_like(rest), torch.ones_like(rest)
    best, top = torch.full_like(rest, -math.inf), sigma.max() if len(sigma) else 1.0
    for _ in range(1000):
        # How much of each direction the data decides, and what is left to the prior.
        total = sigma[:, None] + alpha / beta
        kept, left = sigma[:, None] / total, alpha / beta / total
        weights = (kept.square() * projected / sigma[:, None]).sum(dim=0)
        residual = (left.square() * projected).sum(dim=0) + rest
        evidence = left.log().sum(dim=0) + n * (beta / (2 * math.pi)).log()
        evidence = (evidence - beta * residual - alpha * weights) / 2
        gain = (evidence - best).max()
        best = torch.maximum(best, evidence)
        if gain < 1e-10 * n:
            break
        noise = n - len(sigma) + left.sum(dim=0)
        beta = (noise / residual.clamp(min=TINY)).clamp(max=MAX_PRECISION)
        # Labels unrelated to the features: α grows without end, and nothing changes any more.
        alpha = torch.minimum(kept.sum(dim=0) / weights.clamp(min=TINY), 1e12 * beta * top)
    return best


def h_score(features: ArrayLike, labels: ArrayLike) -> float:
    """H-score: ``tr(cov(f)⁺ cov(E[f | y]))``, the share of variance that lies between classes.

    In 0 … min(C − 1, D). With D near N or above, the covariance is not estimated but memorized,
    and random features score as high as good ones: use `regularized_h_score`.

    Arguments and errors as in `logme`.

    Source: Y. Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer
    Learning" (2019).

    The class means are −1, 1 with variance 1, the total variance is 1.25:

    >>> h_score(torch.tensor([[-1.5], [-0.5], [0.5], [1.5]]), torch.tensor([0, 0, 1, 1]))
    0.8
    """
    x, codes, counts = _checked(features, labels)
    _, projected = spectrum(x, codes, counts, center(x, codes, counts))
    return float((projected / counts).sum())


def regularized_h_score(features: ArrayLike, labels: ArrayLike) -> float:
    """H-score with the covariance shrunk towards a multiple of the identity, for any N and D.

    ``(1 − a) · tr(cov_a(f)⁻¹ cov(E[f | y]))`` with ``cov_a = (1 − a) cov + a tr(cov)/D · I`` and
    the shrinkage a of Ledoit and Wolf (2004): scikit-learn's ``LedoitWolf``, but taken from the
    eigenvalues that are known already, without its two further products of N·D² terms.

    Arguments and errors as in `logme`.

    Source: S. Ibrahim et al., "Newer is not always better: Rethinking transferability metrics,
    their peculiarities, stability and performance" (2021).

    With D = 1 there is nothing to shrink:

    >>> x = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]])
    >>> regularized_h_score(x, torch.tensor([0, 0, 1, 1]))
    0.8
    """
    x, codes, counts = _checked(features, labels)
    mean = center(x, codes, counts)
    sigma, projected = spectrum(x, codes, counts, mean)
    a = shrinkage(x, mean, sigma)
    shrunk = (1 - a) * sigma + a * sigma.sum() / x.shape[1]
    between = (projected / counts).sum(dim=1)
    return float(((1 - a) * sigma / shrunk * between).sum())


def transrate(features: ArrayLike, labels: ArrayLike, epsilon: float = 1e-4) -> float:
    """TransRate: the coding rate of all features minus that within classes, in nats.

    ``R(Z) − Σ_c n_c/N R(Z_c)`` with ``R(Z) = ½ log det(I + Zᵀ Z / (n ε))``, Z centered by the mean
    over all samples. Depends on the scale of the features, as ε does not adapt to it.

    Args:
        features, labels: as in `logme`.
        epsilon: distortion allowed, > 0; the paper's default.

    Raises:
        TypeError, ValueError: as `logme`, or ``epsilon`` not above 0.

    Source: L.-K. Huang et al., "Frustratingly Easy Transferability Estimation" (2022).

    Two classes at −1 and 1, of second moment 1 each and together:

    >>> transrate(torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1]))
    0.0
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a number > 0; got {epsilon!r}")
    x, codes, counts = _checked(features, labels)
    mean = center(x, codes, counts)
    rate = _coding_rate(x, mean, epsilon)
    for c, count in enumerate(counts.tolist()):
        rate -= count / len(x) * _coding_rate(x[codes == c], mean, epsilon)
    return rate


def _coding_rate(features: Tensor, mean: Tensor, epsilon: float) -> float:
    sigma = torch.linalg.eigvalsh(gram(features, mean)).clamp(min=0)
    return float((sigma / (len(features) * epsilon)).log1p().sum()) / 2


def leep(source_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """LEEP: mean log-likelihood of the labels under the expected empirical predictor; at most 0.

    Predict a label by drawing a source class z from the network's softmax, then a label from the
    empirical ``p(y | z) = Σ_{i: y_i = y} θ_iz / Σ_i θ_iz``.

    Args:
        source_probabilities: θ, real ``(N, Z)``, each row ≥ 0 with sum 1: the softmax of the source
            task's head on the target images.
        labels: ``(N,)`` of at least 2 classes.

    Raises:
        TypeError, ValueError: as `logme`, or rows that are no probabilities.

    Source: C. Nguyen et al., "LEEP: A New Measure to Evaluate Transferability of Learned
    Representations" (2020).

    All images look alike to the source network, so each label has probability ½:

    >>> leep(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1])) == math.log(0.5)
    True
    """
    theta, codes, counts = _checked(source_probabilities, labels, "source_probabilities")
    _check_probabilities(theta)
    joint = class_means(theta, codes, len(counts)) * counts[:, None]
    conditional = joint / joint.sum(dim=0).clamp(min=TINY)
    logs = ((theta[codes == c].double() @ conditional[c]).log().sum() for c in range(len(counts)))
    return float(torch.stack(list(logs)).sum()) / len(theta)


def nce(source_labels: ArrayLike, labels: ArrayLike) -> float:
    """NCE: minus the conditional entropy of the labels given the source labels, in nats; at most 0.

    Args:
        source_labels: integers ``(N,)``, any values: the source class of each target image, known
            or predicted (the argmax of the source task's head).
        labels: ``(N,)`` of at least 2 classes.

    Raises:
        TypeError, ValueError: no integers, different lengths, or a single class in ``labels``.

    Source: A. Tran et al., "Transferability and Hardness of Supervised Classification Tasks"
    (2019).

    The first source class says nothing of two of four labels, the second all:

    >>> nce(torch.tensor([5, 5, 9, 9]), torch.tensor([0, 1, 1, 1])) == math.log(0.5) / 2
    True
    """
    source = as_labels(source_labels, "source_labels").codes
    codes, counts = _classes(as_labels(labels, "labels").codes)
    check_same_length(source, codes, "source_labels", "labels")
    groups = source.unique(return_inverse=True)[1]
    shape = (int(groups.max()) + 1, len(counts))
    pairs = torch.bincount(groups * shape[1] + codes, minlength=math.prod(shape)).view(shape)
    conditional = pairs / pairs.sum(dim=1, keepdim=True, dtype=torch.float64)
    return float(torch.xlogy(pairs, conditional).sum()) / len(codes)


def nearest_center(features: ArrayLike, labels: ArrayLike) -> float:
    """Nearest-class-center accuracy: center SI, see `siutils.SeparationIndex`.

    Arguments and errors as in `logme`.

    The centers are 13/3 and 5, so only the sample at 9 is nearer to the other class:

    >>> nearest_center(torch.tensor([[0.0], [4.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 0]))
    0.75
    """
    x, codes, _ = _checked(features, labels)
    return float(SeparationIndex(x, codes, device=x.device).center_si())


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    folds: int = FOLDS,
    max_samples: int = 5000,
    seed: int = 0,
) -> float:
    """Cross-validated accuracy of scikit-learn's logistic regression on z-scored features.

    Mean over stratified, shuffled folds. The one score here that trains, and the slowest: of more
    than ``max_samples`` samples a stratified random choice of that size is used.

    Args:
        features, labels: as in `logme`; each class has at least ``folds`` samples.
        folds: at least 2.
        max_samples: at least 2 per class; accuracy grows with it.
        seed: of the choice and the folds.

    Raises:
        TypeError, ValueError: as `logme`, an argument out of range, or a class too small.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]])
    >>> linear_probe(x, torch.tensor([0, 0, 0, 1, 1, 1]), folds=3)
    1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_positive(folds, "folds")
    if folds < 2:
        raise ValueError("folds must be at least 2: one to test on, others to train on; got 1")
    x, y = _subsample(features, labels, max_samples, seed)
    smallest = int(np.bincount(y).min())
    if smallest < folds:
        raise ValueError(
            f"labels: a class has only {smallest} of the {len(y)} samples used, fewer than "
            f"folds={folds}; leave it out, raise max_samples or take fewer folds"
        )
    # sklearn's default tolerance takes three times as long for about the same accuracy
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(model, x, y, cv=split).mean())


def silhouette(
    features: ArrayLike, labels: ArrayLike, max_samples: int = 5000, seed: int = 0
) -> float:
    """Mean silhouette coefficient of the classes, by scikit-learn; in −1 … 1.

    ``(b − a) / max(a, b)`` with a sample's mean distances a to its own class and b to the nearest
    other. Of more than ``max_samples`` samples a stratified random choice of that size is used.

    Args:
        features, labels: as in `logme`; not every sample a class of its own.
        max_samples: at least 2 per class; time and memory grow with its square.
        seed: of the choice.

    Raises:
        TypeError, ValueError: as `logme`, ``max_samples`` out of range, or only classes of
            one sample.

    Source: P. J. Rousseeuw, "Silhouettes" (1987).

    For both samples at 0 and at 8, a = 0 and b = 8:

    >>> silhouette(torch.tensor([[0.0], [0.0], [8.0], [8.0]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    from sklearn.metrics import silhouette_score

    x, y = _subsample(features, labels, max_samples, seed)
    if y.max() + 1 == len(y):
        raise ValueError(f"labels: each of the {len(y)} samples used is a class of its own")
    return float(silhouette_score(x, y))


def _checked(
    features: ArrayLike, labels: ArrayLike, name: str = "features"
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, class numbers 0 … C−1 and class sizes, on the device of the features."""
    x = as_matrix(features, name)
    codes, counts = _classes(as_labels(labels, "labels").codes.to(x.device))
    check_same_length(x, codes, name, "labels")
    check_finite(x, name)
    return x, codes, counts


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    classes, codes, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"labels must hold at least 2 classes; got {classes.tolist()}")
    return codes, counts


def _check_probabilities(theta: Tensor) -> None:
    off = (theta.double().sum(dim=1) - 1).abs() > 1e-2  # half precision rounds
    bad = (off | (theta < 0).any(dim=1)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise ValueError(
            f"source_probabilities: row {row} is no probability distribution (sum "
            f"{float(theta[row].sum()):.3g}, lowest {float(theta[row].min()):.3g}); "
            "give the softmax of the source task's logits"
        )


def _subsample(
    features: ArrayLike, labels: ArrayLike, max_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``max_samples`` samples, centered, float64, with their class numbers."""
    check_positive(max_samples, "max_samples")
    x, codes, counts = _checked(features, labels)
    if len(x) > max_samples:
        if max_samples < 2 * len(counts):
            raise ValueError(
                f"max_samples must be at least 2 for each of the {len(counts)} classes; "
                f"got {max_samples}"
            )
        chosen = train_val_split(codes, max_samples / len(x), seed)[1].to(x.device)
        x, codes = x[chosen], _classes(codes[chosen])[0]
    x = x.double()
    return (x - x.mean(dim=0)).cpu().numpy(), codes.cpu().numpy()
