"""The project's own files agree with each other and keep their promises."""

import ast
import json
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

import siutils
from siutils.core import keys
from siutils.separation.indices import INDEX_NAMES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "siutils/commands/pages").glob("*/*.ipynb"))
# The rooms in the order of the data: a package imports only packages before it.
ROOMS = (
    *("core", "data", "networks", "training", "features", "neighbors", "separation", "ranking"),
    *("layers", "figures", "study", "report", "commands"),
)


def pins():
    lines = re.findall(r"^(\S+==[^\\\n]*?) *\\$", LOCK, flags=re.MULTILINE)
    return [Requirement(line) for line in lines]


def test_every_dependency_is_pinned_within_its_stated_bounds():
    stated = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    versions = {}
    for pin in pins():
        versions.setdefault(pin.name.replace("_", "-").lower(), []).append(str(pin.specifier)[2:])
    for requirement in map(Requirement, stated):
        found = versions[requirement.name.replace("_", "-").lower()]
        assert all(requirement.specifier.contains(v) for v in found), requirement
        assert str(requirement.specifier).startswith(">="), f"no lower bound: {requirement}"


def test_every_pin_has_a_hash_and_no_file_names_a_registry():
    assert len(pins()) > 100
    for block in re.split(r"\n(?=\S+==)", LOCK)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]
    for name in ("requirements.lock", "environment.yml", "pyproject.toml"):
        assert not re.search(r"https?://", (ROOT / name).read_text()), name


