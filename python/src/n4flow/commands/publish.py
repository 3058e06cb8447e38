"""`n4flow publish`: a sample's results take their place in outdir."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import as_step

FILES_PER_THREAD = 4  # Files are waited for, more than computed with.


def _publish(
    results: Annotated[Path, typer.Argument(help="The sample's results, a folder of its name.")],
    outdir: Annotated[Path, typer.Argument(help="The folder of all results.")],
    numbers: dict[str, Any],
    threads: int | None,
    link: Annotated[bool, typer.Option("--link", help="Make hard links where the disks allow it.")] = False,
) -> str:
    from n4flow.compute.threads import available_threads
    from n4flow.io.publishing import publish as put_in_place

    out = outdir.resolve() / results.name
    done = put_in_place(results, out, link=link, threads=FILES_PER_THREAD * (threads or available_threads()))
    how = ", ".join(f"{done[name]} {name}" for name in ("linked", "cloned", "copied", "kept") if done[name])
    said = f"{done['files']} files, {done['bytes'] / 1e9:.3f} GB in {out}: {how}"
    numbers.update(done, said=said)
    return said


publish = as_step("PUBLISH", _publish)
