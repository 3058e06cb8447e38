"""`n4flow versions`: what the results depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import Image, as_step
from n4flow.errors import GpuError, InputError
from n4flow.pipeline.timing import dumps


def versions() -> None:
    """Print the versions of Python and of every package that a result may depend on."""
    from n4flow.pipeline.versions import tool_versions

    for tool, version in tool_versions().items():
        typer.echo(f"{tool}\t{version}")


def _warm_up(numbers: dict[str, Any]) -> None:
    """Compile every kernel into the cache (NUMBA_CACHE_DIR), so that no later run waits for it."""
    from n4flow.pipeline.warm_up import warm_up as compile_kernels

    numbers.update(compile_kernels())


def _probe_gpu(
    numbers: dict[str, Any],
    answer: Annotated[
        Path | None, typer.Option("--answer", help="Write the device, or the fault, to a JSON file and end with 0.")
    ] = None,
) -> None:
    """Say whether a GPU works here; without one, end with exit code 3."""
    from n4flow.compute.arrays import probe_gpu as probe

    try:
        info = probe()
    except GpuError as error:
        if answer is None:
            raise
        answer.write_text(dumps({"fault": str(error), "exit_code": error.exit_code}) + "\n", encoding="utf-8")
        return
    numbers.update(device=info.name, driver=info.driver, free_bytes=info.memory_bytes)
    if answer is not None:
        answer.write_text(dumps(numbers) + "\n", encoding="utf-8")
    else:
        typer.echo(dumps(numbers))


def _remote_state(
    image: Image,
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    answer: Annotated[
        Path | None, typer.Option("--answer", help="Write the digest, or the fault, to a JSON file and end with 0.")
    ] = None,
) -> None:
    """Digest the metadata of a store at an address and the entity tags of its files."""
    from n4flow.io.open import open_channels, open_volume
    from n4flow.pipeline.channels import ALL

    read = {"require_voxel_um": False, "allow_missing_chunks": settings["allow_missing_chunks"]}
    one = settings["channel"] != ALL
    try:
        volumes = [open_volume(image, channel=settings["channel"], **read)] if one else open_channels(image, **read)
        numbers["state"] = ",".join(volume.reader.state() for volume in volumes)
    except InputError as error:
        if answer is None:
            raise
        answer.write_text(dumps({"fault": str(error)}) + "\n", encoding="utf-8")
        return
    if answer is not None:
        answer.write_text(dumps(numbers) + "\n", encoding="utf-8")
    else:
        typer.echo(numbers["state"])


def _provenance(
    samples: Annotated[list[Path], typer.Argument(help="The checksums.json and summary.json of each sample.")],
    run: Annotated[Path, typer.Option("--run", help="JSON file: command, inputs, and what the engine knows.")],
    parameters: Annotated[Path, typer.Option("--parameters", help="JSON file with the parameters.")],
    versions: Annotated[Path, typer.Option("--versions", help="JSON list of process, container, lines of versions.")],
    workflow: Annotated[Path, typer.Option("--workflow", help="The main script.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for pipeline_info and the RO-Crate.")],
) -> None:
    """Write settings, versions and digests of a run as a Workflow Run RO-Crate."""
    from n4flow.pipeline.parameters import resolve
    from n4flow.pipeline.provenance import Run, write_provenance

    rows = json.loads(versions.read_text(encoding="utf-8"))
    details = json.loads(run.read_text(encoding="utf-8"))
    found = Run(
        details.pop("command"),
        resolve(json.loads(parameters.read_text(encoding="utf-8"))),
        details.pop("inputs"),
        "".join(f"{process}\t{box}\t{line}\n" for process, box, text in rows for line in text.splitlines()),
        details,
        workflow,
    )
    write_provenance(out, found, sorted(samples))


warm_up = as_step("WARM_UP", _warm_up)
probe_gpu = as_step("PROBE_GPU", _probe_gpu)
remote_state = as_step("REMOTE_STATE", _remote_state, ("voxel_um", "channel", "allow_missing_chunks"))
provenance = as_step("PROVENANCE", _provenance)
