"""The samples of a run: one volume, or the rows of a sample sheet."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from os.path import realpath
from pathlib import Path
from typing import Any

from n4flow.errors import InputError, reading
from n4flow.io.address import Address, located
from n4flow.io.formats import ZARR, name_without_suffix, written_as
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.writers import check_destination
from n4flow.n4_bias.results import Named, check_distinct
from n4flow.pipeline.parameters import resolve, sample_sheet

LONGEST_COUNT = 10  # Digits; what is longer is no count of sections.


def check_apart(folder: Path, inputs: Iterable[Any]) -> None:
    """Refuse inputs that lie where the results will, which a run would replace, and results inside a folder of input.

    Raises
    ------
    InputError
        With the path.
    """
    target = Path(realpath(folder))  # Path.resolve fails at a loop of links.
    for path in inputs:
        real = Path(realpath(path)) if isinstance(path, (str, Path)) else None
        if real is not None and target in (real, *real.parents):
            msg = f"{path} lies in {folder}, where the results go; choose another outdir"
            raise InputError(msg)
        if real is not None and real in target.parents and real.is_dir():
            msg = f"{folder}, where the results go, lies in the input {path}; choose another outdir"
            raise InputError(msg)


def check_store(out: Path, image: Any, *, overwrite: bool = False) -> None:
    """Judge, before anything is computed, whether a store may be written at a path.

    Raises
    ------
    InputError
        Its name is not that of an OME-Zarr, it exists and `overwrite` is not given, it and the input are one or lie one
        in the other, or its folder cannot be written to.
    """
    if written_as(out) is not ZARR:
        msg = f"{out} must be an OME-Zarr, a name that ends in {' or '.join(ZARR.written)}"
        raise InputError(msg)
    if isinstance(image, (str, Path)):
        check_distinct([Named("the input", Path(image)), Named("the output", out, written=True)])
    check_destination(out, overwrite=overwrite)


def check_channel(folder: Path, channel: int | None) -> None:
    """Refuse a place that holds the result of another channel: a run would replace it.

    Raises
    ------
    InputError
        With both channels.
    """
    try:
        held = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["parameters"]["channel"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if (held or 0) != (channel or 0):
        msg = (
            f"{folder} holds the result of channel {held or 0}, and channel {channel or 0} was asked for; "
            "choose another outdir, or remove that result"
        )
        raise InputError(msg)


def read_samples(path: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """Return (sample, image, own parameters) of each sample; paths in a sample sheet are relative to it."""
    if path.suffix.lower() != ".csv":
        return [(name_without_suffix(path), path, {})]
    if not path.is_file():
        msg = f"parameter input: {path} does not exist; check the path"
        raise InputError(msg)
    remedy = "save it as a table of cells separated by commas, in UTF-8"
    with (
        reading(path, "a sample sheet in UTF-8 text", remedy, small=True),
        path.open(newline="", encoding="utf-8-sig") as stream,
    ):
        header, *lines = [
            [cell.strip() for cell in line] for line in csv.reader(stream, skipinitialspace=True) if any(line)
        ] or [[]]
    names, rows = header, [dict(zip(header, line, strict=False)) for line in lines]
    columns, required = list(sample_sheet()["properties"]), sample_sheet()["required"]
    if not set(required) <= set(names) <= set(columns):
        optional = ", ".join(name for name in columns if name not in required)
        expected = f"{', '.join(required)} and, optionally, {optional}"
        msg = f"sample sheet {path.name} has columns {listed(names)}; expected {expected}{_meant(names, columns)}"
        raise InputError(msg)
    if not rows:
        msg = f"sample sheet {path.name} has no rows; give one line for each sample under a header"
        raise InputError(msg)
    for number, row in enumerate(rows, start=1):
        if not row.get("sample") or not row.get("image"):
            msg = f"sample sheet {path.name}, row {number}: sample and image must not be empty"
            raise InputError(msg)
        for name in ("voxel_um", "channel"):
            resolve({name: row.get(name) or None})
    samples = [row["sample"] for row in rows]
    for sample, count in Counter(samples).items():
        if count > 1:
            rows_of = f"names sample {sample} in {count} rows"
            msg = f"sample sheet {path.name} {rows_of}; give every sample a name of its own"
            raise InputError(msg)
    return [(row["sample"], _beside(path.parent, row["image"]), _own(row, path.parent)) for row in rows]


def _meant(names: list[str], columns: list[str]) -> str:
    """Return what makes a header another one than it looks: the separator of its cells, or capitals."""
    separator = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    if separator is not None:
        return f"; separate cells by commas, not by {'tabs' if separator == chr(9) else separator}"
    capitals = [name for name in names if name not in columns and name.lower() in columns]
    return f"; write {', '.join(name.lower() for name in capitals)} in small letters" if capitals else ""


def _beside(folder: Path, name: str) -> Path:
    place = located(name)
    return place if isinstance(place, Address) else folder / name


def _own(row: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the parameters that a row of the sheet sets for its sample."""
    own: dict[str, Any] = {}
    for name in ("mask", "flat_field"):
        if row.get(name):
            own[name] = str(_beside(folder, row[name]))
    own.update({name: row[name] for name in ("voxel_um", "channel") if row.get(name)})
    if row.get("sections"):
        text = str(row["sections"])
        own["sections"] = int(text) if text.isdecimal() and len(text) < LONGEST_COUNT else str(folder / text)
    return own
