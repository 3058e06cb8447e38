"""`n4flow finish`: put the store together, check it, write recipe and report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from n4flow.commands.options import Evidence, Image, Masks, RecipeDir, as_step
from n4flow.commands.step import parts
from n4flow.errors import InputError
from n4flow.pipeline.stages import STAGES, settings_of

if TYPE_CHECKING:
    from n4flow.statistics.shrunken import ShrunkenFiles


def _finish(
    image: Image,
    sample: Annotated[str, typer.Option("--sample", help="Name of the sample.")],
    masks: Masks,
    before: Annotated[Path, typer.Option("--before", help="Folder with the shrunken slabs of the input.")],
    slabs: Annotated[Path, typer.Option("--slabs", help="Folder with the rendered slabs.")],
    parameters: Annotated[Path, typer.Option("--parameters", help="JSON file with the parameters.")],
    out: Annotated[Path, typer.Option("--out", help="The sample's results.")],
    settings: Mapping[str, Any],
    folders: Annotated[
        list[Path] | None, typer.Option("--numbers", help="Folder with numbers of steps; repeatable.")
    ] = None,
    recipe: RecipeDir = None,
    evidence: Evidence = None,
    state: Annotated[str | None, typer.Option("--state", help="What remote-state said before the run.")] = None,
) -> None:
    from n4flow.corrections import proof
    from n4flow.corrections.recipe import Recipe
    from n4flow.io.publishing import CHECKSUMS_NAME
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.finish import create_stores, link_files
    from n4flow.pipeline.finish import finish as finish_sample
    from n4flow.pipeline.parameters import command_line, resolve
    from n4flow.pipeline.plan import check_state, completed, make_plan

    resolved = resolve(json.loads(parameters.read_text(encoding="utf-8")))
    command = command_line(resolved)
    if resolved["input"] == "phantom":  # which the workflow makes
        made = {"input": "phantom.ome.zarr", "sections": "phantom.sections.tsv"}
        command = f"n4flow phantom {made['input']} && {command_line(resolved | made)}"
    own = {name: settings[name] for name in (*settings_of("FINISH"), "fit_channel")}
    resolved |= {name: own[name] for name in ("voxel_um", "channel", "fit_channel")}  # of the sheet's row or channel
    tissue = TissueSource.load(masks)
    plan = make_plan(image, resolved | own, sample, tissue.frame)
    if state is not None:
        check_state(plan, state if plan.channel is None else state.split(",")[int(plan.channel)])
    pieces = parts(slabs, "rendered")
    stores = create_stores(out, plan)
    for piece in pieces:
        for store, _layout in stores:
            link_files(piece / store.name, store)
    finish_sample(
        out,
        plan,
        before=whole(parts(before, "shrunken"), plan.volume.shape, before),
        after=whole([piece / "after.npz" for piece in pieces], plan.volume.shape, slabs),
        tissue=replace(tissue, given=plan.mask),
        recipe=completed(Recipe.load(recipe) if recipe else Recipe(), resolved),
        evidence=proof.Evidence.load(evidence) if evidence else None,
        checksums=[json.loads((piece / CHECKSUMS_NAME).read_text(encoding="utf-8")) for piece in pieces],
        stages=read_numbers([before, masks.parent, slabs, *([recipe] if recipe else []), *(folders or [])]),
        parameters=resolved,
        command=command,
    )


def whole(files: Sequence[Path], shape: Sequence[int], folder: Path) -> ShrunkenFiles:
    """Return the slabs of a folder as one shrunken volume.

    Raises
    ------
    InputError
        Together they are not the volume of that full-size shape (Z, Y, X).
    """
    from n4flow.statistics.shrunken import ShrunkenFiles

    found = ShrunkenFiles(files)
    planes = found.shape[0]
    if planes != shape[0]:
        msg = (
            f"{folder} holds slabs of {planes} planes, and the volume has {shape[0]}; "
            "give the folder with every slab once, or run again with -resume"
        )
        raise InputError(msg)
    return found


def read_numbers(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the numbers that steps left in folders, in the order of the workflow and of their planes or sections."""
    found, names = [], [stage.name for stage in STAGES]
    for folder in folders:
        for file in [*folder.glob("*.json"), *folder.glob("slab_*/render.json")]:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.get("stage") in names:
                found.append(content)
    return sorted(found, key=lambda n: (names.index(n["stage"]), n.get("planes", n.get("sections", [0]))))


finish = as_step("FINISH", _finish, (*settings_of("FINISH"), "fit_channel"), required=("sections",))
