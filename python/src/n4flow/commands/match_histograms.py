"""`n4flow match-histograms`: look-up table of each section, from histograms."""

from __future__ import annotations

from typing import Annotated

import typer

from n4flow.commands.normalize import HISTOGRAMS, Histograms, Out
from n4flow.commands.step import JsonFile, RecipeDir, Sections, Threads, parts, section_argument, step


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
    from n4flow.chain import lookup
    from n4flow.distributions import HistogramFiles
    from n4flow.recipe import Recipe, save_correction
    from n4flow.sections import SectionTable

    with step("MATCH_HISTOGRAMS", threads, json_file) as numbers:
        counted = HistogramFiles(parts(histograms, HISTOGRAMS))
        table = SectionTable.coerce(section_argument(sections), counted.n_planes)
        previous = Recipe.load(recipe) if recipe else Recipe()
        correction = lookup(counted, previous, table, match, n_bins)
        save_correction(correction, out)
        numbers.update(correction.summary())
