"""`n4flow view`: look at results in full resolution."""

from __future__ import annotations

import importlib.util
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from n4flow.errors import InputError

if TYPE_CHECKING:
    from n4flow.pipeline.run import Result, SampleResult

VIEWERS = ("auto", "napari", "neuroglancer")


def view(
    results: Annotated[Path, typer.Argument(help="The outdir of a run, or the folder of one sample.")],
    sample: Annotated[str | None, typer.Option("--sample", metavar="NAME", help="Which, of several.")] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="PATH", help="The input, where it is not where it was read.")
    ] = None,
    viewer: Annotated[
        str,
        typer.Option("--in", metavar="|".join(VIEWERS), help="The viewer; auto takes napari where it is installed."),
    ] = "auto",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="For Neuroglancer; a free one without it.")
    ] = 0,
) -> None:
    """Open a sample before and after, with its mask, in napari, or in Neuroglancer behind a link to click."""
    if viewer not in VIEWERS:
        msg = f"--in must be {', '.join(VIEWERS[:-1])} or {VIEWERS[-1]}, got {viewer!r}"
        raise InputError(msg)
    from n4flow.pipeline.run import Result
    from n4flow.pipeline.view import in_napari, serve, volumes_of

    chosen = _chosen(Result.load(results), sample)
    volumes = volumes_of(chosen, before)
    if viewer == "napari" or (viewer == "auto" and importlib.util.find_spec("napari") is not None):
        in_napari(chosen, volumes)
        return
    _viewer, address = serve(volumes, port)
    taken = urlsplit(address).port
    typer.echo(f"Open {address} in a browser; Ctrl-C ends.")
    typer.echo(f"From another machine, first: ssh -N -L {taken}:127.0.0.1:{taken} {socket.gethostname()}")
    with suppress(KeyboardInterrupt):  # which is how one leaves
        threading.Event().wait()


def _chosen(result: Result, name: str | None) -> SampleResult:
    names = [each.sample for each in result.samples]
    if name is None and len(names) > 1:
        msg = f"{result.outdir} holds {len(names)} samples; choose one with --sample: {', '.join(names)}"
        raise InputError(msg)
    for each in result.samples:
        if name in (None, each.sample):
            return each
    msg = f"{result.outdir} holds no sample {name}; it has {', '.join(names)}"
    raise InputError(msg)
