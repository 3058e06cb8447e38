"""`n4flow n4-sections`: bias fields of a batch of sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import (
    SHRUNKEN,
    JsonFile,
    Masks,
    Out,
    RecipeDir,
    Sections,
    Slabs,
    Threads,
    parts,
    section_argument,
    step,
)

VoxelUm = Annotated[str, typer.Option("--voxel-um", metavar="'Z Y X'", help="Voxel size in micrometres.")]
SplineUm = Annotated[
    float, typer.Option("--spline-um", min=0, help="Distance of the first level's knots; 0: one span.")
]
Iterations = Annotated[str, typer.Option("--iterations", help="Most iterations at each level, with commas.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0, help="Where a level ends.")]
Backend = Annotated[str, typer.Option("--backend", help="auto, cpu, gpu or itk.")]


def n4_sections(
    slabs: Slabs,
    masks: Masks,
    sections: Sections,
    batch: Annotated[
        str, typer.Option("--batch", metavar="FIRST:STOP", help="Sections to fit, by their place in the table.")
    ],
    voxel_um: VoxelUm,
    spline_um: SplineUm,
    iterations: Iterations,
    tolerance: Tolerance,
    backend: Backend,
    out: Out,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Fit a bias field to each section of a batch."""
    from n4flow.commands.step import plane_range
    from n4flow.corrections.recipe import save_correction
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.estimate import BiasSettings, fit_sections
    from n4flow.pipeline.parameters import iteration_list, voxel_size
    from n4flow.sections import SectionTable
    from n4flow.statistics.shrunken import ShrunkenFiles

    with step("N4_SECTIONS", threads, json_file) as numbers:
        shrunken = ShrunkenFiles(parts(slabs, SHRUNKEN))
        table = SectionTable.coerce(section_argument(sections), shrunken.shape[0])
        first, stop = plane_range(batch, len(table))
        planes = table[first].z_start, table[stop - 1].z_stop
        settings = BiasSettings(spline_um or None, iteration_list(iterations), tolerance, backend, threads)
        size = voxel_size(voxel_um) or {}
        correction = fit_sections(
            shrunken, TissueSource.load(masks, planes=planes), table, (first, stop), size, settings
        )
        save_correction(correction, out)
        numbers.update(sections=[first, stop], **correction.summary())


def n4_volume(
    slabs: Slabs,
    masks: Masks,
    sections: Sections,
    voxel_um: VoxelUm,
    spline_um: SplineUm,
    iterations: Iterations,
    tolerance: Tolerance,
    backend: Backend,
    out: Out,
    recipe: RecipeDir = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Fit one bias field to the whole volume, after the sections' own where the recipe holds them."""
    from n4flow.corrections.recipe import Recipe, save_correction
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.estimate import BiasSettings, fit_volume
    from n4flow.pipeline.parameters import iteration_list, voxel_size
    from n4flow.sections import SectionTable
    from n4flow.statistics.shrunken import ShrunkenFiles

    with step("N4_VOLUME", threads, json_file) as numbers:
        shrunken = ShrunkenFiles(parts(slabs, SHRUNKEN))
        table = SectionTable.coerce(section_argument(sections), shrunken.shape[0])
        previous = Recipe.load(recipe) if recipe else Recipe()
        settings = BiasSettings(spline_um or None, iteration_list(iterations), tolerance, backend, threads)
        size = voxel_size(voxel_um) or {}
        correction = fit_volume(shrunken, TissueSource.load(masks), table, size, settings, previous)
        save_correction(correction, out)
        numbers.update(correction.summary())


def harmonize(
    slabs: Slabs,
    masks: Masks,
    sections: Sections,
    mode: Annotated[
        str, typer.Option("--mode", help="Shading that all planes share is left (safe), judged (auto), removed (full).")
    ],
    out: Out,
    recipe: RecipeDir = None,
    flat_field: Annotated[
        Path | None, typer.Option("--flat-field", help="Measured shading that every plane has: a file of one plane.")
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Even out all sections together: what neighbouring planes prove is taken off, anatomy stays."""
    from n4flow.corrections.harmonization import read_flat
    from n4flow.corrections.recipe import Recipe, save_correction
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.estimate import harmonization
    from n4flow.sections import SectionTable
    from n4flow.statistics.shrunken import ShrunkenFiles

    with step("HARMONIZE", threads, json_file) as numbers:
        shrunken = ShrunkenFiles(parts(slabs, SHRUNKEN))
        table = SectionTable.coerce(section_argument(sections), shrunken.shape[0])
        previous = Recipe.load(recipe) if recipe else Recipe()
        tissue = TissueSource.load(masks)
        flat = read_flat(flat_field, tissue.frame) if flat_field else None
        correction = harmonization(shrunken, tissue, table, mode, previous, flat)
        save_correction(correction, out)
        numbers.update(correction.summary())
