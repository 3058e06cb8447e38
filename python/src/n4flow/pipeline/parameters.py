"""Workflow parameters: names, types, ranges and units from one schema, checked before anything runs."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from n4flow.errors import InputError

# What a rule of JSON Schema may ask for here; a library that knows all of it takes a tenth of a second to start.
RULES = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "pattern")
OPENING = ("voxel_um", "channel", "axes", "allow_missing_chunks", "allow_missing_planes")  # Of `open_volume`.
PYTHON_TYPES = {"integer": int, "number": float, "string": str, "boolean": bool}


@cache
def _schema_file() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "nextflow_schema.json").read_text(encoding="utf-8"))


def groups() -> list[dict[str, Any]]:
    """Return the sections of the schema file in order, each with its title, description and `properties`."""
    return list(_schema_file()["$defs"].values())


@cache
def schema() -> dict[str, dict[str, Any]]:
    """Return the schema of each parameter by name, in the order of the schema file."""
    return {name: rule for group in groups() for name, rule in group["properties"].items()}


def sample_sheet() -> dict[str, Any]:
    """Return the schema of a row of a sample sheet, whose properties are its columns."""
    return _schema_file()["sample_sheet"]


def defaults() -> dict[str, Any]:
    """Return every parameter with its default; None where it has none."""
    return {name: rule.get("default") for name, rule in schema().items()}


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters against the schema and fill in the defaults.

    Parameters
    ----------
    given : mapping
        Names and values; text that spells a number or a truth value is taken as such. None means not given.

    Returns
    -------
    dict
        Every parameter of the schema, typed.

    Raises
    ------
    InputError
        Unknown name (with the nearest valid one), wrong type, a value out of range (with range and unit), or two
        parameters that exclude each other.
    """
    rules = schema()
    for name in given:
        if name not in rules:
            others = {other: rule.get("synonyms", ()) for other, rule in rules.items()}
            msg = f"unknown parameter {name}; did you mean {nearest(name.replace('-', '_'), others)}?"
            raise InputError(msg)
    resolved = defaults()
    for name, value in given.items():
        if value is not None:
            resolved[name] = _checked(name, value, rules[name])
    harmonized = resolved["harmonize"] != "off"  # It takes the place of matching and smoothing.
    for name in ("match", "smooth_z"):
        if harmonized and resolved[name] not in (None, rules[name]["harmonized"]):
            asked = (
                f"harmonize takes the place of match and smooth_z, got harmonize {resolved['harmonize']} with {name}"
            )
            msg = f"{asked} {resolved[name]:{'g' if name == 'smooth_z' else ''}}; leave one of them out"
            raise InputError(msg)
    for name, rule in rules.items():
        if "usual" in rule and resolved[name] is None:
            resolved[name] = rule["harmonized" if harmonized and "harmonized" in rule else "usual"]
    return resolved


def nearest(name: str, names: Mapping[str, Iterable[str]]) -> str:
    """Return the name of which `name` is a synonym, that holds it or is held by it, or else the one most like it.

    >>> names = {"outdir": ["output"], "smooth_z": [], "mask": [], "normalize": []}
    >>> nearest("output", names), nearest("smoth_z", names), nearest("norm", names)
    ('outdir', 'smooth_z', 'normalize')
    """
    meant = [other for other, synonyms in names.items() if name in synonyms]
    within = [other for other in names if name in other or other in name]
    return (meant or within or difflib.get_close_matches(name, names, n=1, cutoff=0))[0]


def numbers(text: Any, name: str, count: int | None = None) -> list[float]:
    """Read numbers separated by spaces or commas; an error names the parameter and the count."""
    parts = str(text).replace(",", " ").split()
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        expected = f"{count} numbers" if count else "numbers"
        msg = f"parameter {name} must be {expected} separated by spaces or commas, got {text!r}"
        raise InputError(msg)
    return values


