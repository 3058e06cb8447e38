"""The commands of the stages that estimate a correction: made from the table of stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from n4flow.commands import options
from n4flow.commands.step import parts, plane_range
from n4flow.pipeline.stages import STAGES, Stage, settings_of
from n4flow.pipeline.timing import dumps, stage

if TYPE_CHECKING:
    from n4flow.pipeline.estimate import Inputs

# The options by which a command takes what a stage reads.
FILES: dict[str, dict[str, Any]] = {
    "shrunken": {"folder": options.Shrunken},
    "histograms": {"folder": options.Histograms},
    "tissue": {"masks": options.Masks},
    "recipe": {"recipe": options.RecipeDir},
    "evidence": {"evidence": options.Evidence},
}


def command(given: Stage | None) -> Callable[..., None]:
    """Return the command that estimates the correction of a stage from files; that of several of them without one."""
    if given is None:
        return intensity
    own = {name: kind for read in given.reads for name, kind in FILES[read].items()}
    if given.scattered == "sections":
        own["batch"] = options.Batch
    own["out"] = options.Out

    def estimate_stage(
        folder: Path,
        out: Path,
        settings: dict[str, Any],
        numbers: dict[str, Any],
        masks: Path | None = None,
        batch: str | None = None,
        recipe: Path | None = None,
        evidence: Path | None = None,
        threads: int | None = None,
    ) -> None:
        from n4flow.corrections.recipe import save_correction
        from n4flow.pipeline.estimate import estimate
        from n4flow.pipeline.versions import tool_versions

        inputs = read_inputs(given, settings, folder, masks, batch, recipe, evidence, threads)
        found = estimate(given, inputs, settings)
        save_correction(found, out)
        numbers.update({"sections": list(inputs.batch)} if inputs.batch else {}, **found.summary())
        if given.name == "N4_VOLUME":  # in an image of its own, where a GPU fits it
            numbers["versions"] = tool_versions()

    return options.as_step(given.name, estimate_stage, settings_of(given.name), ("sections", "voxel_um"), own)


def _intensity(
    folder: options.Histograms,
    out: Annotated[Path, typer.Option("--out", help="Folder for the corrections and the numbers of each stage.")],
    settings: dict[str, Any],
    numbers: dict[str, Any],
    recipe: options.RecipeDir = None,
    evidence: options.Evidence = None,
    threads: int | None = None,
) -> None:
    """Estimate what histograms tell, of what is asked for: ranges of planes, matching, smoothing along Z."""
    from n4flow.corrections.recipe import Recipe, save_correction
    from n4flow.pipeline.estimate import estimate

    out.mkdir(parents=True, exist_ok=True)
    stages = [each for each in STAGES if each.process == "INTENSITY" and each.asked(settings)]
    inputs = None
    for each in stages:
        with stage(each.name, command=numbers["command"], threads=numbers["threads"]) as own:
            inputs = inputs or read_inputs(each, settings, folder, None, None, recipe, evidence, threads)
            found = estimate(each, inputs, settings)
            save_correction(found, out / f"{each.file}.npz")
            own.update(found.summary())
        (out / f"{each.file}.json").write_text(dumps(own) + "\n", encoding="utf-8")
        inputs = replace(inputs, recipe=Recipe([*inputs.recipe, found]))


intensity = options.as_step("INTENSITY", _intensity, settings_of("INTENSITY"), ("sections",))


def read_inputs(
    given: Stage,
    settings: dict[str, Any],
    folder: Path,
    masks: Path | None = None,
    batch: str | None = None,
    recipe: Path | None = None,
    evidence: Path | None = None,
    threads: int | None = None,
) -> Inputs:
    """Read what a stage estimates from."""
    from n4flow.corrections.harmonization import read_flat
    from n4flow.corrections.proof import Evidence
    from n4flow.corrections.recipe import Recipe
    from n4flow.masks.tissue_source import TissueSource
    from n4flow.pipeline.estimate import Inputs
    from n4flow.pipeline.parameters import voxel_size
    from n4flow.sections import SectionTable
    from n4flow.statistics.histograms import HistogramFiles
    from n4flow.statistics.shrunken import ShrunkenFiles

    shrunken = ShrunkenFiles(parts(folder, "shrunken")) if "shrunken" in given.reads else None
    histograms = HistogramFiles(parts(folder, "histograms")) if "histograms" in given.reads else None
    n_planes = shrunken.shape[0] if shrunken is not None else histograms.n_planes if histograms is not None else 0
    sections = SectionTable.coerce(settings["sections"], n_planes)
    chosen = plane_range(batch, len(sections)) if batch else None
    planes = (sections[chosen[0]].z_start, sections[chosen[1] - 1].z_stop) if chosen else None
    tissue = TissueSource.load(masks, planes=planes) if masks else None
    return Inputs(
        sections,
        shrunken=shrunken,
        tissue=tissue,
        histograms=histograms,
        recipe=Recipe.load(recipe) if recipe else Recipe(),
        voxel_um=voxel_size(settings["voxel_um"]) or {},
        flat_field=read_flat(settings["flat_field"], tissue.frame) if settings["flat_field"] and tissue else None,
        evidence=Evidence.load(evidence) if evidence else None,
        batch=chosen,
        threads=threads,
    )
