"""No global setting of torch or of the system changes a bit of a result."""

import contextlib
import locale

import numpy as np
import pytest
import torch

from siutils import SeparationIndex


def odd_settings():
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")  # on which nothing can be computed
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    torch.set_num_threads(3)
    with contextlib.suppress(locale.Error):  # where it is not installed
        locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")


@pytest.fixture
def usual():
    """Puts every setting back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    names = locale.setlocale(locale.LC_ALL)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("cpu")
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    locale.setlocale(locale.LC_ALL, names)


def results():
    """Reports with intervals, of few samples and of so many that a choice of them is dealt."""
    tables = []
    for n, d, normalize in ((300, 5, True), (33_000, 4, False)):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, n)
        features = (rng.normal(size=(n, d)) + labels[:, None]).astype(np.float32)
        index = SeparationIndex(features, labels, normalize, "cpu")
        tables.append(index.report(3, interval=True))
        tables.append(index.cross(features[:50], labels[:50]).report(3, interval=True))
        scores = SeparationIndex(features[:300], labels[:300], device="cpu").separation_score()
        assert scores.dtype == torch.int64
        tables[-1] = tables[-1].assign(score=int(scores.sum()))
    return tables


@pytest.mark.usefixtures("usual")
def test_no_global_setting_changes_a_bit_of_a_report():
    torch.set_num_threads(1)
    expected = results()
    odd_settings()
    for table, first in zip(results(), expected, strict=True):
        assert table.equals(first), table.compare(first)
    assert expected[0].loc[0, "design_effect"] > 1.05
