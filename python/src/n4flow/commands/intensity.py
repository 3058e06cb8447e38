"""`n4flow normalize`: range of each plane, from histograms."""

from __future__ import annotations

from typing import Annotated

import typer

from n4flow.commands.step import (
    HISTOGRAMS,
    Histograms,
    JsonFile,
    Out,
    RecipeDir,
    Sections,
    Threads,
    parts,
    section_argument,
    step,
)


def normalize(
    histograms: Histograms,
    sections: Sections,
    percentile_max: Annotated[float, typer.Option("--percentile-max", help="Percentile of a plane that is clipped.")],
    out: Out,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Put agarose at 0 in every plane and divide the volume by its largest range."""
    from n4flow.corrections.plane_range import estimate_plane_range
    from n4flow.corrections.recipe import save_correction
    from n4flow.sections import SectionTable
    from n4flow.statistics.histograms import HistogramFiles

    with step("NORMALIZE", threads, json_file) as numbers:
        counted = HistogramFiles(parts(histograms, HISTOGRAMS))
        table = SectionTable.coerce(section_argument(sections), counted.n_planes)
        correction = estimate_plane_range(counted, table, percentile_max)
        save_correction(correction, out)
        numbers.update(correction.summary())


def match_histograms(
    histograms: Histograms,
    sections: Sections,
    match: Annotated[str, typer.Option("--match", help="section or plane.")],
    n_bins: Annotated[int, typer.Option("--n-bins", min=2, help="Bins of the matched histograms.")],
    out: Out,
    recipe: RecipeDir = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Match the tissue of each section, or plane, to the pooled distribution."""
    from n4flow.corrections.recipe import Recipe, save_correction
    from n4flow.pipeline.estimate import lookup
    from n4flow.sections import SectionTable
    from n4flow.statistics.histograms import HistogramFiles

    with step("MATCH_HISTOGRAMS", threads, json_file) as numbers:
        counted = HistogramFiles(parts(histograms, HISTOGRAMS))
        table = SectionTable.coerce(section_argument(sections), counted.n_planes)
        previous = Recipe.load(recipe) if recipe else Recipe()
        correction = lookup(counted, previous, table, match, n_bins)
        save_correction(correction, out)
        numbers.update(correction.summary())


def smooth_z(
    histograms: Histograms,
    sections: Sections,
    sigma: Annotated[float, typer.Option("--sigma", min=0, help="Sigma of the Gaussian, in planes.")],
    out: Out,
    recipe: RecipeDir = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Smooth the tissue profile along Z."""
    from n4flow.corrections.recipe import Recipe, save_correction
    from n4flow.pipeline.estimate import plane_gain
    from n4flow.sections import SectionTable
    from n4flow.statistics.histograms import HistogramFiles

    with step("SMOOTH_Z", threads, json_file) as numbers:
        counted = HistogramFiles(parts(histograms, HISTOGRAMS))
        table = SectionTable.coerce(section_argument(sections), counted.n_planes)
        previous = Recipe.load(recipe) if recipe else Recipe()
        correction = plane_gain(counted, previous, table, sigma)
        save_correction(correction, out)
        numbers.update(correction.summary())
