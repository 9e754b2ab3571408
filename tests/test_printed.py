"""What the study printed, against what must hold of any set of samples."""

import math

import numpy as np
import pytest
from labeled_data import random_data

from siutils import SeparationIndex
from siutils.study.printed import _identity, _is_multiple, check_printed, load_study

CHECKED = check_printed().set_index(["table", "network", "split"])


def test_every_printed_value_is_in_a_row_that_was_checked():
    assert len(CHECKED) == 16
    assert CHECKED["values"].sum() == len(load_study())


def test_five_rows_break_the_identity_and_one_no_order_allows():
    broken = CHECKED[CHECKED["verdict"].str.contains("of other samples")]
    assert broken["by_identity"].round(4).to_dict() == {
        (1, "raw pixels", "train"): 0.7730,
        (1, "efficientnet_v2_s", "train"): 0.2078,
        (3, "vgg16", "train"): 0.678,
        (3, "resnet18", "train"): 0.6874,
        (3, "efficientnet_b0", "train"): 0.8164,
    }
    impossible = CHECKED[CHECKED["verdict"].str.contains("no order allows")]
    assert impossible.index.tolist() == [(1, "raw pixels", "train")]


def test_two_rows_are_of_other_numbers_of_samples_than_stated():
    other = CHECKED[CHECKED["no_multiples"] != ""]
    assert other["no_multiples"].to_dict() == {
        (2, "resnet18", "train"): "0.55965",
        (4, "efficientnet_v2_s", "train"): "0.50996, 0.65252, 0.67892",
    }
    assert other["n_stated"].tolist() == [36_000, 35_000]
    assert (CHECKED["verdict"] == "no fault").sum() == 16 - 5 - 2


def test_what_cannot_be_told_is_not_called_checked():
    assert CHECKED.loc[(2, "vgg16", "test"), "fine"] == 0  # four digits, N = 10,000
    assert CHECKED.loc[(4, "efficientnet_v2_s", "train"), "fine"] == 4  # five digits, N = 35,000


@pytest.mark.parametrize("digits", [3, 4, 6])
@pytest.mark.parametrize("n", [97, 400])
def test_indices_of_real_samples_pass_rounded_or_cut_off(n, digits):
    index = SeparationIndex(*random_data(n, n, classes=4))
    values = {
        "soft_order_si": index.soft_order_si(2),
        "high_order_si": index.high_order_si(2),
        "anti_si": index.anti_si(2),
    }
    for shorten in (round, lambda v, d: math.floor(v * 10**d) / 10**d):
        printed = {name: f"{shorten(value, digits):.{digits}f}" for name, value in values.items()}
        for name, text in printed.items():
            assert _is_multiple(text, 2 * n if name == "soft_order_si" else n), (name, text)
        if shorten is round:
            found = _identity(printed)
            assert abs(found["anti_si"] - found["by_identity"]) <= found["rounding"] + 1e-12


def test_a_value_between_multiples_is_found_where_digits_are_fine_enough():
    rng = np.random.default_rng(0)
    for m in rng.integers(1, 400, 20):
        assert not _is_multiple(f"{(m + 0.5) / 400:.5f}", 400)
