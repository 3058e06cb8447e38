"""The files that a correction reads and writes: their names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from os.path import realpath
from pathlib import Path
from typing import NamedTuple

from n4flow.errors import InputError
from n4flow.io.formats import WRITTEN, name_without_suffix, suffix_of, written_as
from n4flow.io.open import files_read


class Named(NamedTuple):
    """A file, what it is to the correction, and whether it is written."""

    role: str
    path: Path
    written: bool = False

    def files(self) -> list[Path]:
        """Return the file and those that are read or written with it."""
        kind = written_as(self.path)
        if not self.written:
            return files_read(self.path)
        return [self.path] if kind is None else kind.files_written(self.path)


def applied_name(output: Path, file: Path) -> Path:
    """Return the result of another file that the field is applied to: beside `output`, in its format.

    >>> applied_name(Path("out/t1.nii.gz"), Path("scans/t2.mha")).as_posix()
    'out/t2_corrected.nii.gz'
    """
    return output.parent / f"{name_without_suffix(file)}_corrected{suffix_of(output, WRITTEN)}"


def check_distinct(files: Sequence[Named]) -> None:
    """Refuse files of which two are the same one, or of which one that is written lies in another, which is a store.

    A file that is written is also compared with the data files of headers, and so are those that are written with it.

    Raises
    ------
    InputError
        With what the two are.
    """
    for first, second in combinations(files, 2):
        written = first.written or second.written
        for file, rival in product(first.files(), second.files()) if written else [(first.path, second.path)]:
            one, other = Path(realpath(file)), Path(realpath(rival))  # Path.resolve fails at a loop of links.
            nested = written and (one in other.parents or other in one.parents)
            if one == other or nested:
                named = (file, rival) == (first.path, second.path)
                same = "are the same file" if named else f"share the file {file}"
                relation = "lie one in the other" if nested else same
                both = f"{first.role} {first.path} and {second.role} {second.path}"
                msg = f"{both} {relation}; give each a path of its own"
                raise InputError(msg)
