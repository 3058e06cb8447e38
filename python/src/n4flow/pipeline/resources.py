"""Memory and disk space that the stages need, predicted from shapes and types alone before a run begins."""

from __future__ import annotations

import math

import numpy as np

from n4flow.corrections.harmonization.geometry import fit_step
from n4flow.io.frame import field_margin
from n4flow.io.omezarr.layout import StoreLayout
from n4flow.io.omezarr.slab_writer import FEWEST_TASKS, TOGETHER
from n4flow.io.volume import Volume
from n4flow.masks.smoothed_sections import HELD_BYTES, HELD_SMOOTH
from n4flow.pipeline.blocks import Blocks, in_parts
from n4flow.statistics.accumulate import MOST_TILES, STRIP_VOXELS
from n4flow.statistics.bins import N_BINS

INTERPRETER = 450_000_000  # Bytes of Python, its libraries, and the compiler where kernels are not cached yet.
MARGIN = 1.2  # Allocators round sizes up, and keep a part of what is released.
SHRUNKEN = 12  # Bytes of a shrunken voxel: mean and share of valid voxels, and both again as packed for a file.
FITTED = 12  # Bytes of a shrunken voxel while a field is fitted (measured 11.5).
FITTED_BY_ITK = 56  # The same where SimpleITK fits the field; measured 54.7.
COMPARED = 96  # Bytes of a sample of a harmonized or proven volume; measured 47 and 66, where 29 % held no tissue.
SHOWN = 15  # Bytes of a voxel that the report's viewer shows: before, after, field and masks, and all in eight bits.
MOST_SHOWN = 7_000_000  # Voxels of the viewer at most, see `report.overview`.
HELD_PLANES = 48  # Shrunken planes that a stage reads, smooths or measures at a time, with those around them.
HISTOGRAM = 3 * 8 * 8192  # Bytes of a plane's histograms: values and counts of three classes over eight octaves.
DISTRIBUTIONS = HELD_BYTES + 8 * 8 * N_BINS  # Bytes of the sections' distributions that are cached, and of pooled ones.
PAIR = 12  # Bytes of a histogram's bin that has at least one voxel: its value and its count.
SHRUNKEN_FILE = 8  # Bytes of a shrunken voxel in a file, where neither mean nor share of valid voxels compresses.
SAMPLE_FILE = 9  # Bytes of a sample of the evidence in a file: log, proven log and whether it is inside.
PLANE_FILE = 160  # Bytes of a plane's counts in a file, and of the headers of what is compressed.
ARCHIVE = 8192  # Bytes of the headers and names of the arrays in one file.


# Seconds that a run takes on two cores, as measured (docs/streaming.md).
START_SECONDS = 4.0  # what is imported and drawn, whatever the volume
VOXEL_SECONDS = 26e-9  # of each voxel: SHRINK, PLANE_STATISTICS and RENDER
SHRUNKEN_SECONDS = 550e-9  # of each shrunken voxel: mask, bias fields, proof, report


