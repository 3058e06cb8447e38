"""`n4flow provenance`: settings, versions and digests of a run as an RO-Crate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import JsonFile, Threads, step


def provenance(
    samples: Annotated[list[Path], typer.Argument(help="The checksums.json of each sample.")],
    run: Annotated[Path, typer.Option("--run", help="JSON file: command, inputs, and what the engine knows.")],
    parameters: Annotated[Path, typer.Option("--parameters", help="JSON file with the parameters.")],
    versions: Annotated[Path, typer.Option("--versions", help="JSON list of process, container, lines of versions.")],
    workflow: Annotated[Path, typer.Option("--workflow", help="The main script.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for pipeline_info and the RO-Crate.")],
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Write settings, versions and digests of a run as a Workflow Run RO-Crate."""
    from n4flow.parameters import resolve
    from n4flow.provenance import Run, write_provenance

    with step("PROVENANCE", threads, json_file):
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
