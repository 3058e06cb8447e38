"""Addresses of stores that are no files here: https, http, s3 and gs."""

from __future__ import annotations

import re
from pathlib import Path, PosixPath

ADDRESS = re.compile(r"(https?|s3|gs):/+(?=[^/])")


class Address(PosixPath):
    """An address with the names, parents and joining of a path; nothing of it exists on a disk."""

    def __str__(self) -> str:
        return ADDRESS.sub(r"\1://", super().__str__())  # of two slashes a path keeps one


def located(path: str | Path) -> Path:
    """Return an `Address` where a path is one, even one of whose two slashes one is lost, else a path.

    >>> str(located(Path("https://data.org/brain.ome.zarr") / "0"))
    'https://data.org/brain.ome.zarr/0'
    """
    return Address(path) if ADDRESS.match(str(path)) else Path(path)
