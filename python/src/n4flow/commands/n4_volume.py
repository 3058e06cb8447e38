"""`n4flow n4-volume`: bias field of the whole volume."""

from __future__ import annotations

from n4flow.commands.n4_sections import Backend, Iterations, Masks, Out, SplineUm, Tolerance, VoxelUm
from n4flow.commands.step import JsonFile, RecipeDir, Sections, Threads, parts, section_argument, step
from n4flow.commands.tissue_mask import SHRUNKEN, Slabs


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
    from n4flow.chain import BiasSettings, fit_volume
    from n4flow.parameters import iteration_list, voxel_size
    from n4flow.passes import TissueSource
    from n4flow.recipe import Recipe, save_correction
    from n4flow.sections import SectionTable
    from n4flow.shrunken import ShrunkenFiles

    with step("N4_VOLUME", threads, json_file) as numbers:
        shrunken = ShrunkenFiles(parts(slabs, SHRUNKEN))
        table = SectionTable.coerce(section_argument(sections), shrunken.shape[0])
        previous = Recipe.load(recipe) if recipe else Recipe()
        settings = BiasSettings(spline_um or None, iteration_list(iterations), tolerance, backend, threads)
        size = voxel_size(voxel_um) or {}
        correction = fit_volume(shrunken, TissueSource.load(masks), table, size, settings, previous)
        save_correction(correction, out)
        numbers.update(correction.summary())
