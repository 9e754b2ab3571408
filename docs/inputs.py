"""Write docs/inputs.md, what becomes of each form of input, from the ids of the tests."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "Features and labels": "test_inputs.py",
    "Files of `siutils score`": "test_sample_files.py",
    "Images, models, pictures in folders": "test_sources.py",
    "Weights": "test_weights.py",
}
HEAD = """# What becomes of each input

Everything goes through one door, so that the class, the functions, the metric and the commands
agree. Each line is a test.
"""


def rows(test: str) -> list[str]:
    """A row of the table for each id of the form "input -> what happens" in a file of tests."""
    tree = ast.parse((ROOT / "tests" / test).read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    ids = [text for text in texts if isinstance(text, str) and " -> " in text and "\n" not in text]
    return [f"| {' | '.join(part.strip() for part in text.split(' -> '))} |" for text in ids]


def text() -> str:
    """The whole page."""
    head = "| input | what happens |\n|---|---|"
    tables = [f"## {name}\n\n{head}\n" + "\n".join(rows(test)) for name, test in SECTIONS.items()]
    return "\n\n".join([HEAD.strip(), *tables]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "inputs.md").write_text(text(), encoding="utf-8")
