"""Skips, with the reason, what this machine cannot run."""

from pathlib import Path

import pytest
import torch

from siutils.paths import data_dir


def pytest_collection_modifyitems(items):
    reasons = {}
    if not (Path(data_dir()) / "cifar-100-python" / "train").is_file():
        reasons["cifar100"] = "no CIFAR-100 in the data folder: point SIUTILS_DATA at it"
    if not torch.cuda.is_available():
        reasons["cuda"] = "no CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def one_thread():
    """Networks this small only wait for each other's threads where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
