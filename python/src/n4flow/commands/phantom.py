"""`n4flow phantom`: make a serial-section volume with known truth."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

import typer

from n4flow.commands.options import STANDARD_OUTPUT, JsonFile, Threads, check_json, write_json
from n4flow.commands.step import set_threads
from n4flow.commands.terminal import telling
from n4flow.phantom.options import FAULTS, PhantomOptions

OPTIONS = [option for option in dataclasses.fields(PhantomOptions) if "hidden" not in option.metadata]
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def phantom(
    out: Annotated[
        Path, typer.Argument(help="NAME.ome.zarr, or another format by its suffix (NAME.nii.gz, .tif, ...).")
    ],
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="DIR", help="Write truth, bias field, masks, gains and jitter to a folder."),
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", min=0, help="Factor on shading, attenuation, gain, drift and jitter.")
    ] = 1.0,
    ome_zarr_version: Annotated[str, typer.Option("--ome-zarr-version", help="0.5 or 0.4.")] = "0.5",
    threads: Threads = None,
    json_file: JsonFile = None,
    **chosen: Any,
) -> None:
    """Make a brain-like serial-section volume, and its section table beside it."""
    from n4flow.phantom.store import Phantom

    check_json(json_file, [out, truth])
    count = set_threads(threads)
    chosen["faults"] = tuple((index, name) for name in FAULTS for index in chosen.pop(name) or ())
    chosen["drift"] = chosen["gain"]
    for option in dataclasses.fields(PhantomOptions):
        if "switch" in option.metadata:
            default: Any = option.default
            chosen[option.name] *= default * (strength if "scaled" in option.metadata else 1)
    made = Phantom(PhantomOptions(**chosen))
    with telling() as progress:
        numbers = made.write(out, truth, threads=count, ome_zarr_version=ome_zarr_version, progress=progress)
    write_json(json_file, numbers)
    if json_file != STANDARD_OUTPUT:
        typer.echo(f"{numbers['store']}\n{numbers['sections']}")


def _options() -> Iterator[inspect.Parameter]:
    """Yield the options that `PhantomOptions` declares, then one for each kind of fault."""
    for option in OPTIONS:
        name, facts = option.name, option.metadata
        default: Any = option.default
        kind: Any = GenericAlias(tuple, tuple(map(type, default))) if isinstance(default, tuple) else type(default)
        limits: Any = {"min": facts.get("low"), "max": facts.get("high"), "metavar": facts.get("metavar")}
        info = typer.Option(f"--{name.replace('_', '-')}", help=facts["help"], **limits)
        if kind is bool or "switch" in facts:
            kind, default, info = bool, True, typer.Option(help=facts["help"])
        yield inspect.Parameter(name, KEYWORD, default=default, annotation=Annotated[kind, info])
    for name, (_flag, seen) in FAULTS.items():
        info = typer.Option(f"--{name}", metavar="I", help=f"Section I (from 0) {seen}.")
        yield inspect.Parameter(name, KEYWORD, default=None, annotation=Annotated[list[int] | None, info])


_declared = list(inspect.signature(phantom, eval_str=True).parameters.values())[:-1]  # all but **chosen
phantom.__signature__ = inspect.Signature([*_declared, *_options()])  # type: ignore[attr-defined]
