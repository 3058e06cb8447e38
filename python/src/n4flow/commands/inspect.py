"""`n4flow inspect`: check input and parameters, and say what a run would do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import Image, as_step
from n4flow.errors import InputError
from n4flow.pipeline.stages import settings_of
from n4flow.pipeline.timing import dumps

OutDir = Annotated[Path | None, typer.Option("--out", help="Folder for the background correction.")]
Answer = Annotated[
    Path | None,
    typer.Option("--answer", help="Write the plan, or the fault in one sentence, to a JSON file and end with 0."),
]


def _inspect(
    image: Image,
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    sample: Annotated[str | None, typer.Option("--sample", help="Name of the sample.")] = None,
    out: OutDir = None,
    answer: Answer = None,
) -> None:
    """Check input and parameters, and say what a run would do."""
    try:
        numbers.update(_inspected(image, sample, settings, out))
    except InputError as error:
        if answer is None:
            raise
        answer.write_text(dumps({"fault": str(error)}) + "\n", encoding="utf-8")
        return
    if answer is not None:
        answer.write_text(dumps(numbers["plan"]) + "\n", encoding="utf-8")
    else:
        typer.echo(dumps(numbers["plan"]))


def _inspected(image: Path, sample: str | None, parameters: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    from n4flow.corrections.recipe import save_correction
    from n4flow.pipeline.plan import background, make_plan

    plan = make_plan(image, parameters, sample)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if (first := background(parameters, plan.volume.voxel_um)) is not None:
            save_correction(first, out / "10_background.npz")
        if any(file is not None and "missing_planes" in file.metadata for file in (plan.volume, plan.mask)):
            plan.sections.write(out / "sections.tsv")
    return {"plan": plan.summary()}


inspect = as_step("INSPECT", _inspect, settings_of("INSPECT"))
