"""SeparationIndexMetric in a collection, after reset, and across two real processes."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from labeled_data import random_data
from torch import multiprocessing
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from siutils import SeparationIndex, SeparationIndexMetric

X, Y = map(torch.from_numpy, random_data(n=90))
NORMALIZED = SeparationIndex(X, Y, normalize=True, device="cpu")
EXPECTED = {
    "si": NORMALIZED.si(),
    "high_order_si": NORMALIZED.high_order_si(2),
    "soft_order_si": NORMALIZED.soft_order_si(2),
    "anti_si": NORMALIZED.anti_si(2),
    "center_si": NORMALIZED.center_si(),
}
# How many of the 90 samples each rank has, and in what dtypes.
CASES = {
    "uneven": ((60, 30), (torch.float32, torch.float32)),
    "second rank empty": ((90, 0), (torch.float32, torch.float32)),
    "first rank empty": ((0, 90), (torch.float32, torch.float32)),
    "mixed types": ((45, 45), (torch.float32, torch.float64)),
    "double and empty": ((0, 90), (torch.float32, torch.float64)),
}


def work(rank, folder):
    """What each of the two processes does; it writes one result per case."""
    file = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for name, (sizes, dtypes) in CASES.items():
        metric = SeparationIndexMetric(order=2, normalize=True)
        start = sum(sizes[:rank])
        features, labels = X[start : start + sizes[rank]], Y[start : start + sizes[rank]]
        for part in range(0, sizes[rank], 25):
            rows = slice(part, part + 25)
            metric.update(features[rows].to(dtypes[rank]), labels[rows].int())
        results[name] = metric.compute()
        own = sum(map(len, metric.features))
        assert own == sizes[rank], "after compute a rank must hold its own samples again"
    for name, width in (("nothing", 0), ("widths differ", 2 + rank)):
        metric = SeparationIndexMetric()
        if width:
            metric.update(torch.zeros(3, width), torch.zeros(3, dtype=torch.long))
        try:
            metric.compute()
        except ValueError as error:
            results[name] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.spawn(work, (folder,), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_value_of_one(ranks, name):
    assert ranks[0][name] == EXPECTED
    assert ranks[1][name] == EXPECTED


def test_what_two_processes_cannot_join_is_an_error_on_both(ranks):
    for results in ranks:
        assert results["widths differ"] == "features must have the same D on all ranks; got [2, 3]"
        assert results["nothing"].startswith("features: nothing was added")


def test_in_a_collection_beside_another_metric_and_after_reset():
    metrics = MetricCollection({"a": SeparationIndexMetric(normalize=True, order=2)})
    for _ in range(2):
        for rows in torch.arange(len(X)).split(32):
            metrics.update(X[rows], Y[rows])
        assert metrics.compute() == EXPECTED
        metrics.reset()
    accuracy = MulticlassAccuracy(5)
    both = MetricCollection([SeparationIndexMetric(normalize=True, order=2), accuracy])
    values = both(X, Y)
    assert values.keys() == {*EXPECTED, "MulticlassAccuracy"}
    assert {name: values[name] for name in EXPECTED} == EXPECTED


def test_two_settings_in_a_collection_stay_apart():
    metrics = MetricCollection(
        {"raw": SeparationIndexMetric(order=3), "scaled": SeparationIndexMetric(normalize=True)}
    )
    wide = X * torch.tensor([1.0, 1, 1, 1, 1000])
    metrics.update(wide, Y)
    metrics.update(wide[:5] + 1, Y[:5])
    values = metrics.compute()
    x, y = torch.cat([wide, wide[:5] + 1]), torch.cat([Y, Y[:5]])
    assert values["raw_si"] == SeparationIndex(x, y).si()
    assert values["raw_anti_si"] == SeparationIndex(x, y).anti_si(3)
    assert values["scaled_si"] == SeparationIndex(x, y, normalize=True).si()
    assert values["raw_si"] != values["scaled_si"]


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_inputs_are_checked_when_they_are_added():
    metric = SeparationIndexMetric()
    with pytest.raises(ValueError, match="nothing was added"):
        metric.compute()
    with pytest.raises(ValueError, match="features and labels must have the same length"):
        metric.update(X, Y[:-1])
    with pytest.raises(TypeError, match="labels must be integers"):
        metric.update(X, Y + 0.5)
    with pytest.raises(ValueError, match="features must be finite"):
        metric.update(torch.full((2, 2), np.nan), Y[:2])
