"""The render: read each block once, apply the recipe, write it once, with the pyramid of the same block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.arrays import LARGEST, within_float32
from n4flow.compute.threads import available_threads, scratch, thread_pool
from n4flow.corrections.base import Where
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError
from n4flow.io.disk_space import check_space, store_needs
from n4flow.io.frame import Frame
from n4flow.io.omezarr.checksums import Checksums
from n4flow.io.omezarr.layout import StoreLayout
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.omezarr.slab_writer import SlabWriter
from n4flow.io.omezarr.store import Shown, create_store, kept_metadata, named, validate_store, write_omero
from n4flow.io.publishing import published
from n4flow.io.volume import Volume
from n4flow.masks.packed_mask import PackedMask
from n4flow.masks.tissue_source import TissueSource, check_mask, open_mask
from n4flow.pipeline.blocks import in_parts, parts, prepared
from n4flow.pipeline.plan import output_dtype
from n4flow.pipeline.samples import check_store
from n4flow.statistics.accumulate import MOST_TILES, PLANE_COUNTS, Tile, TileShrinker
from n4flow.statistics.measure import choose_shrink
from n4flow.statistics.shrunken import Shrunken, ShrunkenVolume, runs

RUN_VOXELS = 1 << 18  # Voxels corrected at a time: a megabyte of float32 stays in a core's cache.
REPORTED_BITS = 12  # Of a mean of the shrunken result, which the report alone reads: 0.012 % off at most.
N_NONFINITE = PLANE_COUNTS.index("n_nonfinite")
WINDOW_PIXELS = 1 << 22  # Voxels of the shrunken result that the display window is taken from, at most.


@dataclass(frozen=True)
class RenderedSlab:
    """What the render saw of the planes it wrote."""

    after: ShrunkenVolume  # the written intensities, shrunken in plane
    saturated: int  # voxels that did not fit into the data type
    minimum: float
    maximum: float
    checksums: dict[str, Checksums]  # of the chunks that were written, by the name of the store

    def save_after(self, path: Path) -> None:
        """Write the shrunken result, whose means are rounded, for FINISH."""
        self.after.save(path, REPORTED_BITS)

    def numbers(self) -> dict[str, Any]:
        """Return the slab's numbers as JSON types."""
        return {"saturated_voxels": self.saturated, "minimum": self.minimum, "maximum": self.maximum}


def output_scale(recipe: Recipe, dtype: str) -> float:
    """Return the factor that brings a rendered block to the units of an integer store.

    A normalised volume lies in [0, 1]; an integer result undoes the division by the largest range, so that it is
    in the input's units above the agarose.
    """
    if np.dtype(dtype).kind == "f":
        return 1.0
    return math.prod((correction.divisor for correction in recipe), start=1.0)


def render_slab(
    volume: Volume,
    recipe: Recipe,
    z_start: int,
    z_stop: int,
    *,
    stores: Sequence[tuple[Path, StoreLayout]],
    shrink: int,
    tissue: TissueSource | None = None,
    threads: int | None = None,
) -> RenderedSlab:
    """Render planes `z_start` to `z_stop` into every pyramid level of a store, and the tissue mask beside it.

    Parameters
    ----------
    volume : Volume
    recipe : Recipe
    z_start, z_stop : int
        A slab of the layouts, so that this call is the only writer of its shards.
    stores : sequence of (path, StoreLayout)
        What `create_store` made: the store of the result and, optionally, that of the mask.
    shrink : int
        In-plane block size of the returned copy.
    tissue : TissueSource, optional
        Needed where the recipe acts on tissue alone, or a mask is written. What lies around its frame is written as it
        is.
    """
    recipe.check(volume.shape)
    around, pointwise = recipe.margin_first()
    frame = (tissue.frame if tissue is not None else None) or Frame.whole(volume.shape)
    shrinker = TileShrinker((z_stop - z_start, *frame.shape), shrink)
    scale = np.float32(output_scale(recipe, stores[0][1].dtype))
    tiles = _Tiles(frame, volume.shape, pointwise, z_start, shrinker, scale, tissue)
    chunks = [layout.levels[0].chunks for _path, layout in stores]
    with ExitStack() as stack:
        pool = stack.enter_context(thread_pool(threads or available_threads()))
        writers = [
            stack.enter_context(SlabWriter(path, layout, z_start, z_stop, threads=threads, pool=pool))
            for path, layout in stores
        ]
        depth, height = (math.lcm(*(chunk[axis] for chunk in chunks)) for axis in (0, 1))
        by_threads = not around and in_parts(volume, z_start, chunks[0])
        if by_threads:
            blocks: Any = parts(volume, z_start, z_stop, (depth, height, chunks[0][2]))
        else:
            blocks = prepared(volume, z_start, z_stop, around, depth, height)
        for (start, n_planes), run in groupby(blocks, key=lambda found: (found[0], len(found[2]))):
            for z, y, block in run:
                writers[0].write(block, z, y, through=tiles.corrected, wait=not by_threads)
                for mask in writers[1:]:
                    nothing = np.broadcast_to(np.uint8(0), block.shape)
                    mask.write(nothing, z, y, through=tiles.mask, wait=not by_threads)
                if len(tiles.measured) >= MOST_TILES:
                    writers[0].settle()
                    tiles.merge(start, n_planes)
            writers[0].settle()
            tiles.merge(start, n_planes)
    shrinker.finish()
    after = ShrunkenVolume.of(shrinker, frame)
    checksums = {path.name: writer.checksums for (path, _layout), writer in zip(stores, writers, strict=True)}
    ends = extent(after, padded=frame != Frame.whole(volume.shape))
    return RenderedSlab(after, int(writers[0].saturated), *ends, checksums)


