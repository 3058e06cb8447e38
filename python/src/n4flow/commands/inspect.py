"""`n4flow inspect`: check input and parameters, and say what a run would do."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from n4flow.commands.options import Image, as_step, run_parameters, spelled
from n4flow.errors import InputError
from n4flow.pipeline.parameters import schema, unusual
from n4flow.pipeline.stages import STAGES
from n4flow.pipeline.timing import dumps

if TYPE_CHECKING:
    from n4flow.pipeline.plan import Plan


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
) -> str:
    """Check a volume, or a CSV of samples, and parameters; say what a run would do, and what it takes."""
    from n4flow.corrections.recipe import save_correction
    from n4flow.io.address import located
    from n4flow.pipeline.channels import make_plans, summary
    from n4flow.pipeline.plan import background
    from n4flow.pipeline.samples import read_samples
    from n4flow.pipeline.versions import tool_versions

    rows: list[Any] = [(sample, image, {})] if answer or sample else read_samples(located(image))
    try:
        whole = [(name, path, {**settings, **own}) for name, path, own in rows]
        asked = [(make_plans(path, own, name), own) for name, path, own in whole]
    except InputError as error:
        if answer is None:
            raise
        answer.write_text(dumps({"fault": str(error)}) + "\n", encoding="utf-8")
        return ""
    found = [summary(plans) for plans, _own in asked]
    numbers.update({"plan": found[0]} if len(found) == 1 else {"plans": found})
    if out is not None:
        plans, own = asked[0]
        plan = plans[0]
        out.mkdir(parents=True, exist_ok=True)
        if (first := background(own, plan.volume.voxel_um)) is not None:
            save_correction(first, out / "10_background.npz")
        if any({"missing_planes", "sections"} & set(one.volume.metadata) for one in plans):
            plan.sections.write(out / "sections.tsv")
    if answer is not None:
        answer.write_text(dumps(numbers["plan"] | {"versions": tool_versions()}) + "\n", encoding="utf-8")
        return ""
    command = shlex.join(["n4flow", "run", str(image), "OUTDIR", *_options(settings)])
    return "\n".join([*(line for plans, own in asked for line in _said(plans, own)), f"Run it: {command}"])


def _said(plans: Sequence[Plan], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield for a reader what a sample is, what will be done, what it takes, and what is doubtful."""
    from n4flow.io.frame import Frame
    from n4flow.io.omezarr.chunk_grid import listed
    from n4flow.pipeline.resources import run_seconds
    from n4flow.report.text import duration, size

    plan, volume, table = plans[0], plans[0].volume, plans[0].sections
    labels = [each.label or "" for each in plans]
    shape = " x ".join(map(str, volume.shape))
    voxel = " x ".join(f"{volume.voxel_um[axis]:g}" for axis in "zyx") if volume.voxel_um else "unknown"
    nbytes = size(math.prod(volume.shape) * volume.dtype.itemsize)
    kind = volume.metadata.get("format", "volume")
    yield f"{plan.sample}: {kind}, {shape} voxels (z y x) of {voxel} micrometres, {volume.dtype}, {nbytes}"
    if plan.frame != Frame.whole(volume.shape):
        yield f"  Valid voxels lie in rows and columns {plan.frame}; what is around them is padding, and stays."
    if len(plans) > 1:
        whose = {each.channel: f"of {each.title.removeprefix(f'{plan.sample}, ')}" for each in plans}
        shared = whose.get(plan.fit_channel or "", "its own")
        yield f"  Channels: {volume.reader.channels}, {listed(labels[: volume.reader.channels])}"
        yield f"  Bias fields and tissue mask of a channel: {shared}"
    depths = Counter(section.z_stop - section.z_start for section in table)
    deep = f"{min(depths)}" if len(depths) == 1 else f"{min(depths)} to {max(depths)}"
    flagged = [section.id for section in table if not section.usable]
    yield (
        f"  Sections: {len(table)}, of {deep} planes; "
        + (f"flagged, and left out of every estimate: {listed(flagged)}" if flagged else "none is flagged")
    )
    yield f"  Tissue mask: {'given' if plan.mask is not None else 'will be estimated'}"
    yield "What will be done:"
    yield from (f"  {stage.name:<17} {stage.title}" for stage in STAGES if stage.asked(settings))
    needs = [each.needs() for each in plans]
    yield "What it takes:"
    seconds = sum(run_seconds(volume.shape, each.frame.shape, each.shrink) for each in plans)
    yield f"  time    about {duration(seconds)} on two cores"
    yield f"  memory  at most {size(max(each.peak_memory(settings) for each in plans))}"
    written, work = size(sum(need["bytes"] for need in needs)), size(max(need["work_bytes"] for need in needs))
    tasks = f"{len(plan.slabs)} slab{'s' if len(plan.slabs) > 1 else ''} of {plan.layout.slab_planes} planes"
    yield f"  reading {plan.read_amplification:.2f} voxels for each of the volume in every pass, by {tasks}"
    yield f"  disk    at most {written} for the result ({plan.layout.dtype}), and {work} until it is done"
    yield "What is doubtful:"
    warnings = dict.fromkeys(warning for each in plans for warning in each.warnings)
    yield from (f"  - {warning}" for warning in warnings or ["nothing was found"])


def _options(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parameters that were given, as options of `n4flow run`."""
    for name, value in unusual(settings).items():
        if schema()[name]["type"] == "boolean":
            yield spelled(name if value else f"no_{name}")
        else:
            yield from (spelled(name), str(value))


def command(_stage: None = None) -> Callable[..., None]:
    """Return the command: of the parameters, it takes all that `n4flow run` does."""
    return as_step("INSPECT", _inspect, run_parameters())
