"""Which files are which planes of a folder: their order, what their numbers leave out, the channels in their names."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from n4flow.errors import InputError, N4flowWarning
from n4flow.io.formats import check_regular, is_pattern
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.tiff import COMPANION, TiffReader

TIFF, OTHERS = (".tif", ".tiff", ".btf", ".tf8"), (".png", ".jp2", ".j2k")
CHANNEL = re.compile(r"(?<![A-Za-z0-9])(?:ch|c)\d+(?![A-Za-z0-9])", re.IGNORECASE)  # In a name: _C00, -ch1.

Folder = tuple[str, list[Path]]  # Name of a folder of planes, and its files.


def holds_planes(folder: Path) -> bool:
    """Return whether there are files of planes in a folder, or in one of its folders."""
    inside = list(folder.iterdir())
    return any(map(is_plane, inside)) or any(child.is_dir() and any(map(is_plane, child.iterdir())) for child in inside)


def find_planes(path: Path) -> list[Folder]:
    """Return the files of planes by the folder they are in, all in natural order.

    The names of folders are those below the one that holds all of them.

    Raises
    ------
    InputError
        There are no planes, none in one of several folders, files of several kinds, or what is no regular file.
    """
    if is_pattern(path):
        found = [Path(name) for name in glob.glob(str(path))]
    else:
        found = list(path.iterdir()) if path.is_dir() else [path]
    found = [item for item in found if not item.name.startswith(".")]
    files = list(filter(is_plane, found))
    if not files:
        for folder in (item for item in found if item.is_dir()):
            inside = [item for item in folder.iterdir() if is_plane(item)]
            if not inside:
                msg = f"{folder} holds no planes, as folders beside it may; remove it, or choose folders with a pattern"
                raise InputError(msg)
            files += inside
    if not files:
        msg = f"{path} holds no planes; expected a file for each ({', '.join((*TIFF, *OTHERS))})"
        raise InputError(msg)
    kinds = sorted({"TIFF" if is_tiff(file) else file.suffix.lower() for file in files})
    if len(kinds) > 1:
        msg = (
            f"{path} holds files of several kinds: {', '.join(kinds)}; choose one with a pattern, as in 'planes/*.tif'"
        )
        raise InputError(msg)
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        check_regular(file)
        by_folder.setdefault(file.parent, []).append(file)
    shared = os.path.commonpath(by_folder) if len(by_folder) > 1 else files[0].parent.parent
    return [
        (folder.relative_to(shared).as_posix(), sorted(by_folder[folder], key=lambda file: natural(file.name)))
        for folder in sorted(by_folder, key=lambda folder: natural(str(folder)))
    ]


def natural(text: str) -> tuple[list[Any], str]:
    """Return a key by which numbers in names are sorted as numbers.

    >>> sorted(["img_10.tif", "img_9.tif", "img_1.tif"], key=natural)
    ['img_1.tif', 'img_9.tif', 'img_10.tif']
    """
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", text))], text


def is_tiff(file: Path) -> bool:
    """Return whether a file is TIFF by its name."""
    return file.name.lower().endswith(TIFF)


def is_plane(file: Path) -> bool:
    """Return whether a file holds a plane by its name."""
    return file.name.lower().endswith((*TIFF, *OTHERS)) and not file.name.startswith(".")


def labels_of(file: Path) -> list[str]:
    """Return the channels that a file's name states."""
    return CHANNEL.findall(file.stem)


def channels_of(folders: Sequence[Folder]) -> list[str]:
    """Return the channels that names tell apart: of several planes, each has a file for every one of them."""
    planes: dict[tuple[str, str], list[str]] = {}
    for name, files in folders:
        for file in files:
            planes.setdefault((name, CHANNEL.sub("", file.stem)), []).extend(labels_of(file))
    labels = sorted({label for found in planes.values() for label in found}, key=natural)
    shared = len(labels) > 1 and sum(len(found) > 1 for found in planes.values()) > len(planes) / 2
    return labels if shared and len(planes) > 1 else []


