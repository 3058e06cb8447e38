"""The section table: the runs of planes that were cut and imaged together."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO, TypeAlias, overload

import numpy as np

from n4flow.display import Shown
from n4flow.errors import InputError, reading

FLAGS = ("ok", "missing", "damaged", "interpolated")
MOST_SHOWN = 5  # Faults of a table that its error names.
COLUMNS = ("id", "z_start", "z_stop", "flag")
# Text that a spreadsheet runs as a formula, behind any quotation marks that keep it from doing so, and is no number.
FORMULA = re.compile(r"'*(?![+-]?[\d.]+$)[=+\-@]")


@dataclass(frozen=True)
class Section:
    """A run of planes `z_start <= z < z_stop`, cut and imaged together."""

    id: str
    z_start: int
    z_stop: int
    flag: str = "ok"

    @property
    def planes(self) -> slice:
        """The section's planes as a slice along Z."""
        return slice(self.z_start, self.z_stop)

    @property
    def usable(self) -> bool:
        """Whether the section may enter statistics. A section that may not is written all the same."""
        return self.flag == "ok"


class SectionTable(Shown, Sequence[Section]):
    """Sections in order, covering every plane of a volume once.

    Parameters
    ----------
    sections : sequence of Section
        In any order; the table sorts them by `z_start`.
    n_planes : int
        Number of planes of the volume.

    Raises
    ------
    InputError
        Gaps, overlaps, empty sections, duplicate ids, ids with tabs or line breaks, or unknown flags; the message names
        their rows.
    """

    def __init__(self, sections: Sequence[Section], n_planes: int, *, name: str = "section table") -> None:
        rows = list(enumerate(sections, start=1))  # row numbers as a reader of the file counts them
        self._check(rows, n_planes, name)
        self._sections = tuple(section for _row, section in sorted(rows, key=lambda pair: pair[1].z_start))
        self.n_planes = n_planes

    @staticmethod
    def _check(rows: list[tuple[int, Section]], n_planes: int, name: str) -> None:
        problems = []
        first_row: dict[str, int] = {}
        for row, section in rows:
            if section.id in first_row:
                problems.append(f"rows {first_row[section.id]} and {row} have the same id {section.id!r}")
            first_row.setdefault(section.id, row)
            if not section.id.isprintable():
                problems.append(f"row {row} has the id {section.id!r}, expected characters that can be printed")
            if section.flag not in FLAGS:
                problems.append(f"row {row} has flag {section.flag!r}, expected one of {', '.join(FLAGS)}")
            if not 0 <= section.z_start < section.z_stop:
                limits = f"z_start {section.z_start} and z_stop {section.z_stop}"
                problems.append(f"row {row} has {limits}, expected 0 <= z_start < z_stop")
        covered, previous = 0, 0
        for row, section in sorted(rows, key=lambda pair: pair[1].z_start):
            if section.z_start > covered:
                problems.append(f"planes {covered} to {section.z_start - 1} before row {row} are in no section")
            elif section.z_start < covered:
                problems.append(f"rows {previous} and {row} overlap in planes {section.z_start} to {covered - 1}")
            covered, previous = max(covered, section.z_stop), row
        if covered < n_planes:
            problems.append(f"planes {covered} to {n_planes - 1} are in no section")
        elif covered > n_planes:
            problems.append(f"row {previous} ends at plane {covered}, the volume has {n_planes} planes")
        if problems:
            rule = f"{name} must cover planes 0 to {n_planes - 1} once"
            more = [f"and {len(problems) - MOST_SHOWN} more faults"] if len(problems) > MOST_SHOWN else []
            msg = f"{rule}: {'; '.join(problems[:MOST_SHOWN] + more)}; correct the table or give sections as a count"
            raise InputError(msg)

    @classmethod
    def equal(cls, n_planes: int, count: int) -> SectionTable:
        """Split `n_planes` into `count` sections that begin at round(i * n_planes / count), as linumpy cuts them."""
        if not 1 <= count <= n_planes:
            msg = f"sections must be a count from 1 to the number of planes ({n_planes}), got {count}"
            raise InputError(msg)
        cuts = [round(i * (n_planes / count)) for i in range(count + 1)]
        digits = max(3, len(str(count - 1)))
        return cls([Section(f"s{i:0{digits}d}", cuts[i], cuts[i + 1]) for i in range(count)], n_planes)

    @classmethod
    def read(cls, path: str | Path, n_planes: int) -> SectionTable:
        """Read a comma- or tab-separated table with columns id, z_start, z_stop and, optionally, flag."""
        path = Path(path)
        if not path.is_file():
            msg = f"section table {path} does not exist; give a file with columns id, z_start, z_stop, flag, or a count"
            raise InputError(msg)
        with reading(path, "a table of sections in UTF-8 text", "save it as UTF-8", small=True):
            lines = path.read_bytes().decode("utf-8-sig").splitlines()
            delimiter = "\t" if lines and "\t" in lines[0] else ","
            names = [name.strip() for name in next(csv.reader(lines[:1], delimiter=delimiter), [])]
            missing = [name for name in COLUMNS[:3] if name not in names]
            if missing:
                msg = f"section table {path.name} lacks column {', '.join(missing)}; it has {', '.join(names)}"
                raise InputError(msg)
            sections = []
            for row, record in enumerate(csv.DictReader(lines[1:], fieldnames=names, delimiter=delimiter), start=1):
                try:
                    z_start, z_stop = int(record["z_start"]), int(record["z_stop"])
                except (TypeError, ValueError):
                    got = f"{record['z_start']!r} and {record['z_stop']!r}"
                    msg = f"section table {path.name}, row {row}: z_start and z_stop must be whole numbers, got {got}"
                    raise InputError(msg) from None
                name = (record["id"] or "").strip()
                name = name[name.startswith("'") and FORMULA.match(name) is not None :]  # see write_rows
                sections.append(Section(name, z_start, z_stop, (record.get("flag") or "ok").strip()))
        return cls(sections, n_planes, name=f"section table {path.name}")

    @classmethod
    def coerce(cls, sections: SectionsLike, n_planes: int) -> SectionTable:
        """Return a table from a table, a count, a path, a sequence of Section, or None (each plane is a section)."""
        if isinstance(sections, cls):
            if sections.n_planes != n_planes:
                msg = f"the section table covers {sections.n_planes} planes, the volume has {n_planes}"
                raise InputError(msg)
            return sections
        if sections is None:
            return cls.equal(n_planes, n_planes)
        if isinstance(sections, (int, np.integer)):
            return cls.equal(n_planes, int(sections))
        if isinstance(sections, (str, Path)):
            return cls.read(sections, n_planes)
        return cls(list(sections), n_planes)

    def write(self, path: str | Path) -> None:
        """Write the table as tab-separated text that `read` reads back."""
        with Path(path).open("w", newline="", encoding="utf-8") as stream:
            write_rows(stream, [COLUMNS, *((s.id, s.z_start, s.z_stop, s.flag) for s in self)])

    @property
    def section_of_plane(self) -> np.ndarray:
        """(Z,) int array: the index of the section of each plane."""
        return np.repeat(np.arange(len(self)), [s.z_stop - s.z_start for s in self])

    def edges(self, filled: slice = slice(None)) -> np.ndarray:
        """Return (sections + 1,) int array: the first plane of each section, and the end of the last.

        Only planes in `filled` count (see `filled_planes`): planes before and after it are padding and do not make a
        section thicker. A section that consists of padding has no planes.
        """
        start, stop, _step = filled.indices(self.n_planes)
        return np.clip([section.z_start for section in self] + [self.n_planes], start, stop)

    def within(self, planes: Sequence[Sequence[int]]) -> list[Section]:
        """Return the sections of which all planes lie in the runs (z_start, z_stop)."""
        inside = np.zeros(self.n_planes, bool)
        for start, stop in planes:
            inside[start:stop] = True
        return [section for section in self if inside[section.planes].all()]

    def flagged(self, sections: Sequence[Section], flag: str) -> SectionTable:
        """Return the table with `flag` on some of its sections; one that has a flag already keeps it."""
        chosen = [replace(s, flag=flag) if s in sections and s.usable else s for s in self]
        return SectionTable(chosen, self.n_planes)

    @property
    def usable_planes(self) -> np.ndarray:
        """(Z,) bool array: whether each plane may enter statistics."""
        return np.repeat([s.usable for s in self], [s.z_stop - s.z_start for s in self])

    @overload
    def __getitem__(self, index: int) -> Section: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Section]: ...
    def __getitem__(self, index: int | slice) -> Section | Sequence[Section]:
        return self._sections[index]

    def __len__(self) -> int:
        return len(self._sections)

    def __iter__(self) -> Iterator[Section]:
        return iter(self._sections)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SectionTable) and self._sections == other._sections

    def __hash__(self) -> int:
        return hash(self._sections)

    def facts(self) -> Mapping[str, str]:
        """Return the numbers of sections and planes, and which sections are flagged."""
        flagged = [section.id for section in self if not section.usable]
        more = ["..."] if len(flagged) > MOST_SHOWN else []
        said = {"sections": str(len(self)), "planes": str(self.n_planes)}
        return said | ({"flagged": " ".join(flagged[:MOST_SHOWN] + more)} if flagged else {})


# What functions take for sections; None: each plane is a section.
SectionsLike: TypeAlias = SectionTable | Sequence[Section] | str | Path | int | None


def write_rows(stream: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Write tab-separated rows; None is an empty cell, and a ' stands before text that a spreadsheet would run."""
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    for row in rows:
        writer.writerow(f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell for cell in row)


def filled_planes(has_voxels: np.ndarray) -> slice:
    """Return the planes from the first to the last with valid voxels; all planes if there are no valid voxels.

    Planes before and after are padding. Estimates must not depend on the amount of padding.

    Parameters
    ----------
    has_voxels : (Z,) bool array
        Whether each plane has valid voxels.
    """
    filled = np.flatnonzero(has_voxels)
    return slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, len(has_voxels))