def run_seconds(shape: tuple[int, int, int], plane: tuple[int, int], shrink: int) -> float:
    """Return about how long a run with the default parameters takes on two cores.

    Parameters
    ----------
    shape : tuple of int
        (Z, Y, X) of full resolution.
    plane : tuple of int
        Rows and columns that the shrunken volume is made of.
    shrink : int
        In-plane block size of the shrunken volume.
    """
    shrunken = shape[0] * math.prod(-(-n // shrink) for n in plane)
    return START_SECONDS + VOXEL_SECONDS * math.prod(shape) + SHRUNKEN_SECONDS * shrunken


def pass_bytes(
    volume: Volume,
    layout: StoreLayout,
    mask_layout: StoreLayout,
    shrink: int,
    plane: tuple[int, int],
    *,
    margin: int = 0,
    threads: int = 2,
) -> dict[str, int]:
    """Return the peak memory of a task of each streaming process, in bytes.

    It grows with the size of a plane and with the planes of a slab on the shrunken grid, and not with the planes of the
    volume.

    Parameters
    ----------
    volume : Volume
        The input.
    layout, mask_layout : StoreLayout
        The stores that RENDER writes.
    shrink : int
        In-plane block size of the shrunken volume.
    plane : tuple of int
        Rows and columns that it is made of.
    margin : int
        Rows that the recipe's neighbourhoods reach.
    threads : int
        Of a task.
    """
    planes = min(layout.slab_planes, volume.shape[0])
    small = math.prod(-(-n // shrink) for n in plane)
    chunks = [store.levels[0].chunks for store in (layout, mask_layout)]
    depth, height = (math.lcm(*(chunk[axis] for chunk in chunks)) for axis in (0, 1))
    read, render = Blocks.of(volume, halo=margin), Blocks.of(volume, depth, height, margin)
    tables = threads * (2 * 8 * 3 * 2 * N_BINS + 3 * 4 * STRIP_VOXELS)
    decoding = threads * 2 * math.prod(volume.chunks) * volume.dtype.itemsize
    tiles = min(MOST_TILES, math.prod(-(-n // c) for n, c in zip(volume.shape[1:], chunks[0][1:], strict=True)))
    masks = small * planes * 9 // 8  # as they are read, and as bits
    whole = not margin and in_parts(volume, 0, layout.levels[0].chunks)
    held = threads * math.prod(layout.levels[0].chunks) * volume.dtype.itemsize if whole else 2 * render.nbytes(volume)
    rows_of_blocks = 2 * shrink * read.depth * volume.shape[2] * volume.dtype.itemsize  # that go on in the next block
    parts = {
        "SHRINK": decoding + 2 * read.nbytes(volume) + planes * small * SHRUNKEN + rows_of_blocks,
        "PLANE_STATISTICS": decoding + 2 * read.nbytes(volume) + tables + masks + 3 * planes * HISTOGRAM,
        "RENDER": decoding
        + held
        + planes * small * SHRUNKEN
        + 12 * render.depth * small
        + tiles * 12 * chunks[0][0] * sum(-(-n // shrink) for n in chunks[0][1:])
        + masks
        + sum(_writer_bytes(store, render, volume.shape, threads) for store in (layout, mask_layout)),
    }
    around = 0
    if margin:  # corrected blocks as float32, and the float64 planes of a Gaussian mean
        rows = min(render.height + 2 * margin, volume.shape[1])
        around = (4 * render.depth * render.height + 48 * threads * rows) * volume.shape[2]
    return {name: int(INTERPRETER + MARGIN * (size + around)) for name, size in parts.items()}


def shrunken_bytes(
    shape: tuple[int, int, int], shrink: int, longest_section: int, backend: str = "auto"
) -> dict[str, int]:
    """Return the peak memory of a task of each process that works on the shrunken volume, in bytes.

    TISSUE_MASK holds a few planes and the packed masks, and so do all that read the evidence, beside the samples that
    it compares; N4_SECTIONS holds one section, N4_VOLUME the whole shrunken volume.

    Parameters
    ----------
    shape : tuple of int
        (Z, Y, X) of full resolution.
    shrink : int
        In-plane block size of the shrunken volume.
    longest_section : int
        Planes.
    backend : str
        What fits bias fields. What a GPU's libraries take beside it is not in here.
    """
    blocks = [-(-n // shrink) for n in shape[1:]]
    small = math.prod(blocks)
    masks = 2 * shape[0] * -(-small // 8)  # noise stays as large as its bits
    planes = HELD_PLANES * small * SHRUNKEN + masks
    wide = math.prod(n + 2 * m for n, m in zip(blocks, field_margin(blocks), strict=True))
    fitted = wide * (FITTED_BY_ITK if backend == "itk" else FITTED)
    compared = shape[0] * math.prod(-(-n // fit_step(*blocks)) for n in blocks) * COMPARED
    sizes = {
        "TISSUE_MASK": planes + DISTRIBUTIONS + min(HELD_SMOOTH, 4 * shape[0] * small),
        "N4_SECTIONS": longest_section * fitted,
        "N4_VOLUME": shape[0] * fitted,
        "PROVE": planes + compared,
        "HARMONIZE": planes + compared,
        "INTENSITY": planes + compared,
        "FINISH": planes + compared + min(shape[0] * small, MOST_SHOWN) * SHOWN,
    }
    return {name: int(INTERPRETER + MARGIN * size) for name, size in sizes.items()}


def work_needs(shape: tuple[int, int, int], shrink: int, slabs: int) -> tuple[int, int]:
    """Return the bytes and files that lie between the stages at most: shrunken volumes, histograms, masks, evidence.

    Parameters
    ----------
    shape : tuple of int
        (Z, Y, X) of full resolution.
    shrink : int
        In-plane block size of the shrunken volume.
    slabs : int
        Each of which has a file of the shrunken input, one of the shrunken result and one of histograms.
    """
    blocks = [-(-n // shrink) for n in shape[1:]]
    small, samples = math.prod(blocks), math.prod(-(-n // fit_step(*blocks)) for n in blocks)
    histograms = min(HISTOGRAM, PAIR * math.prod(shape[1:]))
    plane = 2 * (SHRUNKEN_FILE * small + PLANE_FILE) + histograms + -(-small // 8) + SAMPLE_FILE * samples
    return shape[0] * plane + small + (3 * slabs + 1) * ARCHIVE, 3 * slabs + 2


def _writer_bytes(layout: StoreLayout, blocks: Blocks, shape: tuple[int, int, int], threads: int) -> int:
    """Return what a writer holds: chunks in work, compressed chunks that wait, and chunks that are not complete."""
    itemsize = np.dtype(layout.dtype).itemsize
    first = layout.levels[0]
    chunk = math.prod(first.chunks)
    total = threads * chunk * (2 * itemsize + 4) + FEWEST_TASKS * TOGETHER * threads * chunk * itemsize
    if blocks.depth % first.chunks[0] and blocks.depth < shape[0]:  # blocks that end within chunks
        total += first.chunks[0] * math.prod(shape[1:]) * itemsize
    for level in layout.levels[1:]:
        covered = level.chunks[0] * level.factors[0]
        rows = level.chunks[1] if covered <= blocks.depth else level.shape[1]
        total += 4 * level.chunks[0] * (rows + level.chunks[1]) * level.shape[2]
    return total
