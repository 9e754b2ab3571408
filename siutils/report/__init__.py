"""Strict runs of notebooks, what they store, and offline pages."""

from siutils.report.execution import CellError
from siutils.report.parameters import ReportError, parse_settings
from siutils.report.provenance import environment_facts, package_version
from siutils.report.results import Results
from siutils.report.run import declared_in, notebook_folder, run_report

__all__ = [
    "CellError", "ReportError", "Results", "declared_in", "environment_facts", "notebook_folder",
    "package_version", "parse_settings", "run_report",
]  # fmt: skip
