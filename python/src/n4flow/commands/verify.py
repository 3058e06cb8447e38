"""`n4flow verify`: check results again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.options import JsonFile, Threads, check_json
from n4flow.commands.step import set_threads
from n4flow.pipeline.timing import dumps


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
    typer.echo(f"{outdir}: as written; {', '.join(found.samples)}; {found.chunks} chunks, {found.files} files")
    if json_file is not None:
        json_file.write_text(dumps(vars(found)) + "\n", encoding="utf-8")
