"""Defects of the upstream classes, one test each, on data on which they show."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from labeled_data import RNG, duplicates, random_data
from reference import brute_neighbors, center_values, class_values, index_values, run_scores

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


def test_defect_center_si_takes_the_farthest_mean():
    x = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
    assert SeparationIndex(x, torch.tensor([0, 0, 1, 1])).center_si() == 1.0


def test_defect_per_class_anti_si_is_a_copy_of_high_order_si():
    x, y = random_data()
    s = SeparationIndex(x, y)
    oracle = index_values(x, y, 2)
    np.testing.assert_allclose(s.anti_si(2, per="class"), class_values(oracle["anti_si"], y))
    assert not torch.equal(s.anti_si(2, per="class"), s.high_order_si(2, per="class"))


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
    def full(*args, **options):
        raise MemoryError("not even one row fits")

    x, y = random_data()
    s = SeparationIndex(x, y)
    monkeypatch.setattr("siutils.separation.family.kneighbors", full)
    for call in (s.si, s.center_si, s.report):
        with pytest.raises(MemoryError, match="not even one row"):
            call()


def test_defect_labels_of_one_dimension_crash():
    x, y = random_data()
    s = SeparationIndex(x, y)
    for per in ("dataset", "class", "sample", "macro"):
        s.si(per), s.high_order_si(2, per), s.soft_order_si(2, per), s.anti_si(2, per)
        s.center_si(per), s.cross_si(x, y, per)
    with pytest.raises(ValueError, match=r"labels must have shape \(N,\).*got \(150, 1\)"):
        SeparationIndex(x, y[:, None])


def test_defect_label_gaps_give_nan_classes():
    x, y = random_data()
    s = SeparationIndex(x, y * 10 - 3)
    for values in (s.si(per="class"), s.center_si(per="class"), s.cross_si(x, y * 10 - 3, "class")):
        assert values.shape == (4,)
        assert values.isfinite().all()


def test_defect_data_dividing_raises():
    x, y = random_data()
    easy, difficult = SeparationIndex(x, y).divide()
    oracle = run_scores(x, y)
    np.testing.assert_array_equal(easy, np.flatnonzero(oracle > 0))
    np.testing.assert_array_equal(difficult, np.flatnonzero(oracle < 0))


def test_defect_cross_data_score_raises():
    x, y = random_data()
    test_x, test_y = random_data(5, 40)
    scores = SeparationIndex(x, y).cross(test_x, test_y).separation_score()
    np.testing.assert_array_equal(scores, run_scores(x, y, test_x, test_y))


def test_defect_a_data_score_of_0_where_all_labels_are_equal():
    x, _ = random_data(n=12)
    assert SeparationIndex(x, np.ones(12, int)).separation_score().tolist() == [11] * 12


def test_defect_center_si_has_no_value_for_1d_labels_with_gaps():
    x, y = random_data()
    assert SeparationIndex(x, y * 3 + 1).center_si() == center_values(x, y).mean()


def test_defect_features_are_ranked_by_columns_of_the_distance_matrix():
    x, y = random_data(2, 60)
    x[:, 3] = y  # the one feature that separates
    s = SeparationIndex(x, y)
    assert int(s.feature_si().argmax()) == 3
    assert s.select_features(2)["feature"].tolist()[0] == 3
    matrix = ((x[:, None] - x[None]) ** 2).sum(-1)  # upstream takes its first D columns
    wrong = [index_values(matrix[:, [j]], y, 1)["si"].mean() for j in range(5)]
    assert int(np.argmax(wrong)) != 3


def test_defect_single_feature_si_raises():
    x, y = random_data(3, 80)
    oracle = [index_values(x[:, [j]], y, 1)["si"].mean() for j in range(x.shape[1])]
    np.testing.assert_allclose(SeparationIndex(x, y).feature_si(), oracle)


def test_defect_triplets_take_ranks_for_sample_numbers():
    x, y = random_data(4, 80)
    found = SeparationIndex(x, y).local_triplets()
    order = brute_neighbors(x, len(x) - 1)[1]
    for i, row in enumerate(order):
        assert found.same[i] == row[y[row] == y[i]][0]
        assert found.other[i] == row[y[row] != y[i]][0]


def test_defect_every_index_sorts_the_distances_again(monkeypatch):
    searches = []

    def counted(features, k, *queries, **options):
        searches.append(k)
        return kneighbors(features, k, *queries, **options)

    monkeypatch.setattr("siutils.separation.family.kneighbors", counted)
    s = SeparationIndex(*random_data())
    s.report(5)
    s.si("class"), s.high_order_si(3), s.soft_order_si(4, "sample"), s.anti_si(2), s.confusion(2)
    assert searches == [5, 1]  # one for all orders, one among the class means
