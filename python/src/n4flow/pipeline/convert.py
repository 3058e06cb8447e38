"""Any volume as an OME-Zarr with its pyramid, block by block and without a change to its voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.disk_space import check_space, store_needs
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.omezarr.slab_writer import SlabWriter
from n4flow.io.omezarr.store import Shown, create_store, kept_metadata, validate_store, write_omero
from n4flow.io.publishing import published
from n4flow.io.volume import Volume
from n4flow.pipeline.blocks import Blocks, stream
from n4flow.statistics.shrunken import runs


def convert(
    volume: Volume, out: str | Path, *, ome_zarr_version: str = "0.5", threads: int | None = None
) -> dict[str, Any]:
    """Write a volume as an OME-Zarr, voxel by voxel what it is, in its own type.

    Parameters
    ----------
    volume : Volume
        As `open_volume` returns it.
    out : path
        The store; it appears complete or not at all, and takes the place of what is there.
    ome_zarr_version : {'0.5', '0.4'}
    threads : int, optional

    Returns
    -------
    dict
        Shape, type, voxel size, smallest and largest value.

    Raises
    ------
    InputError
        The volume has no voxel size, or a type that OME-Zarr is not written in.
    DiskFullError
        There is no room for it.
    """
    out = Path(out)
    if volume.voxel_um is None:
        msg = f"{volume.source.name} has no voxel size; open it with voxel_um (z y x, micrometres)"
        raise InputError(msg)
    layout = plan_layout(volume.shape, volume.dtype, volume.voxel_um, volume.origin_um, version=ome_zarr_version)
    blocks, planes = Blocks.of(volume, *layout.levels[0].chunks[:2]), volume.shape[0]
    extremes: list[float] = []
    with published(out, replace=True) as partial:
        check_space(partial.parent, *store_needs([layout], 0, planes))
        create_store(partial, layout, kept_metadata(volume))
        for start, stop in runs(0, planes, layout.slab_planes):
            with SlabWriter(partial, layout, start, stop, threads=threads) as writer:
                for z, y, block in stream(volume, start, stop, blocks):
                    writer.write(block.view(np.uint8) if block.dtype == np.bool_ else block, z, y)
                    extremes += _extremes(block)
        low, high = min(extremes, default=0.0), max(extremes, default=1.0)
        name = out.name.split(".")[0]
        write_omero(partial, name, [Shown(name, (low, high if high > low else low + 1), (low, high))])
        validate_store(partial)
    return {
        "shape": list(volume.shape),
        "dtype": layout.dtype,
        "voxel_um": volume.voxel_um,
        "minimum": low,
        "maximum": high,
    }


def _extremes(block: np.ndarray) -> list[float]:
    """Return the smallest and the largest finite value of a block; nothing where there is none."""
    finite = block[np.isfinite(block)] if block.dtype.kind == "f" else block
    return [float(finite.min()), float(finite.max())] if finite.size else []
