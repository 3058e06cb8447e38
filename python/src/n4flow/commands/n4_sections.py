"""`n4flow n4-sections`: bias fields of a batch of sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import JsonFile, Sections, Threads, parts, section_argument, step
from n4flow.commands.tissue_mask import SHRUNKEN, Slabs

VoxelUm = Annotated[str, typer.Option("--voxel-um", metavar="'Z Y X'", help="Voxel size in micrometres.")]
Masks = Annotated[Path, typer.Option("--masks", help="Tissue and agarose mask (.npz).")]
SplineUm = Annotated[
    float, typer.Option("--spline-um", min=0, help="Distance of the first level's knots; 0: one span.")
]
Iterations = Annotated[str, typer.Option("--iterations", help="Most iterations at each level, with commas.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0, help="Where a level ends.")]
Backend = Annotated[str, typer.Option("--backend", help="auto, cpu, gpu or itk.")]
Out = Annotated[Path, typer.Option("--out", help="The bias fields (.npz).")]


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
    from n4flow.chain import BiasSettings, fit_sections
    from n4flow.commands.step import plane_range
    from n4flow.parameters import iteration_list, voxel_size
    from n4flow.passes import TissueSource
    from n4flow.recipe import save_correction
    from n4flow.sections import SectionTable
    from n4flow.shrunken import ShrunkenFiles

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
