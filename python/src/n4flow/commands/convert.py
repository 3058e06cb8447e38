"""`n4flow convert`: any volume as an OME-Zarr with its pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import Image, as_step
from n4flow.commands.terminal import reading
from n4flow.pipeline.parameters import OPENING, opening


def _convert(
    image: Image,
    output: Annotated[Path, typer.Argument(help="The OME-Zarr: a name that ends in .ome.zarr or .zarr.")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that exists.")] = False,
    threads: int | None = None,
) -> str:
    """Write any volume as an OME-Zarr with its pyramid, block by block, its voxels and voxel size as they are."""
    from n4flow.io.open import open_channels, open_volume
    from n4flow.pipeline.channels import ALL
    from n4flow.pipeline.convert import convert as convert_volume
    from n4flow.pipeline.samples import check_store

    check_store(output, image, overwrite=overwrite)
    options = opening(settings)
    channels = (
        [open_volume(image, **options)]
        if settings["channel"] != ALL
        else open_channels(image, **{name: value for name, value in options.items() if name != "channel"})
    )
    volume = channels[0]
    with reading("CONVERT", channels):
        found = convert_volume(channels, output, ome_zarr_version=settings["ome_zarr_version"], threads=threads)
    numbers.update(found)
    size = " x ".join(f"{numbers['voxel_um'][axis]:g}" for axis in "zyx")
    shape = " x ".join(map(str, numbers["shape"]))
    lost = len(volume.metadata.get("missing_planes", ()))
    said = f"; {lost} runs of planes that are missing are invalid voxels" if lost else ""
    return f"{output}: {shape} voxels of {size} micrometres (z y x), {numbers['dtype']}{said}"


convert = as_step("CONVERT", _convert, ("ome_zarr_version", *OPENING))
