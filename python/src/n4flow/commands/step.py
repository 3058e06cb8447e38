"""What commands share: the number of threads, and how they name planes and the files of slabs."""

from __future__ import annotations

from pathlib import Path

from n4flow.compute.threads import limit_threads, thread_limit
from n4flow.errors import InputError

# What tasks leave of a slab, by kind: SHRINK (`given` is the user's mask), PLANE_STATISTICS and RENDER.
SLAB_FILES = {
    "shrunken": "shrunken_*.npz",
    "given": "given_*.npy",
    "histograms": "histograms_*.npz",
    "rendered": "slab_*",
}


def set_threads(threads: int | None) -> int:
    """Limit this process to a number of threads, all available cores without one."""
    if threads is not None:
        limit_threads(threads)
    return thread_limit()


def parts(folder: Path, kind: str) -> list[Path]:
    """Return the files of every slab in a folder, in the order of their planes, which is that of their names.

    Raises
    ------
    InputError
        There is none.
    """
    pattern = SLAB_FILES[kind]
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
