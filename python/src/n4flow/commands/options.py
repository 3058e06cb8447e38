"""Options that commands share: those of parameters come from the schema, the others are declared here."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from n4flow.commands.step import set_threads
from n4flow.errors import InputError
from n4flow.pipeline.parameters import expectation, groups, nearest, resolve, schema, spelled
from n4flow.pipeline.timing import dumps, stage

Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to use; all cores without it.")]
STANDARD_OUTPUT = Path("-")
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="[FILE]", help="Write this command's numbers as JSON, to a file or in place of text."
    ),
]
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


# Options that take as many numbers as follow, and what others have in mind with options that are no parameters.
LISTS = ("--iterations", "--voxel-um")
PLACED = ("input", "outdir")  # parameters that `n4flow run` is given by their place
SYNONYMS = {"threads": ("cpus", "cores", "jobs", "workers", "n_jobs", "num_threads"), "size": ("shape",)}
NUMBERS = re.compile(r"[\d.,+eE-]*\d[\d.,]*")


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


class Command(typer.core.TyperCommand):
    """A command whose options have either spelling and are listed by section, and that knows what is meant.

    `--smooth_z` is `--smooth-z`; `--iterations 50 40` is `--iterations 50,40`; `--normalize false` is `--no-normalize`;
    `--json` without a file is `--json -`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; an option that there is not is answered by the one that is meant."""
        try:
            return super().parse_args(ctx, self.settled(args))
        except Exception as error:
            option = getattr(error, "option_name", None) if hasattr(error, "possibilities") else None
            if option is None:
                raise
            raise InputError(self.meant(ctx, option)) from error

    def settled(self, args: Sequence[str]) -> list[str]:
        """Return arguments as the parser takes them."""
        known = {option: each for each in self.params for option in (*each.opts, *each.secondary_opts)}
        done: list[str] = []
        left = list(args)
        while left:
            argument = left.pop(0)
            if argument == "--":
                return [*done, argument, *left]
            name, equals, value = argument.partition("=")
            if not name.startswith("--"):
                done.append(argument)
                continue
            name = name.replace("_", "-")
            switch = getattr(known.get(name), "is_flag", False)
            if switch and known[name].name in schema() and (equals or left[:1] in (["true"], ["false"])):
                wanted = value if equals else left.pop(0)
                other = known[name].secondary_opts if name in known[name].opts else known[name].opts
                done += {"true": [name], "false": other[:1]}.get(wanted, [name + equals + value])
                continue
            done.append(name + equals + value)
            if equals or switch or name not in known:
                continue
            if name == "--json" and (not left or left[0].startswith("--")):
                done.append("-")
            elif name in LISTS and getattr(known[name], "nargs", 1) == 1:
                count = next((n for n, text in enumerate(left) if not NUMBERS.fullmatch(text)), len(left))
                done += [",".join(left[:count])] * (count > 0)
                del left[:count]
        return done

    def meant(self, ctx: Any, option: str) -> str:
        """Return the sentence about an option that the command does not have."""
        asked = f"unknown option {option} of {ctx.command_path}"
        if schema().get(name := option.lstrip("-").replace("-", "_"), {}).get("workflow"):
            return f"{asked}; it is of the workflow alone, so leave it out"
        placed = {(each.metavar or each.name).lower(): each for each in self.params if _is_argument(each)}
        names = placed | {e.name: e for e in self.params if not _is_argument(e) and not getattr(e, "hidden", False)}
        synonyms = {each: (*SYNONYMS.get(each, ()), *schema().get(each, {}).get("synonyms", ())) for each in names}
        found = nearest(name, synonyms)
        if found in placed:
            places = " ".join(each.upper() for each in placed)
            return f"{asked}; {found.upper()} is given by its place: {ctx.command_path} {places}"
        return f"{asked}; did you mean {names[found].opts[0]}?"

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List arguments and options, those of parameters under the titles of the schema."""
        rows: dict[str, list[Any]] = {}
        of = {name: group["title"] for group in groups() for name in group["properties"]}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None:
                rows.setdefault("Arguments" if _is_argument(each) else of.get(each.name, "Options"), []).append(record)
        for title in ("Arguments", *(group["title"] for group in groups()), "Options"):
            if title in rows:
                with formatter.section(title):
                    formatter.write_dl(rows[title])


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def run_parameters() -> list[str]:
    """Return the parameters that are options of `n4flow run`."""
    return [name for name, rule in schema().items() if name not in PLACED and not rule.get("workflow")]


def parameter_options(names: Iterable[str], required: Sequence[str] = ()) -> list[inspect.Parameter]:
    """Return parameters of the schema as arguments of a command's function, each an option of the command line."""
    found = []
    for name in names:
        needed, rule = name in required, schema()[name]
        default: Any = inspect.Parameter.empty if needed else None
        kind: Any = str | None
        option = typer.Option(
            spelled(name),
            metavar=metavar(rule),
            help=described(rule, required=needed),
            autocompletion=_completion(rule.get("enum", ())),
        )
        if rule["type"] == "boolean":
            default, kind = rule["default"], bool
            switch = f"{spelled(name)}/{spelled('no_' + name)}" if default else spelled(name)
            option = typer.Option(switch, help=rule["description"])
        annotation = Annotated[kind, option]
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return found


def _completion(choices: Sequence[str]) -> Callable[[str], list[str]] | None:
    """Return what a shell asks for the choices that begin with what was typed."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete if choices else None


def check_json(json_file: Path | None, given: Iterable[Any], option: str = "--json") -> None:
    """Refuse a file of --json, or of --log, that is among the paths, or lists of paths, that a command is given.

    Raises
    ------
    InputError
        What is written would replace what is read or was written there.
    """
    for value in given:
        for path in value if isinstance(value, list) else [value]:
            if json_file is not None and isinstance(path, str | Path) and realpath(path) == realpath(json_file):
                msg = f"{option} {json_file} is also another file of the command; give it a path of its own"
                raise InputError(msg)


def write_json(json_file: Path | None, numbers: Any) -> None:
    """Write a command's numbers where --json asks for them."""
    if json_file == STANDARD_OUTPUT:
        typer.echo(dumps(numbers))
    elif json_file is not None:
        json_file.write_text(dumps(numbers) + "\n", encoding="utf-8")


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
    arguments += parameter_options(names, required)

    @functools.wraps(function)
    def command(threads: int | None, json_file: Path | None, **given: Any) -> None:
        if "json_file" not in taken:
            check_json(json_file, given.values())
        settings = resolve({name: given.pop(name) for name in names})
        line = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with stage(step_name, command=line, threads=set_threads(threads)) as numbers:
            provided = zip(PROVIDED, (settings, numbers, threads, json_file), strict=True)
            said = function(**given, **{name: value for name, value in provided if name in taken})
        write_json(json_file, numbers)
        if said and json_file != STANDARD_OUTPUT:
            typer.echo(said)

    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return command
