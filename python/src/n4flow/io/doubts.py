"""Sentences on what is odd about a volume and yet may be meant."""

from __future__ import annotations

from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.volume import Volume

SMALLEST_UM = 0.01  # A voxel size below it is finer than what light resolves: millimetres, most likely.
LARGEST_RATIO = 1000  # Of the voxel sizes along two axes.


def doubts(volume: Volume) -> list[str]:
    """Return a sentence on a voxel size that hardly can be, on absent files of a store, and on those cut short."""
    said = []
    name = volume.source.name
    if volume.voxel_um is not None:
        sizes = list(volume.voxel_um.values())
        if min(sizes) < SMALLEST_UM or max(sizes) >= LARGEST_RATIO * min(sizes):
            stated = " x ".join(f"{size:g}" for size in sizes)
            asked = "were millimetres meant? give the size with voxel_um"
            said.append(f"{name} has voxels of {stated} micrometres (z, y, x): {asked}")
    damaged = volume.metadata.get("damaged_chunks", [])
    absent = [key for key in volume.metadata.get("missing_chunks", []) if key not in set(damaged)]
    if absent:
        what = "files are absent, as chunks of the fill value may be, and are read as it"
        said.append(f"{len(absent)} {what}: {listed(absent)} of {name}")
    if damaged:
        what = "files are lost or cut short, and their voxels are invalid"
        said.append(f"{len(damaged)} {what}: {listed(damaged)} of {name}")
    return said


def rounding(volume: Volume) -> str | None:
    """Return a sentence where float32, in which is computed, does not hold every value of a volume's type."""
    kind, size = volume.dtype.kind, volume.dtype.itemsize
    if size < (8 if kind == "f" else 4) or kind == "b":
        return None
    return f"{volume.dtype} is computed as float32, which is exact for whole numbers up to 16777216 only"
