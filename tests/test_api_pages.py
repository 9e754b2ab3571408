"""The API pages: every public name with its docstring, on pages that open offline."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import siutils

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, str(ROOT / "docs" / "api.py"), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return {path.stem: path.read_text() for path in folder.rglob("*.html")}


def test_each_public_name_and_module_has_its_place(pages):
    for name in set(siutils.__all__) - {"ranking"}:
        assert f'id="{name}"' in pages["siutils"], name
    modules = {path.parent.name for path in (ROOT / "siutils").glob("*/__init__.py")}
    assert modules <= pages.keys()
    assert all(f'href="siutils/{module}.html"' in pages["siutils"] for module in modules)


def test_docstrings_are_rendered(pages):
    text = re.sub(r"<[^>]*>", "", pages["separation"])
    assert "([1, 0, 3, 2], [1.0, 1.0, 4.0, 4.0])" in text  # the example and its result
    assert "Arguments:" in text
    for name, page in pages.items():
        shown = re.sub(r"(?s)<pre>.*?</pre>|<div class=\"pdoc-code.*?</div>", "", page)
        assert not re.search(r":(func|class|meth|data|mod):", shown), name


def test_pages_load_nothing_from_elsewhere(pages):
    for name, page in pages.items():
        assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=\"(https?:)?//", page), name