def voxel_size(text: Any, name: str = "voxel_um") -> dict[str, float] | None:
    """Read a voxel size 'z y x' in micrometres; None stays None."""
    if text is None:
        return None
    values = numbers(text, name, 3)
    if min(values) <= 0:
        msg = f"parameter {name} must be three positive sizes 'z y x' in micrometres, got {text!r}"
        raise InputError(msg)
    return dict(zip("zyx", values, strict=True))


def spelled(name: str) -> str:
    """Return a parameter as an option of the command line."""
    return "--" + name.replace("_", "-")


def unusual(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of resolved parameters that are not what they are by default, in the order of the schema."""
    usual = resolve({"harmonize": parameters["harmonize"]}) | {"harmonize": schema()["harmonize"]["default"]}
    return {name: parameters[name] for name in usual if parameters.get(name) not in (None, usual[name])}


def command_line(parameters: Mapping[str, Any]) -> str:
    """Return the command that does a run with resolved parameters: those that are not what they are by default."""
    placed = ("input", "outdir")
    words = ["n4flow", "run", *(str(parameters[name]) for name in placed)]
    for name, value in unusual(parameters).items():
        if name not in placed and not schema()[name].get("workflow"):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [spelled(name), text.lower() if isinstance(value, bool) else text]
    return shlex.join(words)


def opening(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `open_volume` that resolved parameters set."""
    return {name: parameters[name] for name in OPENING} | {"voxel_um": voxel_size(parameters["voxel_um"])}


def iteration_list(text: Any) -> tuple[int, ...]:
    """Read the most iterations of each level."""
    return tuple(int(value) for value in numbers(text, "iterations"))


def spline_distance(parameters: Mapping[str, Any], kind: str) -> tuple[str, float | None]:
    """Return the parameter that says how fine the fields of a `section` or the `volume` are, and its value."""
    own = f"spline_{kind}_um"
    name = "spline_um" if parameters[own] is None else own
    return name, parameters[name]


def meets(value: Any, rule: Mapping[str, Any]) -> bool:
    """Return whether a value is what a rule of the schema asks for: its `RULES`, by which no number is infinite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not math.isfinite(value):
        return False
    kinds = {
        "integer": number and value == int(value),
        "number": number,
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
    }
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    return (
        any(kinds[kind] for kind in types)
        and value in rule.get("enum", [value])
        and not (number and value < rule.get("minimum", value))
        and not (number and value > rule.get("maximum", value))
        and not (number and value <= rule.get("exclusiveMinimum", -math.inf))
        and not (isinstance(value, str) and re.search(rule.get("pattern", ""), value) is None)
    )


def _checked(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    typed = _typed(value, types)
    if not meets(typed, rule):
        shown = value if isinstance(typed, (int, float)) else repr(value)
        msg = f"parameter {name} must be {expectation(rule)}, got {shown}"
        raise InputError(msg)
    if types == ["number"]:
        return float(typed)
    return int(typed) if isinstance(typed, float) else typed


def _typed(value: Any, types: list[str]) -> Any:
    """Turn text from a command line into the first of `types` that it spells, and a path or numbers into text."""
    if isinstance(value, (list, tuple)):
        value = " ".join(str(item) for item in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return str(value) if types == ["string"] and not isinstance(value, bool) else value
    for kind in types:
        try:
            if kind == "boolean" and value.lower() in ("true", "false"):
                return value.lower() == "true"
            if kind in ("integer", "number"):
                return PYTHON_TYPES[kind](value)
        except ValueError:
            continue
    return value


def expectation(rule: Mapping[str, Any]) -> str:
    """Return in words what the rule of a parameter asks for."""
    if "enum" in rule:
        return " or ".join(filter(None, [", ".join(rule["enum"][:-1]), rule["enum"][-1]]))
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    text = " or ".join(words[kind] for kind in types)
    if "expected" in rule:
        text = rule["expected"]
    low, high = rule.get("minimum", rule.get("exclusiveMinimum")), rule.get("maximum")
    if low is not None:
        above = "above" if "exclusiveMinimum" in rule else "from"
        text += f" {above} {low}" + (f" to {high}" if high is not None else "" if above == "above" else " upwards")
    return text + (f" ({rule['unit']})" if "unit" in rule else "")
