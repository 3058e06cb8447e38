"""`n4flow plane-statistics`: histograms of a slab of planes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.n4_sections import Masks
from n4flow.commands.step import (
    AllowMissing,
    Channel,
    Image,
    JsonFile,
    Planes,
    RecipeDir,
    Threads,
    VoxelUm,
    plane_range,
    step,
)


def plane_statistics(
    image: Image,
    planes: Planes,
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="The histograms (.npz).")],
    mask: Annotated[Path | None, typer.Option("--mask", help="The user's tissue mask.")] = None,
    recipe: RecipeDir = None,
    voxel_um: VoxelUm = None,
    channel: Channel = None,
    allow_missing_chunks: AllowMissing = False,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Count the intensities of each plane after the corrections so far."""
    from n4flow.parameters import voxel_size
    from n4flow.passes import TissueSource, statistics_pass
    from n4flow.plan import open_mask
    from n4flow.recipe import Recipe
    from n4flow.volume import open_volume

    with step("PLANE_STATISTICS", threads, json_file) as numbers:
        start, stop = plane_range(planes)
        read: dict[str, Any] = {"allow_missing_chunks": allow_missing_chunks, "planes": (start, stop)}
        volume = open_volume(image, channel=channel, voxel_um=voxel_size(voxel_um), **read)
        plane_range(planes, volume.shape[0])  # it has them
        tissue = TissueSource.load(masks, open_mask(mask, volume, **read) if mask else None, (start, stop))
        before = Recipe.load(recipe) if recipe else Recipe()
        statistics_pass(volume, start, stop, recipe=before, tissue=tissue).save(out)
        numbers.update(planes=[start, stop])
