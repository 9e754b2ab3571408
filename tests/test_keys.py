"""A cache key changes exactly when something changes that the result depends on."""

import ast
import shutil
import sys
from functools import partial
from importlib import import_module

import pytest

from siutils.core import keys
from siutils.core.keys import PACKAGE, code_key, model_key
from siutils.networks.published import load_model

RESULTS = {
    "training": "training.loop",
    "features": "features.extraction",
    "scores": "layers.scores",
}
# Which keys an edit of each module changes; every package has at least one module here.
CHANGES = {
    "training features scores": "core.checks core.devices core.files",
    "training scores": "core.checkpoints",
    "training features": "core.keys data.images networks.modules",
    "training": "training.loop training.files",
    "features": "data.folders features.pooling",
    "scores": "core.inputs neighbors.search separation.separation_index layers.scores",
    "": "core.array_files data.datasets networks.published networks.weights networks.models "
    "ranking.spectrum layers.curve figures.plots study.transfer report.run commands.folders",
}


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that a test may edit."""
    return shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)


def append(file, line):
    file.write_text(f"{file.read_text()}\n{line}\n")


def all_keys(package):
    return {name: code_key(f"siutils.{module}", package) for name, module in RESULTS.items()}


def changed(before, after):
    return [name for name in before if before[name] != after[name]]


def test_an_edit_changes_the_keys_of_the_results_that_reach_it(copy):
    modules = {module: names for names, group in CHANGES.items() for module in group.split()}
    packages = {file.parent.name for file in copy.glob("*/__init__.py")}
    assert {module.split(".")[0] for module in modules} == packages
    before = all_keys(copy)
    for module, names in modules.items():
        file = copy / f"{module.replace('.', '/')}.py"
        text = file.read_text()
        append(file, "EDITED = 1")
        assert changed(before, all_keys(copy)) == names.split(), module
        file.write_text(text)


def test_comments_docstrings_and_the_version_change_no_key(copy):
    before = all_keys(copy)
    append(copy / "core/files.py", "# EDITED")
    for name, old, new in (
        ("core/files.py", '"""Folders', '"""EDITED'),
        ("core/files.py", '    """Yields', '    """EDITED'),
        ("__init__.py", "__version__ = ", "__version__ = '9.9' + "),
        ("core/__init__.py", "__all__ = [", "EDITED = 1\n__all__ = ["),  # it makes no result
    ):
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new, 1))
    assert all_keys(copy) == before


@pytest.mark.parametrize(
    "line",
    [
        "from siutils.ranking import rank_correlation",  # the `__init__` hands it on
        "from siutils.ranking.correlation import rank_correlation as tau",
        "from siutils.ranking import correlation",
        "import siutils.ranking.correlation",
        "def late():\n    from siutils.ranking import rank_correlation",
    ],
)
def test_every_form_of_import_leads_to_the_module_of_the_name(copy, line):
    append(copy / "training/loop.py", line)
    before = all_keys(copy)
    append(copy / "ranking/spectrum.py", "EDITED = 1")  # the package's other module
    assert all_keys(copy) == before
    append(copy / "ranking/correlation.py", "EDITED = 1")
    assert changed(before, all_keys(copy)) == ["training"]


def test_no_import_is_relative():  # keys do not follow those
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not getattr(node, "level", 0), file


OWN = """
from torch import nn

class Own(nn.Module):
    'Adds.'
    def forward(self, x):
        return x + 1  # up

def double(module, args, output):
    return output * 2

def make():
    model = nn.Sequential(nn.Linear(2, 2), Own())
    for weights in model.parameters():
        nn.init.constant_(weights, 0.5)
    model.register_forward_hook(double)
    return model
"""


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("constant_(weights, 0.5)", "constant_(weights, 0.25)", True),
        ("2), Own()", "2), nn.ReLU(), Own()", True),
        ("x + 1", "x + 2", True),
        ("output * 2", "output * 3", True),
        ("# up", "# EDITED", False),
        ("'Adds.'", "'EDITED'", False),
    ],
)
def test_the_key_of_a_model_covers_weights_and_code(tmp_path, monkeypatch, old, new, changes):
    found = []
    for name, code in (("before", OWN), ("after", OWN.replace(old, new))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / name)
        monkeypatch.delitem(sys.modules, "own", raising=False)
        found.append(model_key(import_module("own").make()))
    assert (found[0] != found[1]) == changes


def test_the_key_of_a_model_covers_the_module_of_its_hooks(copy, monkeypatch):
    monkeypatch.setattr(keys, "code_key", partial(code_key, package=copy))
    model = load_model("squeezenet1_1", "random")  # its features pass through a hook of published
    before = model_key(model)
    append(copy / "networks/models.py", "EDITED = 1")
    assert model_key(model) == before
    append(copy / "networks/published.py", "EDITED = 1")
    assert model_key(model) != before
