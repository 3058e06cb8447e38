"""`n4flow prove`: what neighbouring planes prove, and as much of the bias fields."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.estimate import read_inputs
from n4flow.commands.options import Masks, RecipeDir, Shrunken, as_step
from n4flow.pipeline.stages import STAGES, settings_of


def _prove(
    folder: Shrunken,
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="The evidence (.npz).")],
    settings: dict[str, Any],
    numbers: dict[str, Any],
    recipe: RecipeDir = None,
    recipe_out: Annotated[
        Path | None, typer.Option("--recipe-out", help="Folder for what is proven of the bias fields.")
    ] = None,
) -> None:
    from n4flow.corrections.recipe import Recipe, load_correction, save_correction
    from n4flow.pipeline.estimate import prove

    (stage,) = (each for each in STAGES if each.name == "PROVE")
    files = sorted(recipe.glob("*.npz")) if recipe else []
    inputs = replace(
        read_inputs(stage, settings, folder, masks), recipe=Recipe([load_correction(file) for file in files])
    )
    evidence, kept, found = prove(inputs, settings)
    evidence.save(out)
    for file, before, after in zip(files, inputs.recipe, kept, strict=True):
        if after is not before and recipe_out is not None:
            recipe_out.mkdir(parents=True, exist_ok=True)
            save_correction(after, recipe_out / file.name)
    numbers.update(found)


prove = as_step("PROVE", _prove, settings_of("PROVE"), required=("sections",))
