"""`n4flow render`: apply a stored recipe to a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import AllowMissing, Channel, JsonFile, Threads, VoxelUm, step


def render(
    recipe: Annotated[Path, typer.Argument(help="The recipe.json of a run, or a folder of corrections.")],
    image: Annotated[Path, typer.Argument(metavar="INPUT", help="The volume.")],
    output: Annotated[Path, typer.Argument(help="The OME-Zarr that is written.")],
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Tissue mask; the one beside the recipe without it.")
    ] = None,
    ome_zarr_version: Annotated[str, typer.Option("--ome-zarr-version", help="0.5 or 0.4.")] = "0.5",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, input, uint16 or uint8.")] = "float32",
    voxel_um: VoxelUm = None,
    channel: Channel = None,
    allow_missing_chunks: AllowMissing = False,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Apply a stored recipe to a volume, block by block."""
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.open import open_volume
    from n4flow.masks.tissue_source import open_mask
    from n4flow.pipeline.parameters import voxel_size
    from n4flow.pipeline.render import render as render_volume

    with step("RENDER", threads, json_file) as numbers:
        corrections = Recipe.load(recipe)
        volume = open_volume(
            image, channel=channel, voxel_um=voxel_size(voxel_um), allow_missing_chunks=allow_missing_chunks
        )
        inside = mask or corrections.mask
        tissue = open_mask(inside, volume, allow_missing_chunks=allow_missing_chunks) if inside else None
        written = render_volume(
            volume, corrections, output, ome_zarr_version=ome_zarr_version, dtype=dtype, threads=threads, mask=tissue
        )
        numbers.update(corrections=[correction.kind for correction in corrections], **written)
    typer.echo(f"{output}: {', '.join(numbers['corrections']) or 'no correction'}")
