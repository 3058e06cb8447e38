"""`n4flow render`: apply a stored recipe to a volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import as_step
from n4flow.commands.terminal import reading
from n4flow.pipeline.parameters import OPENING, opening


def _render(
    recipe: Annotated[Path, typer.Argument(help="The recipe.json of a run, or a folder of corrections.")],
    image: Annotated[Path, typer.Argument(metavar="INPUT", help="The volume.")],
    output: Annotated[Path, typer.Argument(help="The OME-Zarr that is written.")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Tissue mask; the one beside the recipe without it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that exists.")] = False,
    threads: int | None = None,
) -> str:
    """Apply a stored recipe to a volume, block by block."""
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.open import open_volume
    from n4flow.masks.tissue_source import open_mask
    from n4flow.pipeline.render import render as render_volume

    corrections = Recipe.load(recipe)
    allow = {"allow_missing_chunks": settings["allow_missing_chunks"]}
    volume = open_volume(image, **opening(settings))
    inside = mask or corrections.mask
    with reading("RENDER", [volume]):
        written = render_volume(
            volume,
            corrections,
            output,
            ome_zarr_version=settings["ome_zarr_version"],
            dtype=settings["dtype"],
            threads=threads,
            mask=open_mask(inside, volume, **allow) if inside else None,
            overwrite=overwrite,
        )
    numbers.update(corrections=[correction.kind for correction in corrections], **written)
    return f"{output}: {', '.join(numbers['corrections']) or 'no correction'}"


render = as_step("RENDER", _render, ("ome_zarr_version", "dtype", *OPENING))
