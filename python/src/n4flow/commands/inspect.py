"""`n4flow inspect`: check input and parameters, and say what a run would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.step import AllowMissing, Channel, Image, JsonFile, Threads, VoxelUm, step
from n4flow.errors import InputError
from n4flow.pipeline.timing import dumps

OutDir = Annotated[Path | None, typer.Option("--out", help="Folder for the background correction.")]
Answer = Annotated[
    Path | None,
    typer.Option("--answer", help="Write the plan, or the fault in one sentence, to a JSON file and end with 0."),
]


def inspect(
    image: Image,
    sample: Annotated[str | None, typer.Option("--sample", help="Name of the sample.")] = None,
    sections: Annotated[str, typer.Option("--sections", help="Section table, or the number of equal sections.")] = "1",
    mask: Annotated[Path | None, typer.Option("--mask", help="Tissue mask of the volume's shape.")] = None,
    flat_field: Annotated[Path | None, typer.Option("--flat-field", help="Shading of every plane: one plane.")] = None,
    voxel_um: VoxelUm = None,
    channel: Channel = None,
    allow_missing_chunks: AllowMissing = False,
    bias: Annotated[str, typer.Option("--bias", help="sections, volume, two_pass or off.")] = "sections",
    harmonize: Annotated[str, typer.Option("--harmonize", help="off, safe, auto or full.")] = "off",
    backend: Annotated[str, typer.Option("--backend", help="auto, cpu, gpu or itk.")] = "auto",
    spline_um: Annotated[float, typer.Option("--spline-um", help="Distance of the knots; 0: one span.")] = 0,
    iterations: Annotated[str, typer.Option("--iterations", help="Most iterations at each level.")] = "50,50,50,50",
    shrink: Annotated[int, typer.Option("--shrink", help="In-plane block size; 0: automatic.")] = 0,
    background_radius_um: Annotated[float, typer.Option("--background-radius-um", help="0 switches it off.")] = 0,
    ome_zarr_version: Annotated[str, typer.Option("--ome-zarr-version", help="0.5 or 0.4.")] = "0.5",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, input, uint16 or uint8.")] = "float32",
    sections_per_task: Annotated[int, typer.Option("--sections-per-task", help="Sections of one task.")] = 8,
    slab_planes: Annotated[int, typer.Option("--slab-planes", help="Planes of one task; 0: automatic.")] = 0,
    out: OutDir = None,
    answer: Answer = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Check input and parameters, and say what a run would do."""
    given = {
        "sections": sections,
        "mask": str(mask) if mask else None,
        "flat_field": str(flat_field) if flat_field else None,
        "voxel_um": voxel_um,
        "channel": channel,
        "allow_missing_chunks": allow_missing_chunks,
        "bias": bias,
        "harmonize": harmonize,
        "backend": backend,
        "spline_um": spline_um or None,
        "iterations": iterations,
        "shrink": shrink or None,
        "background_radius_um": background_radius_um,
        "ome_zarr_version": ome_zarr_version,
        "dtype": dtype,
        "sections_per_task": sections_per_task,
        "slab_planes": slab_planes or None,
    }
    with step("INSPECT", threads, json_file) as numbers:
        try:
            numbers.update(_inspected(image, sample, given, out))
        except InputError as error:
            if answer is None:
                raise
            answer.write_text(dumps({"fault": str(error)}) + "\n", encoding="utf-8")
            return
        if answer is not None:
            answer.write_text(dumps(numbers["plan"]) + "\n", encoding="utf-8")
        else:
            typer.echo(dumps(numbers["plan"]))


def _inspected(image: Path, sample: str | None, given: dict[str, Any], out: Path | None) -> dict[str, Any]:
    from n4flow.corrections.background import SpatialMeanBackground
    from n4flow.corrections.recipe import save_correction
    from n4flow.pipeline.parameters import resolve
    from n4flow.pipeline.plan import background_radius, make_plan

    parameters = resolve(given)
    plan = make_plan(image, parameters, sample)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        radius = parameters["background_radius_um"]
        if radius > 0 and plan.volume.voxel_um is not None:
            background = SpatialMeanBackground(background_radius(radius, plan.volume.voxel_um))
            save_correction(background, out / "10_background.npz")
        if any(file is not None and "missing_planes" in file.metadata for file in (plan.volume, plan.mask)):
            plan.sections.write(out / "sections.tsv")
    return {"plan": plan.summary()}
