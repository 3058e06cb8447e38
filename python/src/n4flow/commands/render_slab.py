"""`n4flow render-slab`: render a slab of planes into every pyramid level."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

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
from n4flow.timing import dumps


def render_slab(
    image: Image,
    planes: Planes,
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="Folder for the slab's shards, of the image and of the mask.")],
    sample: Annotated[str, typer.Option("--sample", help="Name of the sample.")],
    slab_planes: Annotated[int, typer.Option("--slab-planes", min=1, help="Planes of every slab.")],
    shrink: Annotated[int, typer.Option("--shrink", min=1, help="In-plane block size of the copy for the report.")],
    ome_zarr_version: Annotated[str, typer.Option("--ome-zarr-version", help="0.5 or 0.4.")] = "0.5",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, input, uint16 or uint8.")] = "float32",
    mask: Annotated[Path | None, typer.Option("--mask", help="The user's tissue mask.")] = None,
    recipe: RecipeDir = None,
    voxel_um: VoxelUm = None,
    channel: Channel = None,
    allow_missing_chunks: AllowMissing = False,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Render a slab of planes: its shards of every level, its mask, and a shrunken copy for the report."""
    from n4flow.chain import CHECKSUMS_NAME, create_stores
    from n4flow.formats.space import check_space, store_needs
    from n4flow.parameters import resolve
    from n4flow.passes import TissueSource
    from n4flow.plan import make_plan
    from n4flow.recipe import Recipe
    from n4flow.rendering import render_slab as render

    given = {"voxel_um": voxel_um, "channel": channel, "mask": str(mask) if mask else None, "dtype": dtype}
    given |= {"allow_missing_chunks": allow_missing_chunks}
    given |= {"ome_zarr_version": ome_zarr_version, "slab_planes": slab_planes, "shrink": shrink}
    with step("RENDER", threads, json_file) as numbers:
        tissue = TissueSource.load(masks)
        start, stop = plane_range(planes)
        plan = make_plan(image, resolve(given), sample, tissue.frame, (start, stop))
        plane_range(planes, plan.volume.shape[0])  # it has them
        out.mkdir(parents=True, exist_ok=True)
        check_space(out, *store_needs((plan.layout, plan.mask_layout), start, stop))
        image_out, mask_out = create_stores(out, plan)
        slab = render(
            plan.volume,
            Recipe.load(recipe) if recipe else Recipe(),
            start,
            stop,
            image_out=image_out,
            layout=plan.layout,
            shrink=shrink,
            tissue=replace(tissue.part(start, stop), given=plan.mask).unpacked(),
            mask_out=mask_out,
            mask_layout=plan.mask_layout,
            threads=threads,
        )
        slab.after.save(out / "after.npz")
        (out / CHECKSUMS_NAME).write_text(dumps(slab.checksums) + "\n", encoding="utf-8")
        numbers.update(planes=[start, stop], **slab.numbers())