def test_environment_yml_holds_the_lock_and_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda, pip = environment["dependencies"][:-1], environment["dependencies"][-1]["pip"]
    assert "pip" in conda
    python = next(c.split("=")[1] for c in conda if c.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert pip[0] == "--editable ."
    assert [Requirement(line) for line in pip[1:]] == pins()


def test_version_is_the_same_everywhere():
    assert f"version: {siutils.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_public_names_are_those_of_the_design():
    assert set(siutils.__all__) == {
        "Neighbors", "SeparationIndex", "SeparationIndexMetric", "create_model",
        "extract_features", "kneighbors", "layer_curve", "load_dataset", "ranking", "run_report",
    }  # fmt: skip
    assert all(getattr(siutils, name).__doc__ for name in siutils.__all__)


def imported(tree):
    """(module, name) of each import from this package, those inside functions included."""
    return [pair for pair in keys.imports(tree, "siutils") if pair != ("siutils", "")]


def room_of(module, name):
    """The package of an import; of a name that the top hands on, its home."""
    return siutils._HOMES.get(name, name) if module == "siutils" else module.split(".")[1]


def sources(package):
    files = (ROOT / "siutils" / package).rglob("*.py")
    return {file: ast.parse(file.read_text()) for file in files}


def offered(package):
    return set(import_module(f"siutils.{package}").__all__)


def test_the_rooms_are_the_packages_and_each_says_what_it_owns():
    packages = {file.parent.name for file in (ROOT / "siutils").glob("*/__init__.py")}
    assert packages == set(ROOMS)
    assert {file.name for file in (ROOT / "siutils").glob("*.py")} == {"__init__.py", "__main__.py"}
    for package in ROOMS:
        assert import_module(f"siutils.{package}").__doc__, package
        assert offered(package), package


@pytest.mark.parametrize("package", ROOMS)
def test_a_package_imports_only_what_earlier_ones_offer(package):
    for file, tree in sources(package).items():
        for module, name in imported(tree):
            room = room_of(module, name)
            if room in (package, "__version__"):
                continue
            assert ROOMS.index(room) < ROOMS.index(package), f"{file} imports upward: {room}"
            if module != "siutils":
                assert module == f"siutils.{room}", f"{file} reaches into {module}"
                assert name in offered(room), f"{file}: {module} does not offer {name}"


def rooms_of(trees):
    return {room_of(*pair) for tree in trees for pair in imported(tree)} & set(ROOMS)


def code_of_notebooks():
    for path in NOTEBOOKS + PAGES:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield ast.parse("".join(cell["source"]))


def test_each_package_is_used_by_another_a_notebook_or_the_command():
    used = {"commands"}  # by the shell
    for package in ROOMS:
        used |= rooms_of(sources(package).values()) - {package}
    used |= rooms_of(code_of_notebooks())
    assert used == set(ROOMS)


def test_no_module_is_longer_than_400_lines():
    for file in (ROOT / "siutils").rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 400, file


def test_notebooks_use_what_packages_offer():
    for tree in code_of_notebooks():
        for module, name in imported(tree):
            if module != "siutils" and name:
                assert name in offered(module.removeprefix("siutils.")), (module, name)


def test_public_functions_have_an_example():
    machinery = {
        "command_line",
        "execution",
        "folder",
        "folders",
        "pages",
        "parameters",
        "progress",
        "run",
    }
    inner = {"pairs", "projection", "scores", "screen", "sketch", "spectrum"}
    for package in ROOMS:
        for file, tree in sources(package).items():
            for node in tree.body:
                public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
                hidden = file.stem in inner or (file.stem in machinery and package != "data")
                if public and (not hidden or node.name in siutils.__all__):
                    assert ">>> " in (ast.get_docstring(node) or ""), f"{file}: {node.name}"


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda p: p.stem)
def test_notebooks_are_clean_short_and_define_nothing(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["siutils"]["promises"]
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1
    for cell in code:
        source = "".join(cell["source"])
        assert not cell["outputs"], source
        assert cell["execution_count"] is None, source
        if "parameters" not in cell["metadata"].get("tags", []):
            assert len(source.splitlines()) <= 15, source
        assert not re.search(r"^\s*(def|class|async def)\s|sys\.path|^[!%]", source, re.MULTILINE)


def test_quick_profile_is_what_the_notebooks_have_as_defaults():
    quick = yaml.safe_load((ROOT / "notebooks/profiles/quick.yml").read_text())
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        tagged = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
        defaults = {}
        exec("".join(tagged["source"]), defaults)
        assert {name: defaults[name] for name in quick} == quick


REFERENCE = ROOT / "figures" / "cifar100-cpu"


def rows_of_readme(part):
    text = (ROOT / "README.md").read_text()
    shown = text.split(f"<!-- {part} -->")[1].split(f"<!-- /{part} -->")[0]
    return shown.strip().splitlines()[2:]


def test_readme_table_is_that_of_the_reference_run():
    expected = []
    for row in pd.read_csv(REFERENCE / "tables" / "table1.csv").to_dict("records"):
        chance = "–" if pd.isna(row["chance"]) else f"{row['chance']:.5f}"
        name = INDEX_NAMES[row["index"]]
        expected.append(f"| {name} | {row['value']:.5f} | {row['study']:g} | {chance} |")
    assert rows_of_readme("table1") == expected
    assert not json.loads((REFERENCE / "run.json").read_text())["git"]["dirty"]


def test_readme_table_of_trained_networks_is_that_of_the_reference_run():
    tables = REFERENCE / "tables"
    accuracy = pd.read_csv(tables / "accuracy.csv").query("arm == 'trained'").set_index("network")
    rows = pd.read_csv(tables / "table2.csv").query("split == 'test' and source != 'study'")
    expected = []
    for row in rows.itertuples():
        how = "– | –"
        if row.source == "trained":
            ours = accuracy.loc[row.network]
            how = f"{ours.epochs} × {ours.training_images:,} | {ours.test_accuracy:.3f}"
        si = f"{row.si:.3f} ({row.si_low:.3f} to {row.si_high:.3f}) | {row.si_chance:.3f}"
        expected.append(f"| {row.network} | {how} | {row.n:,} | {si} |")
    assert rows_of_readme("networks") == expected


def test_the_table_of_inputs_is_that_of_the_tests():
    sys.path.insert(0, str(ROOT / "docs"))
    stored = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    assert import_module("inputs").text() == stored, "run python docs/inputs.py"


CHECKS = {"asarray", "as_tensor", "from_numpy", "array", "tensor", "require", "ascontiguousarray"}
INPUTS = {"features", "labels", "queries", "test_features", "test_labels", "source_labels"}


def test_features_and_labels_are_converted_in_core_only():
    for path in sorted((ROOT / "siutils").rglob("*.py")):
        if path.parent.name == "core":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                name = node.args[0].id if isinstance(node.args[0], ast.Name) else ""
                where = f"{path}:{node.lineno}"
                assert node.func.attr not in CHECKS or name not in INPUTS, where
