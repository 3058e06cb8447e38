"""`n4flow shrink`: shrink a slab of planes in plane."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from n4flow.commands.step import (
    AllowMissing,
    Channel,
    Image,
    JsonFile,
    Masks,
    Planes,
    RecipeDir,
    Threads,
    VoxelUm,
    plane_range,
    step,
)
from n4flow.pipeline.timing import dumps


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
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.frame import Frame
    from n4flow.io.open import open_volume
    from n4flow.masks.tissue_source import open_mask
    from n4flow.pipeline.parameters import voxel_size
    from n4flow.pipeline.passes import shrink_pass

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
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.disk_space import check_space, store_needs
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.finish import CHECKSUMS_NAME, create_stores
    from n4flow.pipeline.parameters import resolve
    from n4flow.pipeline.plan import make_plan
    from n4flow.pipeline.render import render_slab as render

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
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.open import open_volume
    from n4flow.masks.tissue_source import TissueSource, open_mask
    from n4flow.pipeline.parameters import voxel_size
    from n4flow.pipeline.passes import statistics_pass

    with step("PLANE_STATISTICS", threads, json_file) as numbers:
        start, stop = plane_range(planes)
        read: dict[str, Any] = {"allow_missing_chunks": allow_missing_chunks, "planes": (start, stop)}
        volume = open_volume(image, channel=channel, voxel_um=voxel_size(voxel_um), **read)
        plane_range(planes, volume.shape[0])  # it has them
        tissue = TissueSource.load(masks, open_mask(mask, volume, **read) if mask else None, (start, stop))
        before = Recipe.load(recipe) if recipe else Recipe()
        statistics_pass(volume, start, stop, recipe=before, tissue=tissue).save(out)
        numbers.update(planes=[start, stop])
