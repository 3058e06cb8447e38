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


def _inspect(
    image: Image,
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    sample: Annotated[str | None, typer.Option("--sample", help="Name of the sample.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the background correction.")] = None,
    answer: Annotated[
        Path | None,
        typer.Option("--answer", help="Write the plan, or the fault in one sentence, to a JSON file and end with 0."),
    ] = None,
) -> None:
    """Check input and parameters, and say what a run would do."""
    from n4flow.corrections.recipe import save_correction
    from n4flow.pipeline.channels import make_plans, summary
    from n4flow.pipeline.plan import background

    try:
        plans = make_plans(image, settings, sample)
    except InputError as error:
        if answer is None:
            raise
        answer.write_text(dumps({"fault": str(error)}) + "\n", encoding="utf-8")
        return
    plan, found = plans[0], summary(plans)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if (first := background(settings, plan.volume.voxel_um)) is not None:
            save_correction(first, out / "10_background.npz")
        if any({"missing_planes", "sections"} & set(one.volume.metadata) for one in plans):
            plan.sections.write(out / "sections.tsv")
    numbers["plan"] = found
    if answer is not None:
        answer.write_text(dumps(found) + "\n", encoding="utf-8")
    else:
        typer.echo(dumps(found))


inspect = as_step("INSPECT", _inspect, settings_of("INSPECT"))
