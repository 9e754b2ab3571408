"""Small real notebooks for the tests of the report: they run in a kernel, without torch work."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TITLE = "1 · Separation of two blobs"
INTRO = r"""# 1 · Separation of two blobs

Each sample $x_i$ asks its nearest neighbor for the label:

$$h_1(i) = \begin{cases}1 & y_{nn_1(i)} = y_i\\0 & \text{otherwise}\end{cases}$$

Prices such as \$5 and code such as `echo $HOME $PATH` stay as they are.

| symbol | meaning |
|---|---|
| $N$ | samples |
"""
PARAMETERS = """\
epochs: int = 4  # passes over the data
noise: float = 0.5  # standard deviation of the blobs
dataset: str = "blobs"  # where the samples come from
models: list[str] = ["vgg16", "resnet18"]  # networks to rank
shuffle: bool = True  # new order in each epoch
output_dir: str = ""  # where results go
profile: str = "quick"  # name of the parameter file"""
SETUP = """\
import matplotlib.pyplot as plt
import pandas as pd
from siutils.report.results import Results
out = Results("01_blobs", output_dir, profile)"""
FIGURE = """\
fig, ax = plt.subplots(figsize=(6.5, 3.5), layout="constrained")
for rate, model in zip((0.9, 0.8), models):
    ax.plot(range(1, 9), [rate ** (r + noise) for r in range(1, 9)], label=model)
ax.legend()
out.figure(fig, "curves", alt="High-order SI falls with the order for both networks.",
           caption="High-order SI against order.")"""
TABLE = """\
frame = pd.DataFrame({"model": models, "n": [50_000, 400], "si": [0.174064, 0.69742]})
out.table(frame, "table1", caption="Table 1. Separation of the raw pixels.")
out.record(dataset=dataset, data_checksum="0123456789abcdef", epochs=epochs)"""
TEXT = """\
out.text(f"The best SI is **{frame.si.max():.4f}** at $N = {frame.n.min()}$, "
         "see `frame['si']`.")"""
OTHER = """\
from pathlib import Path
rows = ["epoch", *map(str, range(1, epochs + 1))]
_ = Path(output_dir, "tables", "table2.csv").write_text("\\n".join(rows))"""


def write_notebook(path: Path, cells: list[nbformat.NotebookNode], **about: object) -> Path:
    """A notebook file with the project's own metadata."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"siutils": about, "kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def code(*sources: str, parameters: str = "") -> list[nbformat.NotebookNode]:
    """Code cells, the first tagged as parameters where there are some."""
    tagged = [new_code_cell(parameters, metadata={"tags": ["parameters"]})] if parameters else []
    return [*tagged, *(new_code_cell(source) for source in sources)]


def write_samples(folder: Path) -> Path:
    """Two notebooks and the profiles ``quick`` and ``long``."""
    first = [new_markdown_cell(INTRO), *code(SETUP, parameters=PARAMETERS)]
    first += [new_markdown_cell("## Results\n\n### Curves"), *code(FIGURE)]
    first += [new_markdown_cell("### Table"), *code(TABLE, TEXT)]
    write_notebook(
        folder / "01_blobs.ipynb",
        first,
        title=TITLE,
        question="How well are two blobs separated?",
        main_table="table1",
        main_figure="curves.svg",
        promises=["tables/table1.csv", "figures/curves.svg"],
    )
    second = [new_markdown_cell("A page whose title comes from its metadata.")]
    second += code(OTHER, parameters="epochs: int = 2  # rows of the table\noutput_dir: str = ''")
    write_notebook(
        folder / "02_other.ipynb",
        second,
        title="2 · Other",
        question="Does a page without a figure work?",
        main_table="table2",
        promises=["tables/table2.csv"],
    )
    write_profile(folder, "quick", "epochs: 3\nnoise: 1\n")
    write_profile(folder, "long", "epochs: 30\n")
    return folder


def write_profile(folder: Path, name: str, text: str) -> None:
    """A parameter file."""
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / f"{name}.yml").write_text(text)
