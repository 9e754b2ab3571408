"""Write the API pages from the docstrings: `make api`, or `python docs/api.py FOLDER`."""

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import siutils


def write(folder: Path) -> None:
    """One page per package; a page holds all that it shows, so it opens offline."""
    for name in siutils.__all__:  # loaded on demand: pdoc would not find them in the module
        setattr(siutils, name, getattr(siutils, name))
    siutils.separation.SeparationIndexMetric = siutils.SeparationIndexMetric
    inits = sorted(Path(siutils.__file__).parent.glob("*/__init__.py"))
    modules = [init.parent.name for init in inits]
    siutils.__all__ = list(dict.fromkeys([*siutils.__all__, *modules]))  # these make the menu
    pdoc.render.configure(docformat="google", footer_text=f"siutils {siutils.__version__}")
    # of the fields of named tuples, whose constructors Python writes itself
    warnings.filterwarnings("ignore", "Error parsing type annotation ForwardRef")
    pdoc.pdoc("siutils", output_directory=folder)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/api")
    write(target)
    print(target / "index.html")
