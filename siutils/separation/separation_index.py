"""The Separation Index of a labeled representation.

Neighbors are searched once per object, as deep as the deepest order asked for; every index and
every level (data set, class, sample) is then a cheap function of their labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from siutils.core import (
    Labels,
    as_labels,
    as_matrix,
    check_finite,
    check_same_length,
    column_names,
    in_order,
    joint_labels,
    mapped_file,
    resolve_device,
)
from siutils.neighbors import Neighbors
from siutils.separation import indices, samples, selection, triplets
from siutils.separation.comparison import Comparison, compare
from siutils.separation.cross import CrossSeparation
from siutils.separation.family import IndexFamily
from siutils.separation.subsamples import subsample_curve

STD_EPSILON = 1e-10  # of the reference study: keeps constant features finite


class SeparationIndex(IndexFamily):
    """How well features separate classes, judged by the nearest neighbors of each sample.

    Distances are Euclidean; a sample is never its own neighbor; equal distances are ordered by the
    lower index; the result equals a float64 brute force on every device. A sample with fewer than
    r others of its label counts as not separated at order r (see `siutils.separation.indices`).

    Args:
        features: real ``(N, D)``, N ≥ 2, finite: a tensor, an array, a DataFrame and more, see
            `siutils.core.as_matrix`.
        labels: ``(N,)`` by position, integers or names, see `siutils.core.as_labels`.
        normalize: z-score each feature first, in float64: subtract the mean, divide by the sample
            standard deviation (N − 1) plus 1e-10; of constant features, by 1.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or a ``torch.device``.
        memory: bytes that a search should keep to, see `siutils.kneighbors`.
        copy: keep a copy of the features, so that the caller may change them afterwards; False
            saves the memory. Memory maps are never copied.

    Attributes:
        classes: NumPy ``(C,)``, the classes in ascending order, as given: integers or names.
        n, n_features, n_classes: N, D, C.

    Raises:
        TypeError: if labels are no classes or features no real numbers.
        ValueError: if shapes do not fit, N < 2, or a feature is NaN or infinite.

    >>> s = SeparationIndex(torch.tensor([[0.0], [1.0], [5.0], [6.5]]), torch.tensor([0, 0, 1, 0]))
    >>> s.si(), s.si(per="class").tolist(), s.si(per="sample").tolist()
    (0.5, [0.6666666666666666, 0.0], [1.0, 1.0, 0.0, 0.0])
    """

    def __init__(
        self,
        features: Any,
        labels: Any,
        normalize: bool = False,
        device: str | torch.device = "auto",
        *,
        memory: float = math.inf,
        copy: bool = True,
    ) -> None:
        self.device = resolve_device(device)
        self._columns, file = column_names(features), mapped_file(features)
        self._copy = copy and file is None
        matrix, self._labels = as_matrix(features, "features"), as_labels(labels, "labels").copy()
        check_same_length(matrix, self._labels, "features", "labels")
        check_finite(matrix, "features")
        if len(matrix) < 2:
            raise ValueError("features has 1 sample: a nearest neighbor needs at least 2")
        kept = matrix.to(self.device)
        self._scale = moments(kept) if normalize else None
        kept = self._scaled(kept)
        if self._copy and kept.data_ptr() == matrix.data_ptr():
            kept = kept.clone()
        super().__init__(kept, self._labels, normalize, memory)
        self._file = file
        self.n_constant = 0 if self._scale is None else int((self._scale[1] == 0).sum())

    @classmethod
    def from_loader(
        cls, model: torch.nn.Module, loader: Any, layer: str | None = None, **options: Any
    ) -> SeparationIndex:
        """Scores what a layer of a network gives for the labeled images of a DataLoader.

        Args:
            model: as in `siutils.extract_features`.
            loader: a DataLoader, a Dataset, or what else `siutils.data.image_batches` takes.
            layer: name of the layer; by default ``model.feature_layer``.
            options: ``normalize``, ``device`` and ``memory`` as above; ``transform``,
                ``batch_size`` and ``pool`` of `siutils.extract_features`.

        Raises:
            ValueError, TypeError: as these, or if no labels come with the images.

        >>> images = torch.tensor([0.0, 1.0, 5.0]).reshape(3, 1, 1, 1)
        >>> pairs = list(zip(images, ["ant", "ant", "bee"]))
        >>> SeparationIndex.from_loader(torch.nn.Flatten(), pairs, "").classes.tolist()
        ['ant', 'bee']
        """
        # no import that keys of scores would follow: they do not depend on it
        extract_features = import_module("siutils.features").extract_features
        scoring = {k: options.pop(k) for k in ("normalize", "memory") if k in options}
        device = options.get("device", "auto")
        features = extract_features(model, loader, None if layer is None else [layer], **options)
        if features.labels is None:
            raise ValueError("loader gives images without labels; it must give pairs")
        (matrix,) = features.values()
        return cls(matrix, features.labels, device=device, copy=False, **scoring)

    def cross(self, test_features: Any, test_labels: Any) -> CrossSeparation:
        """Score test samples among these samples: every index and order, for one search.

        Test features are scaled with the mean and standard deviation of these features; labels are
        compared as they are.

        Args:
            test_features: real ``(M, D)``; columns of DataFrames are matched by name.
            test_labels: ``(M,)``, the same kind of labels as ``labels``.

        Raises:
            TypeError, ValueError: as the constructor, and if D differs.
        """
        test_features = in_order(test_features, self._columns, "test_features")
        mapped_file(self._file)
        features = as_matrix(test_features, "test_features")
        labels = as_labels(test_labels, "test_labels").copy()
        check_same_length(features, labels, "test_features", "test_labels")
        check_finite(features, "test_features")
        if features.shape[1] != self.n_features:
            raise ValueError(
                f"test_features must have D = {self.n_features} as features has; "
                f"got {features.shape[1]}"
            )
        own, labels = joint_labels(self._labels, labels, "labels", "test_labels")
        queries = self._scaled(features.to(self.device))
        if self._copy and queries.data_ptr() == features.data_ptr():
            queries = queries.clone()
        return CrossSeparation(
            self._features, own, queries, labels, self.normalize, self.n_constant, self._memory
        )

    def cross_si(
        self, test_features: Any, test_labels: Any, per: str = "dataset"
    ) -> float | Tensor:
        """The fraction of test samples whose nearest of these samples shares their label.

        Short for ``cross(test_features, test_labels).si(per)``: see `cross`, which also has
        the other indices, intervals and a report. A test class that is missing here has no hit.

        Args:
            test_features, test_labels: as in `cross`.
            per: as in `si`; classes are those of ``test_labels``, ascending.

        Raises:
            TypeError, ValueError: as the constructor, and if D differs.
        """
        indices.check_level(per)
        return self.cross(test_features, test_labels).si(per)

    def compare(
        self,
        other: SeparationIndex,
        index: str = "si",
        order: int = 1,
        level: float = 0.95,
        seed: int = 0,
    ) -> Comparison:
        """Compare with another representation of the same samples, sample by sample.

        See `siutils.separation.comparison` for the test. For many comparisons use
        `siutils.separation.compare_all`, which corrects for their number.

        Args:
            other: of the same samples in the same order.
            index: a name of ``siutils.separation.INDICES``.
            order: the order of high-order, soft-order and anti SI.
            level: coverage of the interval, in (0, 1).
            seed: of the random partitions.

        Raises:
            ValueError: different N or labels, an unknown index, a wrong order or level.

        >>> x, y = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1])
        >>> found = SeparationIndex(x, y).compare(SeparationIndex(x % 3, y))
        >>> round(found.effect, 3), found.wins, found.losses
        (0.833, 5, 0)
        """
        return compare(
            self._record_for(index, order, lists=True, seed=seed),
            other._record_for(index, order, lists=True, seed=seed),
            index,
            order,
            level,
            seed,
        )

    def curve(
        self, n_list: Sequence[int], repeats: int = 10, max_order: int = 2, seed: int = 0
    ) -> pd.DataFrame:
        """Indices at smaller N, by random subsamples without replacement; see `subsamples`.

        Args:
            n_list: sizes, each from ``max_order`` + 1 to N.
            repeats: subsamples per size.
            max_order: highest order of high-order, soft-order and anti SI.
            seed: of the choices.

        Raises:
            ValueError: a size or ``repeats`` out of range.
        """
        features, labels = self._features, self._labels
        whole = self.record(max_order).hits if self.n in n_list else None
        return subsample_curve(features, labels.codes, n_list, repeats, max_order, seed, whole)

    def confusion(self, k: int = 1) -> pd.DataFrame:
        """How often the k nearest neighbors of each class carry each label: counts ``(C, C)``.

        See `siutils.separation.samples.neighbor_confusion`; at k = 1 the trace over N is SI.
        """
        near = Labels(self._labels.codes[self._nearest(k).indices], self._labels.names)
        return samples.neighbor_confusion(self._labels, near)

    def hardest(self, n: int = 20, k: int = 8) -> pd.DataFrame:
        """The n samples deepest among other labels, each with its k nearest neighbors.

        See `siutils.separation.samples.hardest_samples`.
        """
        return samples.hardest_samples(self._labels, self._nearest(k), n)

    def neighbor_table(self, chosen: Any, k: int = 8) -> pd.DataFrame:
        """Chosen samples with their k nearest: `siutils.separation.samples.neighbor_table`."""
        return samples.neighbor_table(self._labels, self._nearest(k), chosen)

    def label_errors(self, n: int | None = None, k: int = 200) -> pd.DataFrame:
        """Samples ranked by how much their k nearest neighbors doubt their label.

        See `siutils.separation.label_errors`.
        """
        return samples.label_errors(self._labels, self._nearest(k), n)

    def local_triplets(self) -> triplets.LocalTriplets:
        """The nearest same-label and the nearest other-label sample of every sample.

        See `siutils.separation.local_triplets`.
        """
        return triplets.local_triplets(self._features, self._labels)

    def global_triplet_index(
        self, n_triplets: int = 100_000, generator: torch.Generator | None = None
    ) -> float:
        """The share of random triplets whose positive is nearer to the anchor than the negative.

        See `siutils.separation.global_triplet_index`.
        """
        return triplets.global_triplet_index(self._features, self._labels, n_triplets, generator)

    def feature_si(self) -> Tensor:
        """SI of each single feature, float64 ``(D,)``: `siutils.separation.single_feature_si`.

        >>> x = torch.tensor([[0.0, 0.0], [1.0, 8.0], [5.0, 2.0], [7.0, 9.0]])
        >>> SeparationIndex(x, torch.tensor([0, 0, 1, 1])).feature_si().tolist()
        [1.0, 0.0]
        """
        return selection.single_feature_si(self._features, self._labels)

    def select_features(self, max_features: int | None = None) -> pd.DataFrame:
        """Features added one by one, each time the one with which SI is highest.

        See `siutils.separation.forward_selection`, and ``best_subset`` there.
        """
        return selection.forward_selection(self._features, self._labels, max_features)

    def _nearest(self, k: int) -> Neighbors:
        """The k nearest on the CPU; all neighbors, where there are fewer than k."""
        k = self._checked(k if k < 1 else min(k, self.n - 1))
        return Neighbors(*(part[:, :k] for part in self.record(k).neighbors))

    def _scaled(self, features: Tensor) -> Tensor:
        if self._scale is None:
            return features
        return rescale(features, *self._scale)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation per feature, float64, a slice of features at a time.

    The deviation of a constant feature is exactly 0: below N · 2⁻⁵² · |mean|, as in scikit-learn,
    it is rounding.

    Raises:
        ValueError: a feature spans more than float64 can hold.

    >>> [part.tolist() for part in moments(torch.tensor([[1.0], [3.0], [5.0]]))]
    [[3.0], [2.0]]
    """
    n, most = len(features), 2**24 if features.is_cuda else 2**20  # few stay in the cache
    # not lists of parts: small tensors between freed large ones would split the heap
    mean, std = torch.empty(2, features.shape[1], dtype=torch.float64, device=features.device)
    step = max(4, most // n)
    for part, m, s in zip(features.split(step, 1), mean.split(step), std.split(step), strict=True):
        values = part.to(torch.float64, copy=True)
        unit = _unit(values)
        torch.div(indices.column_sum(values.mul_(unit)), n, out=m)
        variance = indices.column_sum(values.sub_(m).square_()) / (n - 1)
        torch.sqrt(variance, out=s)
        s.masked_fill_(s <= n * torch.finfo(torch.float64).eps * m.abs(), 0.0)
        m.div_(unit), s.div_(unit)
    return mean, std


def _unit(values: Tensor) -> Tensor:
    """Powers of two that bring squares of a column into the range of float64; 1 where they are."""
    exponent = torch.frexp(values.abs().amax(dim=0)).exponent
    if int(exponent.max()) > 1022:
        raise ValueError("features span more than float64 can hold; scale them down")
    exponent = exponent.clamp(-1000, 1000)
    return torch.exp2(-torch.where(exponent.abs() > 300, exponent, 0).double())


def rescale(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean, divide by the standard deviation plus 1e-10: float64 ``(N, D)``.

    A feature whose deviation is 0 is divided by 1. The study's 1e-10 instead would let a feature
    that varies among other samples only swallow all others.

    >>> rescale(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0]), torch.tensor([2.0])).tolist()
    [[0.0], [1.0]]
    """
    scale = torch.where(std == 0, 1.0, std + STD_EPSILON)
    return features.to(torch.float64, copy=True).sub_(mean).div_(scale)
