"""Defects of the upstream classes on data on which a naive fault shows.

Other defects (label gaps, the farthest mean, copies of an index) break the tests of the oracles.
"""

import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from labeled_data import RNG, duplicates, random_data
from reference import brute_neighbors, index_values

from siutils import SeparationIndex, kneighbors


def test_defect_the_whole_distance_matrix_is_built():
    code = """if True:
        import resource, torch
        from siutils import SeparationIndex
        torch.set_num_threads(1)
        g = torch.Generator().manual_seed(0)
        SeparationIndex(torch.rand(50, 2), torch.arange(50) % 3).report()
        x, y = torch.rand(20_000, 2, generator=g), torch.randint(0, 3, (20_000,), generator=g)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        SeparationIndex(x, y, device="cpu").report()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)  # KiB
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) * 1024 < 20_000**2 * 4 / 3  # float32 N×N would be 1.6 GB


def test_defect_duplicates_drop_another_sample_than_self():
    x, y = duplicates()
    assert SeparationIndex(x, y).si() == index_values(x, y, 1)["si"].mean()
    shifted = np.argsort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1, kind="stable")[:, 1]
    assert (y[shifted] == y).mean() != SeparationIndex(x, y).si()  # column 0 is not always self


def test_defect_offset_of_1000_changes_neighbors():
    x = RNG(0).integers(0, 4096, (300, 6)).astype(np.float32) / 256  # exact after the shift
    y = RNG(1).integers(0, 3, 300)
    a = SeparationIndex(x, y).si(per="sample")
    assert torch.equal(a, SeparationIndex(x + np.float32(1000), y).si(per="sample"))
    shifted = x + np.float32(1000)
    squares = (shifted**2).sum(1)
    naive = squares[:, None] + squares[None] - 2 * shifted @ shifted.T
    np.fill_diagonal(naive, np.inf)
    assert (naive.argmin(1) != brute_neighbors(x, 1)[1][:, 0]).mean() > 0.01


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_defect_cross_indices_change_and_shift_the_labels(kind):
    x, y = random_data()
    test_x, test_y = random_data(5, 60)
    keep = test_y > 0  # the test set lacks the lowest class
    test_x, test_y = test_x[keep], test_y[keep]
    labels = test_y.copy()
    s = SeparationIndex(x, y)
    oracle = index_values(x, y, 1, queries=test_x, query_labels=test_y)["si"].mean()
    shifted = index_values(x, y, 1, queries=test_x, query_labels=test_y - 1)["si"].mean()
    assert s.cross_si(test_x, kind(labels)) == pytest.approx(oracle)
    assert abs(shifted - oracle) > 0.1
    s.cross(test_x, kind(labels)).separation_score()
    np.testing.assert_array_equal(labels, test_y)


def test_defect_out_of_memory_is_printed_and_none_returned(monkeypatch):
    s = SeparationIndex(*random_data())
    full = Mock(side_effect=MemoryError("not even one row fits"))
    monkeypatch.setattr("siutils.separation.family.kneighbors", full)
    for call in (s.si, s.center_si, s.report):
        with pytest.raises(MemoryError, match="not even one row"):
            call()


def test_defect_features_are_ranked_by_columns_of_the_distance_matrix():
    x, y = random_data(2, 60)
    x[:, 3] = y  # the one feature that separates
    s = SeparationIndex(x, y)
    assert int(s.feature_si().argmax()) == 3
    assert s.select_features(2)["feature"].tolist()[0] == 3
    matrix = ((x[:, None] - x[None]) ** 2).sum(-1)  # upstream takes its first D columns
    wrong = [index_values(matrix[:, [j]], y, 1)["si"].mean() for j in range(5)]
    assert int(np.argmax(wrong)) != 3


def test_defect_every_index_sorts_the_distances_again(monkeypatch):
    search = Mock(side_effect=kneighbors)
    monkeypatch.setattr("siutils.separation.family.kneighbors", search)
    s = SeparationIndex(*random_data())
    s.report(5)
    s.si("class"), s.high_order_si(3), s.soft_order_si(4, "sample"), s.anti_si(2), s.confusion(2)
    depths = [call.args[1] for call in search.mock_calls]
    assert depths == [5, 1]  # one search for all orders, one among the class means
