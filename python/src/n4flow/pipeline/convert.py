"""Any volume as an OME-Zarr with its pyramid, block by block and without a change to its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.disk_space import check_space, store_needs
from n4flow.io.omezarr.layout import StoreLayout
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.omezarr.slab_writer import SlabWriter
from n4flow.io.omezarr.store import Shown, create_store, kept_metadata, named, validate_store, write_omero
from n4flow.io.publishing import published
from n4flow.io.volume import Volume
from n4flow.pipeline.blocks import Blocks, stream
from n4flow.statistics.shrunken import runs


def convert(
    volume: Volume | Sequence[Volume], out: str | Path, *, ome_zarr_version: str = "0.5", threads: int | None = None
) -> dict[str, Any]:
    """Write a volume as an OME-Zarr, voxel by voxel what it is, in its own type.

    Parameters
    ----------
    volume : Volume or sequence of Volume
        As `open_volume` returns it, or channels as `open_channels` does.
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
    out, channels = Path(out), [volume] if isinstance(volume, Volume) else list(volume)
    volume = channels[0]
    if volume.voxel_um is None:
        msg = f"{volume.source.name} has no voxel size; open it with voxel_um (z y x, micrometres)"
        raise InputError(msg)
    layout = plan_layout(volume.shape, volume.dtype, volume.voxel_um, volume.origin_um, version=ome_zarr_version)
    layout = replace(layout, channels=len(channels) if len(channels) > 1 else None)
    layouts = [replace(layout, channel=number) for number in range(len(channels))]
    shown, name = [], out.name.split(".")[0]
    with published(out, replace=True) as partial:
        check_space(partial.parent, *store_needs(layouts, 0, volume.shape[0]))
        create_store(partial, layout, kept_metadata(volume))
        for number, channel in enumerate(channels):
            low, high = _written(channel, partial, layouts[number], threads)
            label, colour = named(volume, number, layout.channels, name)
            shown.append(Shown(label, (low, high if high > low else low + 1), (low, high), colour))
        write_omero(partial, name, shown)
        validate_store(partial)
    return {
        "shape": [*([len(channels)] if len(channels) > 1 else []), *volume.shape],
        "dtype": layout.dtype,
        "voxel_um": volume.voxel_um,
        "minimum": min(channel.range[0] for channel in shown),
        "maximum": max(channel.range[1] for channel in shown),
    }


def _written(volume: Volume, store: Path, layout: StoreLayout, threads: int | None) -> tuple[float, float]:
    """Write a channel into its files of a store; return its smallest and largest value."""
    blocks, extremes = Blocks.of(volume, *layout.levels[0].chunks[:2]), []
    for start, stop in runs(0, volume.shape[0], layout.slab_planes):
        with SlabWriter(store, layout, start, stop, threads=threads) as writer:
            for z, y, block in stream(volume, start, stop, blocks):
                writer.write(block.view(np.uint8) if block.dtype == np.bool_ else block, z, y)
                extremes += _extremes(block)
    volume.reader.release()
    return min(extremes, default=0.0), max(extremes, default=1.0)


def _extremes(block: np.ndarray) -> list[float]:
    """Return the smallest and the largest finite value of a block; nothing where there is none."""
    finite = block[np.isfinite(block)] if block.dtype.kind == "f" else block
    return [float(finite.min()), float(finite.max())] if finite.size else []
