"""`n4flow smooth-z`: gain of each plane, from histograms."""

from __future__ import annotations

from typing import Annotated

import typer

from n4flow.commands.normalize import HISTOGRAMS, Histograms, Out
from n4flow.commands.step import JsonFile, RecipeDir, Sections, Threads, parts, section_argument, step


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
    from n4flow.chain import plane_gain
    from n4flow.distributions import HistogramFiles
    from n4flow.recipe import Recipe, save_correction
    from n4flow.sections import SectionTable

    with step("SMOOTH_Z", threads, json_file) as numbers:
        counted = HistogramFiles(parts(histograms, HISTOGRAMS))
        table = SectionTable.coerce(section_argument(sections), counted.n_planes)
        previous = Recipe.load(recipe) if recipe else Recipe()
        correction = plane_gain(counted, previous, table, sigma)
        save_correction(correction, out)
        numbers.update(correction.summary())
