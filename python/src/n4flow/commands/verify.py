"""`n4flow verify`: check results again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.options import STANDARD_OUTPUT, JsonFile, Threads, check_json, write_json
from n4flow.commands.step import set_threads


def verify(
    outdir: Annotated[Path, typer.Argument(help="The outdir of a run, or the folder of one sample.")],
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Check every voxel and file of results against the checksums they were written with; name the first difference."""
    from n4flow.pipeline.verify import verify as verify_results

    check_json(json_file, [outdir])
    set_threads(threads)
    found = verify_results(outdir)
    write_json(json_file, vars(found))
    if json_file != STANDARD_OUTPUT:
        typer.echo(f"{outdir}: as written; {', '.join(found.samples)}; {found.chunks} chunks, {found.files} files")
