"""`n4flow shrink`: shrink a slab of planes in plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

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


def shrink(
    image: Image,
    planes: Planes,
    factor: Annotated[int, typer.Option("--shrink", min=1, help="In-plane block size.")],
    out: Annotated[Path, typer.Option("--out", help="The shrunken slab (.npz).")],
    mask: Annotated[Path | None, typer.Option("--mask", help="The user's tissue mask.")] = None,
    mask_out: Annotated[Path | None, typer.Option("--mask-out", help="The user's mask, shrunken (.npy).")] = None,
    frame: Annotated[
        str | None, typer.Option("--frame", help="Rows and columns with valid voxels, as Y:Y,X:X; all without it.")
    ] = None,
    recipe: RecipeDir = None,
    voxel_um: VoxelUm = None,
    channel: Channel = None,
    allow_missing_chunks: AllowMissing = False,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Shrink a slab of planes in plane: masked block means and counts."""
    from n4flow.frame import Frame
    from n4flow.parameters import voxel_size
    from n4flow.passes import shrink_pass
    from n4flow.plan import open_mask
    from n4flow.recipe import Recipe
    from n4flow.volume import open_volume

    with step("SHRINK", threads, json_file) as numbers:
        start, stop = plane_range(planes)
        read: dict[str, Any] = {"allow_missing_chunks": allow_missing_chunks, "planes": (start, stop)}
        volume = open_volume(image, channel=channel, voxel_um=voxel_size(voxel_um), **read)
        plane_range(planes, volume.shape[0])  # it has them
        before = Recipe.load(recipe) if recipe else Recipe()
        given = open_mask(mask, volume, **read) if mask else None
        place = Frame.read(frame, volume.shape) if frame else None
        shrunken, tissue = shrink_pass(volume, start, stop, factor, recipe=before, mask=given, frame=place)
        shrunken.save(out)
        if mask_out is not None and tissue is not None:
            np.save(mask_out, tissue)
        numbers.update(
            planes=[start, stop],
            shrink=factor,
            **{
                name: int(shrunken.planes[name].sum())
                for name in ("n_zero", "n_nonfinite", "n_negative", "n_saturated")
            },
        )
