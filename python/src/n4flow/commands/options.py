"""Options that commands share: those of parameters come from the schema, the others are declared here."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.step import set_threads
from n4flow.errors import InputError
from n4flow.pipeline.parameters import expectation, resolve, schema
from n4flow.pipeline.timing import dumps, stage

Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to use; all cores without it.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write this command's numbers to a JSON file.")]
Planes = Annotated[str, typer.Option("--planes", metavar="START:STOP", help="Planes to work on.")]
Image = Annotated[Path, typer.Argument(help="The volume.")]
Masks = Annotated[Path, typer.Option("--masks", help="Tissue and agarose mask (.npz).")]
Out = Annotated[Path, typer.Option("--out", help="The correction (.npz).")]
RecipeDir = Annotated[Path | None, typer.Option("--recipe", help="Folder with the corrections so far.")]
Evidence = Annotated[Path | None, typer.Option("--evidence", help="What PROVE found (.npz).")]
Shrunken = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with the shrunken slabs.")]
Histograms = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with the histograms of each slab.")]
Batch = Annotated[
    str, typer.Option("--batch", metavar="FIRST:STOP", help="Sections to fit, by their place in the table.")
]

# What a step hands to its function: every parameter, checked by the schema, with its defaults; the step's numbers, to
# be filled in; the threads that it may use; and the file of --json, to a function that judges it with its other files.
PROVIDED = ("settings", "numbers", "threads", "json_file")


def spelled(name: str) -> str:
    """Return a parameter as an option of the command line."""
    return "--" + name.replace("_", "-")


def metavar(rule: Mapping[str, Any]) -> str:
    """Return what stands for a parameter's value in a help text: its choices, or its type."""
    kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    return "|".join(rule["enum"]) if "enum" in rule else "|".join(kinds).upper()


def described(rule: Mapping[str, Any], *, required: bool = False) -> str:
    """Return a parameter's description with what it takes, its unit and its default."""
    facts = [expectation(rule)] if "expected" in rule or "unit" in rule or "minimum" in rule else []
    if rule.get("default") is not None and not required:
        facts.append(f"default {str(rule['default']).lower()}")
    return f"{rule['description']} [{'; '.join(facts)}]" if facts else str(rule["description"])


def check_json(json_file: Path | None, given: Iterable[Any]) -> None:
    """Refuse a file of --json that is among the paths, or lists of paths, that a command is given.

    Raises
    ------
    InputError
        The numbers would replace what is read or was written there.
    """
    for value in given:
        for path in value if isinstance(value, list) else [value]:
            if json_file is not None and isinstance(path, str | Path) and realpath(path) == realpath(json_file):
                msg = f"--json {json_file} is also another file of the command; give it a path of its own"
                raise InputError(msg)


def as_step(
    step_name: str,
    function: Callable[..., str | None],
    names: Sequence[str] = (),
    required: Sequence[str] = (),
    own: Mapping[str, Any] | None = None,
) -> Callable[..., None]:
    """Return a command that runs a function as a step, and has the options of steps and of parameters beside its own.

    A step is timed, its threads are limited, and its numbers are written when it succeeds.

    Parameters
    ----------
    step_name : str
        Name under which the report lists the step.
    function : callable
        Is called with its own arguments and those of `PROVIDED` that it takes. A text that it returns is printed.
    names : sequence of str
        Parameters of the schema that are options of the command.
    required : sequence of str
        Those of them without which the command ends.
    own : mapping, optional
        The function's own arguments and their types, where they depend on the command; those of its signature without.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = inspect.signature(function, eval_str=True).parameters
    arguments = [
        taken[name].replace(kind=keyword, annotation=taken[name].annotation if own is None else own[name])
        for name in (own or taken)
        if name not in PROVIDED
    ]
    for name, option in (("threads", Threads), ("json_file", JsonFile)):
        arguments.append(inspect.Parameter(name, keyword, default=None, annotation=option))
    for name in names:
        needed, rule = name in required, schema()[name]
        default: Any = inspect.Parameter.empty if needed else None
        kind: Any = str | None
        option = typer.Option(spelled(name), metavar=metavar(rule), help=described(rule, required=needed))
        if rule["type"] == "boolean":
            default, kind = rule["default"], bool
            switch = f"{spelled(name)}/{spelled('no_' + name)}" if default else spelled(name)
            option = typer.Option(switch, help=rule["description"])
        arguments.append(inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, option]))

    @functools.wraps(function)
    def command(threads: int | None, json_file: Path | None, **given: Any) -> None:
        if "json_file" not in taken:
            check_json(json_file, given.values())
        settings = resolve({name: given.pop(name) for name in names})
        line = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with stage(step_name, command=line, threads=set_threads(threads)) as numbers:
            provided = zip(PROVIDED, (settings, numbers, threads, json_file), strict=True)
            said = function(**given, **{name: value for name, value in provided if name in taken})
        if json_file is not None:
            json_file.write_text(dumps(numbers) + "\n", encoding="utf-8")
        if said:
            typer.echo(said)

    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return command
