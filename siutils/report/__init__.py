"""Strict runs of notebooks, what they store, and offline pages."""

from siutils.report.execution import CellError
from siutils.report.folder import check_report
from siutils.report.parameters import ReportError
from siutils.report.provenance import environment_facts, package_version
from siutils.report.results import Results
from siutils.report.run import notebook_folder, parse_settings, profile_parameters, run_report

__all__ = [
    "CellError", "ReportError", "Results", "check_report", "environment_facts", "notebook_folder",
    "package_version", "parse_settings", "profile_parameters", "run_report",
]  # fmt: skip
