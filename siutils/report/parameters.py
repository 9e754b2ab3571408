"""Which parameters the notebooks declare, what a profile gives them, and the strict check of both.

papermill itself only warns of an unknown parameter and accepts any type.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siutils.core import did_you_mean

# The report sets these itself.
RESERVED = ("profile", "output_dir")
_SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
KINDS = (*_SCALARS, *(f"list[{scalar}]" for scalar in _SCALARS))


class ReportError(Exception):
    """A reason why there is no report, in one line; ``exit_code`` is that of the command."""

    exit_code = 1


class ParameterError(ReportError, ValueError):
    """A profile, a parameter or a notebook folder that cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Parameter:
    """A line ``name: kind = default  # help`` of a cell tagged ``parameters``.

    A help text may state the least value: ``seed: int = 42  # of every choice, ≥ 0``, or
    ``epochs: int = 4  # passes; 0: none``.
    """

    name: str
    kind: str
    default: Any
    help: str

    def refusal(self, value: Any) -> str:
        """Says what is wrong with a value; empty if it fits."""
        if not _fits(value, self.kind):
            hint = _number_hint(value, self.kind)
            return f"expected {self.kind}, got {_kind_of(value)} {value!r}{hint}"
        least = re.search(r"≥ (\d+)|\b(\d+): ", self.help)
        for number in value if isinstance(value, list) else [value]:
            if least and number < int(least[1] or least[2]):
                return f"must be ≥ {least[1] or least[2]}, got {number}"
        if self.name.endswith("_plan") and len(value) != len(self.default):
            return f"expected {len(self.default)} values ({self.help}), got {len(value)}"
        return ""


def declared_parameters(notebook: Path) -> dict[str, Parameter]:
    """Reads the parameters that a notebook declares, by name.

    Raises:
        ParameterError: If one has no annotation of a known kind or no literal default, or the
            file is no notebook.
    """
    import nbformat
    import papermill

    try:
        nbformat.read(notebook, as_version=4)
        items = papermill.inspect_notebook(papermill_path(notebook))
    except (ValueError, nbformat.ValidationError) as error:  # no JSON, no notebook, no kernel
        raise ParameterError(f"{notebook}: {str(error).splitlines()[0]}") from None
    parameters = {}
    for name, item in items.items():
        kind = item["inferred_type_name"].replace(" ", "")
        if kind not in KINDS:
            raise ParameterError(
                f"{notebook.name}: parameter {name!r} has no known annotation; "
                f"use one of {', '.join(KINDS)}"
            )
        try:
            default = ast.literal_eval(item["default"])
        except (ValueError, SyntaxError):
            raise ParameterError(
                f"{notebook.name}: the default of {name!r} is no literal: {item['default']}"
            ) from None
        parameters[name] = Parameter(name, kind, default, item["help"].strip())
    return parameters


def papermill_path(path: Path) -> str:
    """Escapes the braces of a path, which papermill takes for places to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def read_profile(folder: Path, name: str) -> dict[str, Any]:
    """Reads the flat mapping in ``<folder>/<name>.yml``.

    Raises:
        ParameterError: If there is no such profile (the message lists those there are), or the
            file is no flat mapping with each name once.
    """
    available = sorted(path.stem for path in folder.glob("*.yml"))
    if name not in available:
        have = ", ".join(available) or "none"
        raise ParameterError(
            f"profile: no {name!r} in {folder}; there are: {have}{did_you_mean(name, available)}"
        )
    path = folder / f"{name}.yml"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ParameterError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: expected lines 'name: value', got a {_kind_of(values)}")
    for key, value in values.items():
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(v, dict | list) for v in value)
        )
        if not isinstance(key, str) or nested:
            raise ParameterError(
                f"{path}: {key!r} must be a name with a plain value or a flat list"
            )
    # Plain papermill learns the profile's name from the file; here it is known already.
    stated = values.pop("profile", name)
    if stated != name:
        raise ParameterError(f"{path}: 'profile' must be {name!r} as the file; got {stated!r}")
    return values


def check_parameters(
    values: Mapping[str, Any], declared: Mapping[str, Mapping[str, Parameter]]
) -> None:
    """Refuses what no notebook declares, and what has another type than declared.

    Args:
        values: Parameters to give to the notebooks.
        declared: Per notebook what ``declared_parameters`` found.

    Raises:
        ParameterError: Naming the parameter, what came and what is expected.

    >>> p = {"a": {"epochs": Parameter("epochs", "int", 4, "passes over the data")}}
    >>> check_parameters({"epochs": 2}, p)
    >>> check_parameters({"epochs": "two"}, p)
    Traceback (most recent call last):
        ...
    siutils.report.parameters.ParameterError: parameter 'epochs': expected int, got str 'two'
    """
    names = sorted({name for parameters in declared.values() for name in parameters})
    for name, value in values.items():
        if name in RESERVED:
            raise ParameterError(
                f"parameter {name!r}: the report sets it; use --profile or --output"
            )
        if name not in names:
            known = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
            raise ParameterError(f"parameter {name!r}: no notebook declares it{known}")
        for parameters in declared.values():
            if name in parameters and (refusal := parameters[name].refusal(value)):
                raise ParameterError(f"parameter {name!r}: {refusal}")


def parsed_settings(
    settings: Sequence[str], declared: Mapping[str, Mapping[str, Parameter]]
) -> dict[str, Any]:
    """Parses ``name=value`` texts into typed values; a list is written ``a,b`` or in JSON.

    Raises:
        ParameterError: If a text has no ``=``, or its value is not of the declared kind.

    >>> p = {"a": {"models": Parameter("models", "list[str]", [], "")}}
    >>> parsed_settings(["models=vgg16,resnet18"], p), parsed_settings(['models=["a,b"]'], p)
    ({'models': ['vgg16', 'resnet18']}, {'models': ['a,b']})
    """
    kinds = {p.name: p.kind for parameters in declared.values() for p in parameters.values()}
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ParameterError(f"--set {setting!r}: write name=value")
        # An unknown name is left as text: check_parameters refuses it with a suggestion.
        values[name.strip()] = _parsed(name.strip(), text.strip(), kinds.get(name.strip(), "str"))
    return values


def _parsed(name: str, text: str, kind: str) -> Any:
    if kind.startswith("list["):
        if text.startswith("["):
            with contextlib.suppress(ValueError):  # JSON, whose types are checked with all others
                return list(json.loads(text))
        items = [item.strip() for item in text.strip("[]").split(",") if item.strip()]
        return [_parsed(name, item, kind[5:-1]) for item in items]
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return _SCALARS[kind](text)
    except (ValueError, KeyError):
        raise ParameterError(f"parameter {name!r}: expected {kind}, got {text!r}") from None


def _fits(value: Any, kind: str) -> bool:
    if kind.startswith("list["):
        return isinstance(value, list) and all(_fits(item, kind[5:-1]) for item in value)
    if kind == "float" and isinstance(value, float):
        return math.isfinite(value)
    allowed = (int, float) if kind == "float" else _SCALARS[kind]
    return isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool))


def _kind_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _number_hint(value: Any, kind: str) -> str:
    """Hints at a number that YAML reads as text, such as "4" and 1e-3."""
    if kind in ("int", "float") and isinstance(value, str):
        try:
            return f"; in YAML write {_SCALARS[kind](value)!r}, without quotes"
        except ValueError:
            pass
    return ""


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice")
        return super().construct_mapping(node, deep)