def numbered(path: Path, folders: Sequence[Folder], *, warn: bool) -> tuple[list[Path], list[Any], dict[int, str]]:
    """Return a file for each plane, the sections (name, start, stop), and the names of planes that are not there.

    Raises
    ------
    InputError
        A folder is missing, and how many planes it has cannot be told from the others.
    """
    planes: list[Path] = []
    sections: list[Any] = []
    absent: dict[int, str] = {}
    depths = {len(files) for _name, files in folders}
    counted, unclear = with_gaps([name for name, _files in folders])
    for name, there in counted:
        files = dict(folders).get(name)
        if files is None:
            if len(depths) > 1:
                held = f"{path} lacks the folder {name}, and others have {min(depths)} to {max(depths)} planes"
                msg = f"{held}; put it there, or number the folders without a gap"
                raise InputError(msg)
            named = [(f"{name}/{number}", False) for number in range(1, min(depths) + 1)]
            parent = path
        else:
            named, gaps_unclear = with_gaps([file.name for file in files])
            unclear |= gaps_unclear
            parent = files[0].parent
        start = len(planes)
        for file, present in named:
            if not present:
                absent[len(planes)] = file if len(folders) == 1 or not there else f"{name}/{file}"
            planes.append(parent / file)
        sections.append((name, start, len(planes)))
    if unclear and warn:
        msg = f"the numbers in the names of {path} do not count its planes, so that a missing one would not be noticed"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
    return planes, sections, absent


def with_gaps(names: Sequence[str]) -> tuple[list[tuple[str, bool]], bool]:
    """Return sorted names with those that the numbering leaves out, whether each is there, and whether it is unclear.

    The number that counts is the first one that differs in all names; where none does, as of sections and planes in
    them, it is the last one that differs, counted anew for each of the numbers before it.

    >>> with_gaps(["a_02.tif", "a_04.tif", "a_08.tif"])
    ([('a_02.tif', True), ('a_04.tif', True), ('a_06.tif', False), ('a_08.tif', True)], False)
    """
    as_they_are = [(name, True) for name in names]
    parts = [re.split(r"(\d+)", name) for name in names]
    numbers = [[int(number) for number in split[1::2]] for split in parts]
    places = range(len(numbers[0])) if len({len(each) for each in numbers}) == 1 else range(0)
    varying = [place for place in places if len({each[place] for each in numbers}) > 1]
    if len(names) < 2:
        return as_they_are, False
    if not varying or len({tuple(split[::2]) for split in parts}) > 1:
        return as_they_are, True
    counting = next((p for p in varying if len({each[p] for each in numbers}) == len(names)), None)
    place = varying[-1] if counting is None else counting
    runs = [0] * len(names) if counting is not None else [tuple(each[:place]) for each in numbers]
    steps = [b[place] - a[place] if r == s else 0 for (a, r), (b, s) in pairwise(zip(numbers, runs, strict=True))]
    step = min((size for size in steps if size), default=0)
    if step <= 0 or any(size % step for size in steps) or sum(size // step for size in steps) > 2 * len(names):
        return as_they_are, True
    complete = as_they_are[:1]
    for name, split, size in zip(names[1:], parts, steps, strict=False):
        for number in range(int(split[2 * place + 1]) + step, int(split[2 * place + 1]) + size, step):
            wide = f"{number:0{len(split[2 * place + 1])}d}"
            complete.append(("".join([*split[: 2 * place + 1], wide, *split[2 * place + 2 :]]), False))
        complete.append((name, True))
    return complete, False


def described_set(folder: Path) -> Path | None:
    """Return a member of the OME-TIFF of several files that a folder holds; None if it holds none.

    Raises
    ------
    InputError
        It holds further planes beside the set.
    """
    inside = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    files = [child for child in inside if child.name.lower().endswith((COMPANION, ".ome.tif", ".ome.tiff"))]
    member = next((file for file in files if file.name.lower().endswith(COMPANION)), next(iter(files), None))
    if member is None or not (others := TiffReader.data_files(member)):
        return None
    known = {file.resolve() for file in [member, *others]}
    if further := [file.name for file in inside if (file in files or is_plane(file)) and file.resolve() not in known]:
        msg = f"{folder} holds the files of {member.name} and others ({listed(further)}); give one file of the volume"
        raise InputError(msg)
    return member
