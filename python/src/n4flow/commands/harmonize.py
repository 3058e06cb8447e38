"""`n4flow harmonize`: all sections made even together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.n4_sections import Masks
from n4flow.commands.normalize import Out
from n4flow.commands.step import JsonFile, RecipeDir, Sections, Threads, parts, section_argument, step
from n4flow.commands.tissue_mask import SHRUNKEN, Slabs


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
    from n4flow.chain import harmonization
    from n4flow.harmonization import read_flat
    from n4flow.passes import TissueSource
    from n4flow.recipe import Recipe, save_correction
    from n4flow.sections import SectionTable
    from n4flow.shrunken import ShrunkenFiles

    with step("HARMONIZE", threads, json_file) as numbers:
        shrunken = ShrunkenFiles(parts(slabs, SHRUNKEN))
        table = SectionTable.coerce(section_argument(sections), shrunken.shape[0])
        previous = Recipe.load(recipe) if recipe else Recipe()
        tissue = TissueSource.load(masks)
        flat = read_flat(flat_field, tissue.frame) if flat_field else None
        correction = harmonization(shrunken, tissue, table, mode, previous, flat)
        save_correction(correction, out)
        numbers.update(correction.summary())
