"""Skips, with the reason, what this machine cannot run."""

import os
from pathlib import Path

import pytest
import torch

from siutils.core.files import data_dir


def pytest_configure(config):
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:  # more threads than cores wait for each other
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start


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