@dataclass
class _Tiles:
    """What a thread makes of the part of a block that becomes one chunk, and what is measured on the way.

    A part is worked through in runs of planes that stay in the thread's cache. What lies around the frame is written
    as it is.
    """

    frame: Frame
    shape: tuple[int, int, int]
    recipe: Recipe
    z_start: int
    shrinker: TileShrinker
    scale: np.float32
    tissue: TissueSource | None

    def __post_init__(self) -> None:
        self.needs_tissue = any(correction.needs_tissue for correction in self.recipe)
        self.clears = any(correction.zeroes_outside for correction in self.recipe)
        self.measured: list[Tile] = []

    def corrected(self, part: np.ndarray, at: tuple[int, int, int]) -> Iterator[np.ndarray]:
        """Yield a part of the input with the recipe applied."""
        z, y, x = at
        depth, height, width = part.shape
        found = self.frame.part(y, x, height, width)
        if found is None:
            yield from (self._around(values) for _first, values in self._runs(part))
            return
        inner, (rows, columns) = found
        extent = rows.stop - rows.start, columns.stop - columns.start
        tile = Tile(self.shrinker, (z - self.z_start, rows.start, columns.start), (depth, *extent))
        for first, values in self._runs(part):
            planes = slice(z + first, z + first + len(values))
            inside = self.tissue.block(planes, rows, columns) if self.tissue and self.needs_tissue else None
            box = values if extent == (height, width) else np.ascontiguousarray(values[:, *inner])
            where = Where(planes.start, y + inner[0].start, x + inner[1].start, self.shape, inside)
            box = self.recipe.apply_block(box, where)
            tile.add(first, box)
            if tile.counts[first : first + len(box), N_NONFINITE].any():  # few inputs have such voxels
                _check_finite(part[first : first + len(box), *inner], box, planes.start)
            if self.scale != 1:
                box *= self.scale
            if extent != (height, width):
                self._around(values)[:, *inner] = box
                box = values
            yield box
        self.measured.append(tile)

    def _around(self, values: np.ndarray) -> np.ndarray:
        """Return what lies around the frame as it is written."""
        if self.clears:
            values[...] = 0
        return values

    def merge(self, start: int, n_planes: int) -> None:
        """Add what was measured of some planes; the threads are done with them."""
        first = start - self.z_start
        self.shrinker.merge(slice(first, first + n_planes), self.measured)
        self.measured.clear()

    def mask(self, part: np.ndarray, at: tuple[int, int, int]) -> Iterator[np.ndarray]:
        """Yield the tissue mask where `part` lies."""
        assert self.tissue is not None
        z, y, x = at
        depth, height, width = part.shape
        planes, rows, columns = slice(z, z + depth), slice(y, y + height), slice(x, x + width)
        if self.tissue.given is not None:  # it is published as it was given
            yield (self.tissue.given.read(planes, rows, columns) > 0).view(np.uint8)
            return
        found = self.frame.part(y, x, height, width)
        if found is not None:
            inner, box = found
            inside = self.tissue.block(planes, *box).view(np.uint8)
            if inside.shape == part.shape:
                yield inside
                return
        whole = scratch("framed mask", part.shape, np.uint8)
        whole[...] = 0
        if found is not None:
            whole[:, *inner] = inside
        yield whole

    def _runs(self, part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first plane, float32 copy in a buffer of this thread) of runs of planes."""
        depth, height, width = part.shape
        step = max(1, RUN_VOXELS // (height * width))
        for first in range(0, depth, step):
            planes = part[first : first + step]
            values = scratch("tile", planes.shape, np.float32)
            with within_float32():
                np.copyto(values, planes, casting="unsafe")
            yield first, values


def _check_finite(given: np.ndarray, corrected: np.ndarray, z: int) -> None:
    """Refuse finite voxels that the corrections of planes, the first of which is `z`, made infinite."""
    if over := np.count_nonzero(np.isfinite(given) & ~np.isfinite(corrected)):
        where = f"in planes {z} to {z + len(given) - 1}"
        beyond = f"beyond {LARGEST:.2g}, the largest float32, after the corrections"
        msg = f"{over} voxels {where} are {beyond}; divide the volume by a constant first"
        raise InputError(msg)


def extent(after: Shrunken, *, padded: bool) -> tuple[float, float]:
    """Return the smallest and largest finite intensity; an exact 0 counts, whether agarose or padding.

    `padded` says whether there is padding around what `after` was made of.
    """
    some = after.planes["n_valid"] > 0
    ends = [after.planes["minimum"][some], after.planes["maximum"][some]]
    if padded or after.planes["n_zero"].any() or not some.any():
        ends.append(np.zeros(1))
    values = np.concatenate(ends)
    return float(values.min()), float(values.max())


def display_window(after: Shrunken, tissue: np.ndarray | PackedMask, scale: float = 1.0) -> tuple[float, float]:
    """Return the window that viewers open the result with: from 0 or below to the 99.9th percentile of tissue.

    Large volumes are sampled evenly.
    """
    some, step = tissue.any(), max(1, math.prod(after.shape) // WINDOW_PIXELS)
    found = []
    for start, stop in runs(0, after.shape[0]):
        part = after.part(start, stop)
        inside = part.valid > 0
        chosen = part.mean[inside & tissue[start:stop] if some else inside]
        found.append(chosen[::step].copy())  # a view would keep all of them
    inside = np.concatenate(found)
    if inside.size == 0:
        return 0.0, 1.0
    low, high = min(0.0, float(np.percentile(inside, 0.1))), float(np.percentile(inside, 99.9))
    return low * scale, (high if high > low else low + 1.0) * scale


def tissue_beside(recipe: Recipe, volume: Volume, mask: str | Path | Volume | None = None) -> TissueSource | None:
    """Return the tissue mask with which a stored recipe is applied: the given one, or the one beside the recipe.

    Raises
    ------
    InputError
        The recipe acts on tissue, and there is no mask of the volume's shape.
    """
    given = mask if mask is not None else recipe.mask
    if given is None:
        if any(correction.needs_tissue for correction in recipe):
            acting = ", ".join(correction.title for correction in recipe if correction.needs_tissue)
            msg = (
                f"the recipe acts on tissue ({acting}), and no mask.ome.zarr lies beside it; "
                "give the mask it was made with"
            )
            raise InputError(msg)
        return None
    empty = np.zeros((0, 0, 0), bool)
    inside = check_mask(given, volume) if isinstance(given, Volume) else open_mask(given, volume)
    return TissueSource(empty, empty[0:0], 1, inside)


def render(
    volume: Volume,
    recipe: Recipe,
    out: str | Path,
    *,
    ome_zarr_version: str = "0.5",
    chunks: tuple[int, int, int] | None = None,
    shards: tuple[int, int, int] | None = None,
    dtype: str = "float32",
    threads: int | None = None,
    mask: str | Path | Volume | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Apply a recipe to a volume, block by block, and write an OME-Zarr with its pyramid.

    Parameters
    ----------
    volume : Volume
        As `open_volume` returns it.
    recipe : Recipe
    out : path
        The store; it appears complete or not at all.
    ome_zarr_version : {'0.5', '0.4'}
    chunks, shards : tuple of int, optional
        Shapes (Z, Y, X) at full resolution.
    dtype : {'float32', 'input', 'uint16', 'uint8'}
        An integer result is in the input's units, rounded and saturated.
    threads : int, optional
    mask : path or Volume, optional
        Tissue mask; the one published beside the recipe without it.
    overwrite : bool
        Replace a store that exists.

    Returns
    -------
    dict
        Saturated voxels, minimum and maximum of the result.

    Raises
    ------
    InputError
        The recipe is of another volume, the volume has no voxel size, or `out` may not be written: it is no OME-Zarr by
        its name, exists, or lies in the input.
    """
    check_store(Path(out), volume.source, overwrite=overwrite)
    voxel_um = volume.voxel_um
    if voxel_um is None:
        msg = f"{volume.source.name} has no voxel size; open it with voxel_um (z y x, micrometres)"
        raise InputError(msg)
    if recipe.shape is not None and recipe.shape != volume.shape:
        shapes = f"the recipe was made for a volume of {recipe.shape}, this one has {volume.shape} (Z, Y, X)"
        msg = f"{shapes}; give the volume it was made for"
        raise InputError(msg)
    layout = plan_layout(
        volume.shape,
        output_dtype(dtype, volume.dtype),
        voxel_um,
        volume.origin_um,
        version=ome_zarr_version,
        chunks=chunks,
        shards=shards,
    )
    tissue, shrink = tissue_beside(recipe, volume, mask), choose_shrink(volume.shape)
    slabs = []
    with published(Path(out), replace=True) as partial:
        check_space(partial.parent, *store_needs([layout], 0, volume.shape[0]))
        create_store(partial, layout, kept_metadata(volume))
        for slab in runs(0, volume.shape[0], layout.slab_planes):
            stores = [(partial, layout)]
            slabs.append(
                render_slab(volume, recipe, *slab, stores=stores, shrink=shrink, tissue=tissue, threads=threads)
            )
        low, high = min(slab.minimum for slab in slabs), max(slab.maximum for slab in slabs)
        scale = output_scale(recipe, layout.dtype)
        window = min(0.0, low * scale), high * scale
        label, colour = named(volume, 0, None, Path(out).name)
        write_omero(partial, Path(out).name, [Shown(label, window, (low * scale, high * scale), colour)])
        validate_store(partial)
    return {"saturated_voxels": sum(slab.saturated for slab in slabs), "minimum": low, "maximum": high}
