"""The formats of volumes: a table, `formats.json`, that the workflow reads too.

A format is added there, with the names of its reader and its writer; nothing else lists formats. Of each entry

* `name` is how messages call it,
* `suffixes` end the names of its files and are no part of a sample's name,
* `written` are those under which it is written; none without a writer,
* `written_beside` are those of them that are written with a file of the same name beside them, and its suffix,
* `channels` says whether several channels, (C, Z, Y, X), can be written to one file,
* `zipped` are suffixes of files that hold a store of this format, whatever stands before them,
* `axes` says whether a user may name the axes of the array in a file,
* `voxels_beside` are headers whose voxels lie in another file, and the suffix of the same format in one file,
* `reader` and `writer` are `module:name`, imported when they are needed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from n4flow.errors import InputError, reading

if TYPE_CHECKING:
    from n4flow.io.reader import Reader


@dataclass(frozen=True, eq=False)
class Format:
    """One entry of the table."""

    name: str
    suffixes: Sequence[str]
    reader: str
    writer: str = ""
    written: Sequence[str] = ()
    written_beside: Mapping[str, str] = field(default_factory=dict)
    channels: bool = False
    axes: bool = False
    zipped: Sequence[str] = ()
    voxels_beside: Mapping[str, str] = field(default_factory=dict)

    def read(self, path: Path, channel: int | str | None, **options: Any) -> Reader:
        """Return the reader of a file; `options` are those that the reader has."""
        with reading(path, f"a readable volume ({self.name})", small=True):
            kind = resolve_name(self.reader)
            for file in [path] if kind.finds_files else self.files_read(path):
                check_regular(file)
            reader: Reader = kind(path, channel, **options)
        return reader

    def files_read(self, path: Path) -> list[Path]:
        """Return a file that is read, and those beside it that hold its voxels."""
        check_regular(path)  # A header in it may be read.
        return [path, *resolve_name(self.reader).data_files(path)]

    def files_written(self, path: Path) -> list[Path]:
        """Return all files that writing to a path makes."""
        beside = self.written_beside.get(suffix_of(path, self.written))
        return [path] if beside is None else [path, path.with_suffix(beside)]

    def write(self, *arguments: Any, **options: Any) -> None:
        """Write (path, array, voxel_um, like); `options` are those of a store."""
        resolve_name(self.writer)(*arguments, **options)


FORMATS = [Format(**entry) for entry in json.loads(Path(__file__).with_name("formats.json").read_bytes())["formats"]]
ZARR = next(kind for kind in FORMATS if kind.name == "OME-Zarr")
PLANES = next(kind for kind in FORMATS if kind.name == "a folder of planes")
WRITTEN = tuple(suffix for kind in FORMATS for suffix in kind.written)
WILD = re.compile(r"[*?\[]")
EXPECTED = ", ".join(f"{kind.name} ({', '.join(kind.suffixes)})" for kind in FORMATS)  # for messages


def check_regular(file: Path) -> None:
    """Refuse pipes, sockets and devices, which may be read for ever; what is absent is for others to name.

    Raises
    ------
    InputError
    """
    if file.exists() and not (file.is_file() or file.is_dir()):
        msg = f"{file} is no regular file, but a pipe, a socket or a device; write the volume to a file and give that"
        raise InputError(msg)


def read_as(path: str | Path) -> Format | None:
    """Return the format of a file by its suffix; folders are stores, and files are where they are zipped."""
    for kind in FORMATS:
        if suffix_of(path, kind.zipped if kind is ZARR else kind.suffixes):
            return kind
    return None


def written_as(path: str | Path) -> Format | None:
    """Return the format in which a volume is written to a path."""
    return next((kind for kind in FORMATS if suffix_of(path, kind.written)), None)


def suffix_of(path: str | Path, suffixes: Iterable[str]) -> str:
    """Return the longest of the suffixes that a file's name ends in, whatever its case; empty if in none."""
    name = Path(path).name.lower()
    return max((suffix for suffix in suffixes if name.endswith(suffix)), key=len, default="")


def is_pattern(path: Path) -> bool:
    """Return whether a path has wildcards, and is neither an address nor the name of a file with such characters."""
    address = re.match(r"\w{2,}:/", str(path))
    return any(map(WILD.search, path.parts)) and not address and not os.path.lexists(path)


def name_without_suffix(path: str | Path) -> str:
    """Return a file's name without the suffix of its format; of a pattern of files, the name of their folder.

    >>> name_without_suffix("data/brain.ome.zarr"), name_without_suffix("T1.NII.gz"), name_without_suffix("a.b.tif")
    ('brain', 'T1', 'a.b')
    >>> name_without_suffix("data/planes/s*/*.tif")
    'planes'
    """
    path = Path(path)
    if is_pattern(path):
        path = Path(*takewhile(lambda part: not WILD.search(part), path.parts))
    name = path.name or path.absolute().name
    return name[: len(name) - len(suffix_of(name, (suffix for kind in FORMATS for suffix in kind.suffixes)))]
