"""What every command shares: threads, a JSON of its numbers, the clock."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from n4flow.errors import InputError
from n4flow.pipeline.timing import dumps, stage

# How SHRINK and PLANE_STATISTICS name the files of a slab, and SHRINK the user's mask of one.
SLAB_FILES = {"shrunken": "shrunken_*.npz", "given": "given_*.npy", "histograms": "histograms_*.npz"}


@contextmanager
def step(name: str, threads: int | None, json_file: Path | None) -> Iterator[dict[str, Any]]:
    """Time a step, limit its threads, and write its numbers when it succeeds.

    Parameters
    ----------
    name : str
        Name under which the report lists the step.
    threads : int or None
        All cores when None.
    json_file : path or None
        Where the numbers go.

    Yields
    ------
    dict
        The step's numbers, to be filled in. Warnings of n4flow are added to it and shown.
    """
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with stage(name, command=command, threads=set_threads(threads)) as numbers:
        yield numbers
    if json_file is not None:
        json_file.write_text(dumps(numbers) + "\n", encoding="utf-8")


def set_threads(threads: int | None) -> int:
    """Limit the compiled kernels and SimpleITK to a number of threads, all available cores without one."""
    import numba

    from n4flow.compute.threads import available_threads, limit_threads

    count = min(threads or available_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    limit_threads(count)
    return count


def parts(folder: Path, kind: str) -> list[Path]:
    """Return the files of every slab in a folder, in the order of their planes, which is that of their names.

    Raises
    ------
    InputError
        There is none.
    """
    pattern = SLAB_FILES.get(kind, kind)
    found = sorted(folder.glob(pattern))
    if not found:
        msg = f"{folder} holds no {pattern}; give the folder with the files of every slab"
        raise InputError(msg)
    return found


def plane_range(text: str, n_planes: int | None = None) -> tuple[int, int]:
    """Read 'start:stop', within a volume of `n_planes` planes where that is known."""
    start, _colon, stop = text.partition(":")
    numbers = start.isdecimal() and stop.isdecimal() and int(start) < int(stop)
    if not numbers or (n_planes is not None and int(stop) > n_planes):
        within = "" if n_planes is None else f" within 0:{n_planes}"
        msg = f"planes must be START:STOP{within}, got {text!r}"
        raise InputError(msg)
    return int(start), int(stop)
