"""The project's own files agree with each other and keep their promises."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

import siutils
from siutils.plots import NAMES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "siutils/pages").glob("*/*.ipynb"))
# A module imports only modules above it.
LAYERS = (
    ("_sketch", "paths", "weight_files"),
    ("_pairs",),
    ("_screen",),
    ("architectures", "neighbors", "indices", "sampling", "plots", "pooling", "results", "devices"),
    (
        "_spectrum",
        "images",
        "layer_plots",
        "layer_plan",
        "network_plots",
        "network_tables",
        "samples",
        "selection",
        "triplets",
        "uncertainty",
        "runs",
    ),
    ("comparison", "curves", "family", "folders"),
    ("cross", "data", "transitions"),
    ("dips", "models", "recipes", "checkpoints"),
    ("augmentation", "feature_files", "optimization", "training_files"),
    ("training", "zoo"),
    ("layer_names",),
    ("features",),
    ("separation",),
    ("_layer_scores",),
    ("layers", "metric", "transferability"),
    ("ranking",),
    ("html", "loading", "parameters", "progress", "provenance", "transfer"),
    ("execution",),
    ("report",),
    ("folder_commands",),
    ("cli",),
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


def test_modules_import_only_modules_above_them():
    rank = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    files = [f for f in (ROOT / "siutils").glob("*.py") if f.stem != "__init__"]
    assert {f.stem for f in files} == set(rank)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("siutils"):
                parts = node.module.split(".")[1:] or [alias.name for alias in node.names]
                for part in set(parts) & set(rank):
                    assert rank[part] < rank[file.stem], f"{file.name} imports {part}"


def test_public_functions_have_an_example():
    machinery = {"cli", "execution", "folder_commands", "html", "parameters", "progress"}
    machinery |= {"report", "separation"}
    for file in sorted((ROOT / "siutils").glob("[!_]*.py")):
        for node in ast.parse(file.read_text()).body:
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if public and (file.stem not in machinery or node.name in siutils.__all__):
                assert ">>> " in (ast.get_docstring(node) or ""), f"{file.stem}.{node.name}"


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
        assert len(source.splitlines()) <= 15, source
        assert not re.search(r"^\s*(def|class|async def)\s|sys\.path|^[!%]", source, re.MULTILINE)


def test_quick_profile_is_what_the_notebooks_have_as_defaults():
    quick = yaml.safe_load((ROOT / "notebooks/profiles/quick.yml").read_text())
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        tagged = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
        defaults: dict[str, object] = {}
        exec("".join(tagged["source"]), defaults)
        assert {name: defaults[name] for name in quick} == quick


def test_readme_table_is_that_of_the_reference_run():
    folder = ROOT / "figures" / "cifar100-cpu"
    table = pd.read_csv(folder / "tables" / "table1.csv")
    expected = [
        f"| {NAMES[row.index_]} | {row.value:.5f} | {row.study:g} | "
        + ("–" if pd.isna(row.chance) else f"{row.chance:.5f}")
        + " |"
        for row in table.rename(columns={"index": "index_"}).itertuples(index=False)
    ]
    text = (ROOT / "README.md").read_text()
    shown = text.split("<!-- table1 -->")[1].split("<!-- /table1 -->")[0].strip().splitlines()[2:]
    assert shown == expected
    run = json.loads((folder / "run.json").read_text())
    assert not run["git"]["dirty"]


def test_readme_table_of_trained_networks_is_that_of_the_reference_run():
    tables = ROOT / "figures" / "cifar100-cpu" / "tables"
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
    text = (ROOT / "README.md").read_text()
    shown = text.split("<!-- networks -->")[1].split("<!-- /networks -->")[0]
    assert shown.strip().splitlines()[2:] == expected
