"""The streaming passes over full resolution: read runs of planes, keep statistics or a shrunken copy."""

from __future__ import annotations

import numpy as np

from n4flow.compute.threads import available_threads, reuse_threads, run_tasks, scratch
from n4flow.corrections.base import Where
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.recipe import Recipe
from n4flow.io.frame import Frame, framed
from n4flow.io.volume import Volume
from n4flow.masks.tissue_source import TissueSource
from n4flow.pipeline.blocks import prepared
from n4flow.statistics.accumulate import PlaneCounter, PlaneShrinker
from n4flow.statistics.histograms import PlaneHistograms
from n4flow.statistics.measure import LEAST_COVER
from n4flow.statistics.shrunken import ShrunkenVolume

TASKS_OF_THREAD = 4  # that a block is cut into, so that a slow one delays little


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
    with reuse_threads():
        for z, y, block in prepared(volume, z_start, z_stop, recipe):
            shrinker.add(block, z - z_start, y)
            if mask is not None and given is not None:
                inside = mask.read(slice(z, z + len(block)), slice(y, y + block.shape[1])) > 0
                given.add(inside.view(np.uint8), z - z_start, y)
    return ShrunkenVolume.of(shrinker, frame), None if given is None else given.valid >= LEAST_COVER


def statistics_pass(
    volume: Volume, z_start: int, z_stop: int, *, recipe: Recipe, tissue: TissueSource
) -> PlaneHistograms:
    """Return the histograms of planes `z_start` to `z_stop` after `recipe`: tissue, agarose, all valid voxels."""
    frame, shape = tissue.frame or Frame.whole(volume.shape), volume.shape
    volume = framed(volume, frame)
    around, pointwise = recipe.margin_first()
    first = pointwise[0] if len(pointwise) == 1 else None
    bias, corner = (first, Frame.whole(shape)) if isinstance(first, BiasCorrection) else (None, frame)
    if bias is not None and bias.frame is not None:
        bias, corner = (bias, bias.frame) if bias.frame.holds(frame) else (None, frame)
    counter = PlaneCounter(z_stop - z_start)
    with reuse_threads():
        for z, y, block in prepared(volume, z_start, z_stop, around):
            rows, given = slice(y, y + block.shape[1]), None
            if tissue.given is not None:
                given = tissue.block(slice(z, z + len(block)), rows, slice(0, volume.shape[2]))

            def count(planes: tuple[int, int], block=block, z=z, rows=rows, given=given) -> None:  # type: ignore[no-untyped-def]
                start, last = planes
                while start < last:
                    stop, field = last, None
                    if bias is not None:
                        y, x = frame.y_start - corner.y_start + rows.start, frame.x_start - corner.x_start
                        stop, field = bias.run(z + start, z + last, Where(z + start, y, x, shape), block.shape[1:])
                        stop -= z
                    elif len(pointwise):
                        stop = start + 1  # the copy stays in cache
                    values, inside = block[start:stop], None if given is None else given[start:stop]
                    if bias is None and len(pointwise):
                        values = scratch("corrected", values.shape, np.float32)
                        np.copyto(values, block[start:stop], casting="unsafe")
                        where = Where(z + start, frame.y_start + rows.start, frame.x_start, shape, inside)
                        values = pointwise.apply_block(values, where)
                    found = tissue.classes(slice(z + start, z + stop), rows, inside)
                    counter.add(z + start - z_start, values, *found, field)
                    start = stop

            # what the interpreter does is the same for several planes as for one
            step = max(1, len(block) // (TASKS_OF_THREAD * available_threads()))
            run_tasks(count, [(i, min(i + step, len(block))) for i in range(0, len(block), step)])
        lists = run_tasks(counter.lists, range(z_stop - z_start))
    return PlaneHistograms.of_planes(lists, z_start)
