"""`n4flow run`: the whole chain on this machine."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import (
    STANDARD_OUTPUT,
    JsonFile,
    Threads,
    check_json,
    parameter_options,
    run_parameters,
    write_json,
)
from n4flow.commands.step import set_threads
from n4flow.commands.terminal import LogFile, Quiet, Verbose, telling
from n4flow.pipeline.parameters import schema

LOOK = 6  # Exit code with --strict where a sample's verdict is `look`.


def _run(
    image: Annotated[str, typer.Argument(metavar="INPUT", help="A volume, or a CSV of samples.")],
    outdir: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder for the results.")],
    dask_scheduler: Annotated[
        str | None, typer.Option("--dask-scheduler", help="Run the passes on this dask.distributed cluster.")
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
    strict: Annotated[
        bool, typer.Option("--strict", help=f"End with exit code {LOOK} where the verdict of a sample is look.")
    ] = False,
    **given: Any,
) -> None:
    """Run the whole chain with the workflow's parameters: n4flow run INPUT OUTDIR --sections 30 --smooth-z 2 ..."""
    from n4flow.pipeline.run import run as run_chain
    from n4flow.pipeline.warm_up import compile_beside

    rules = schema()
    options = {name: value for name, value in given.items() if value not in (None, _default(rules[name]))}
    check_json(json_file, [image, outdir, *options.values()])
    check_json(log_file, [image, outdir, json_file, *options.values()], "--log")
    set_threads(threads)
    compile_beside("n4", "n4-parts")
    with telling(quiet=quiet, log_file=log_file) as progress:
        result = run_chain(image, outdir, threads=threads, dask_scheduler=dask_scheduler, progress=progress, **options)
    numbers = {s.sample: {"verdict": s.numbers["verdict"], **s.metrics} for s in result.samples}
    write_json(json_file, numbers)
    if not quiet and json_file != STANDARD_OUTPUT:
        typer.echo(result.table())
    if strict and result.status == "look":
        raise typer.Exit(LOOK)


def _default(rule: dict[str, Any]) -> bool | None:
    """Return what a switch is when it is not given."""
    return rule["default"] if rule["type"] == "boolean" else None


def command(_stage: None = None) -> Callable[..., None]:
    """Return the command, with an option for every parameter that is not of the workflow alone."""
    own = [each for each in inspect.signature(_run, eval_str=True).parameters.values() if each.name != "given"]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]

    @functools.wraps(_run)
    def run(**given: Any) -> None:
        _run(**given)

    run.__signature__ = inspect.Signature([*own, *parameter_options(run_parameters())])  # type: ignore[attr-defined]
    return run
