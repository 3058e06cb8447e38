"""`n4flow run`: the whole chain on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
import typer.core

from n4flow.commands.options import JsonFile, Threads, check_json, described, metavar, spelled
from n4flow.commands.step import set_threads
from n4flow.errors import InputError
from n4flow.pipeline.parameters import schema
from n4flow.pipeline.timing import dumps

PLACED = ("input", "outdir")  # parameters that are given by their place


class Command(typer.core.TyperCommand):
    """A command that takes every parameter of the schema, in any spelling, and lists them in its help."""

    settings: ClassVar = {"allow_extra_args": True, "ignore_unknown_options": True}

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """List the parameters, as the schema describes them."""
        with formatter.section("Parameters"):
            rules = {name: rule for name, rule in schema().items() if name not in PLACED}
            formatter.write_dl([(f"{spelled(name)} {metavar(rule)}", described(rule)) for name, rule in rules.items()])


def run(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="INPUT", help="A volume, or a CSV of samples.")],
    outdir: Annotated[Path, typer.Argument(help="Folder for the results.")],
    dask_scheduler: Annotated[
        str | None, typer.Option("--dask-scheduler", help="Run the passes on this dask.distributed cluster.")
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Run the whole chain with the workflow's parameters: n4flow run INPUT OUTDIR --sections 30 --smooth-z 2 ..."""
    from n4flow.pipeline.run import run as run_chain

    if image.startswith("--") or str(outdir).startswith("--"):
        msg = "give INPUT and OUTDIR first, then the parameters: n4flow run brain.ome.zarr results --sections 30"
        raise InputError(msg)
    options = read_options(context.args)
    check_json(json_file, [image, outdir, *options.values()])
    set_threads(threads)
    result = run_chain(image, outdir, threads=threads, dask_scheduler=dask_scheduler, **options)
    for sample in result.samples:
        verdict = sample.numbers["verdict"]
        typer.echo(f"{sample.store}\n{sample.report}\n{sample.sample}: {verdict['status']}, {verdict['sentence']}")
    if json_file is not None:
        json_file.write_text(
            dumps({s.sample: {"verdict": s.numbers["verdict"], **s.metrics} for s in result.samples}) + "\n",
            encoding="utf-8",
        )


def read_options(arguments: list[str]) -> dict[str, Any]:
    """Read `--name value`, `--name v1 v2 v3` and `--name=value`; names with hyphens or underscores.

    >>> read_options(["--smooth-z", "0", "--voxel-um", "10", "5", "5", "--match=off"])
    {'smooth_z': '0', 'voxel_um': '10 5 5', 'match': 'off'}
    """
    options: dict[str, Any] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            options[name] = [value] if equals else []
        elif name is None:
            msg = f"unexpected argument {argument!r}; parameters are given as --name value"
            raise InputError(msg)
        else:
            options[name].append(argument)
    for key, values in options.items():
        if not values:
            msg = f"parameter {key} needs a value, as in --{key} VALUE"
            raise InputError(msg)
        if key in PLACED:
            msg = f"{key} is given by its place: n4flow run INPUT OUTDIR, then the parameters"
            raise InputError(msg)
    return {key: " ".join(values) for key, values in options.items()}
