"""The streaming passes over full resolution: read runs of planes, keep statistics or a shrunken copy."""

from __future__ import annotations

import warnings

import numpy as np

from n4flow.compute.arrays import SMALLEST, within_float32
from n4flow.compute.threads import available_threads, reuse_threads, run_tasks, scratch
from n4flow.corrections.base import Where
from n4flow.corrections.recipe import Recipe
from n4flow.errors import N4flowWarning
from n4flow.io.frame import Frame, framed
from n4flow.io.volume import Volume
from n4flow.masks.tissue_source import TissueSource
from n4flow.pipeline.blocks import prepared
from n4flow.statistics.accumulate import PlaneCounter, PlaneShrinker, strips
from n4flow.statistics.histograms import PlaneHistograms
from n4flow.statistics.measure import LEAST_COVER
from n4flow.statistics.shrunken import ShrunkenVolume

# What is corrected stays in the cache that cores share; in smaller strips the interpreter takes longer than the memory.
CORRECTED_VOXELS = 1 << 20
TASKS_OF_THREAD = 4  # A block is cut into this many tasks for each thread, so that a slow one delays little.


def shrink_pass(
    volume: Volume,
    z_start: int,
    z_stop: int,
    shrink: int,
    *,
    recipe: Recipe,
    mask: Volume | None = None,
    frame: Frame | None = None,
) -> tuple[ShrunkenVolume, np.ndarray | None]:
    """Shrink planes `z_start` to `z_stop` in plane.

    Parameters
    ----------
    volume : Volume
    z_start, z_stop : int
    shrink : int
        In-plane block size.
    recipe : Recipe
        What is applied before (a background); empty for none.
    mask : Volume, optional
        A user's tissue mask.
    frame : Frame, optional
        What is shrunken of the planes; all of them without it.

    Returns
    -------
    shrunken : ShrunkenVolume
    tissue : (z, y, x) bool array or None
        Blocks of which the mask covers at least half.
    """
    frame = frame or Frame.whole(volume.shape)
    volume, mask = framed(volume, frame), None if mask is None else framed(mask, frame)
    shape = (z_stop - z_start, *volume.shape[1:])
    shrinker = PlaneShrinker(shape, shrink, np.dtype(np.float32) if recipe else volume.dtype)
    given = PlaneShrinker(shape, shrink, np.dtype(np.uint8)) if mask is not None else None
    held, some = volume.dtype.kind != "f", False
    with reuse_threads():
        for z, y, block in prepared(volume, z_start, z_stop, recipe):
            shrinker.add(block, z - z_start, y)
            if not held:  # asked until a voxel is a float32 of full precision
                held, some = bool((np.abs(block) >= SMALLEST).any()), some or bool((np.abs(block) > 0).any())
            if mask is not None and given is not None:
                inside = mask.read(slice(z, z + len(block)), slice(y, y + block.shape[1])) > 0
                given.add(inside.view(np.uint8), z - z_start, y)
    if some and not held:
        where = f"planes {z_start} to {z_stop} of {volume.source.name}"
        below = f"no value beyond {SMALLEST:.2g}, the smallest float32, in which n4flow computes, and are lost"
        warnings.warn(f"{where} have {below}; multiply the volume by a constant", N4flowWarning, 2)
    return ShrunkenVolume.of(shrinker, frame), None if given is None else given.valid >= LEAST_COVER


def statistics_pass(
    volume: Volume, z_start: int, z_stop: int, *, recipe: Recipe, tissue: TissueSource
) -> PlaneHistograms:
    """Return the histograms of planes `z_start` to `z_stop` after `recipe`: tissue, agarose, all valid voxels."""
    frame, shape = tissue.frame or Frame.whole(volume.shape), volume.shape
    recipe.check(shape)
    volume = framed(volume, frame)
    around, pointwise = recipe.margin_first()
    counter = PlaneCounter(z_stop - z_start)
    with reuse_threads():
        for z, y, block in prepared(volume, z_start, z_stop, around):
            given = None
            if tissue.given is not None:
                box = slice(z, z + len(block)), slice(y, y + block.shape[1])
                given = tissue.block(*box, slice(0, volume.shape[2]))

            cuts = strips(block.shape[1], block.shape[2], CORRECTED_VOXELS)

            def count(planes: tuple[int, int], block=block, z=z, y=y, given=given, cuts=cuts) -> None:  # type: ignore[no-untyped-def]
                for top, bottom in cuts:
                    box = slice(*planes), slice(top, bottom)
                    inside = None if given is None else given[box]
                    values = scratch("corrected", block[box].shape, np.float32)
                    with within_float32():
                        np.copyto(values, block[box], casting="unsafe")
                    where = Where(z + planes[0], frame.y_start + y + top, frame.x_start, shape, inside)
                    values = pointwise.apply_block(values, where)
                    deep, rows = slice(z + planes[0], z + planes[1]), slice(y + top, y + bottom)
                    classes, k, below = tissue.classes(deep, rows, inside)
                    for i in range(len(values)):
                        counter.add(deep.start + i - z_start, values[i], classes[i], k, below)

            # what the interpreter does is the same for several planes as for one
            step = max(1, min(CORRECTED_VOXELS // block[0].size, len(block) // (TASKS_OF_THREAD * available_threads())))
            run_tasks(count, [(i, min(i + step, len(block))) for i in range(0, len(block), step)])
        lists = run_tasks(counter.lists, range(z_stop - z_start))
    return PlaneHistograms.of_planes(lists, z_start)
