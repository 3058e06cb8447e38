"""The commands of the stages that pass over full resolution, a slab of planes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from n4flow.commands.options import Image, Masks, Planes, RecipeDir, as_step
from n4flow.commands.step import plane_range
from n4flow.pipeline.stages import settings_of
from n4flow.pipeline.timing import dumps

if TYPE_CHECKING:
    from n4flow.io.volume import Volume


def _shrink(
    image: Image,
    planes: Planes,
    out: Annotated[Path, typer.Option("--out", help="The shrunken slab (.npz).")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    mask_out: Annotated[Path | None, typer.Option("--mask-out", help="The user's mask, shrunken (.npy).")] = None,
    frame: Annotated[
        str | None, typer.Option("--frame", help="Rows and columns with valid voxels, as Y:Y,X:X; all without it.")
    ] = None,
    recipe: RecipeDir = None,
) -> None:
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.frame import Frame
    from n4flow.io.npy import write_npy
    from n4flow.pipeline.estimate import voxel_counts
    from n4flow.pipeline.passes import shrink_pass

    volume, given, (start, stop) = _opened(image, planes, settings)
    before = Recipe.load(recipe) if recipe else Recipe()
    place = Frame.read(frame, volume.shape) if frame else None
    factor = settings["shrink"]
    shrunken, tissue = shrink_pass(volume, start, stop, factor, recipe=before, mask=given, frame=place)
    shrunken.save(out)
    if mask_out is not None and tissue is not None:
        write_npy(mask_out, tissue)
    numbers.update(planes=[start, stop], shrink=factor, **voxel_counts(shrunken.planes))


def _plane_statistics(
    image: Image,
    planes: Planes,
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="The histograms (.npz).")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    recipe: RecipeDir = None,
) -> None:
    from n4flow.corrections.recipe import Recipe
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.passes import statistics_pass

    volume, given, (start, stop) = _opened(image, planes, settings)
    tissue = TissueSource.load(masks, given, (start, stop))
    before = Recipe.load(recipe) if recipe else Recipe()
    statistics_pass(volume, start, stop, recipe=before, tissue=tissue).save(out)
    numbers.update(planes=[start, stop])


def _opened(image: Path, planes: str, settings: Mapping[str, Any]) -> tuple[Volume, Volume | None, tuple[int, int]]:
    """Return the volume, the user's mask and the planes of a slab, of which alone the files are looked at."""
    from n4flow.io.open import open_volume
    from n4flow.masks.tissue_source import open_mask
    from n4flow.pipeline.parameters import opening

    asked = plane_range(planes)
    read: dict[str, Any] = {"allow_missing_chunks": settings["allow_missing_chunks"], "planes": asked}
    volume = open_volume(image, **opening(settings), planes=asked)
    plane_range(planes, volume.shape[0])  # it has them
    given, label = settings["mask"], settings["mask_label"]
    return volume, open_mask(given, volume, label=label, **read) if given else None, asked


def _render_slab(
    image: Image,
    planes: Planes,
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="Folder for the slab's shards, of the image and of the mask.")],
    sample: Annotated[str, typer.Option("--sample", help="Name of the sample.")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    recipe: RecipeDir = None,
    threads: int | None = None,
) -> None:
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.disk_space import check_space, store_needs
    from n4flow.io.publishing import CHECKSUMS_NAME
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.finish import create_stores
    from n4flow.pipeline.plan import completed, make_plan
    from n4flow.pipeline.render import render_slab

    tissue = TissueSource.load(masks)
    start, stop = plane_range(planes)
    plan = make_plan(image, settings, sample, tissue.frame, (start, stop))
    plane_range(planes, plan.volume.shape[0])  # it has them
    out.mkdir(parents=True, exist_ok=True)
    check_space(out, *store_needs(plan.stores, start, stop))
    slab = render_slab(
        plan.volume,
        completed(Recipe.load(recipe) if recipe else Recipe(), settings),
        start,
        stop,
        stores=create_stores(out, plan),
        shrink=plan.shrink,
        tissue=replace(tissue.part(start, stop), given=plan.mask).unpacked(),
        threads=threads,
    )
    slab.save_after(out / "after.npz")
    (out / CHECKSUMS_NAME).write_text(dumps(slab.checksums) + "\n", encoding="utf-8")
    numbers.update(planes=[start, stop], **slab.numbers())


# What the plan decided is handed on as the parameters are that would decide it.
shrink = as_step("SHRINK", _shrink, (*settings_of("SHRINK"), "shrink"), required=("shrink",))
plane_statistics = as_step("PLANE_STATISTICS", _plane_statistics, settings_of("PLANE_STATISTICS"))
PLANNED = ("slab_planes", "shrink")
render_slab = as_step("RENDER", _render_slab, (*settings_of("RENDER"), "fit_channel", *PLANNED), required=PLANNED)
