"""The command line: each command is its arguments, one call into the library, and files. May import every room."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main

from n4flow.commands.terminal import Verbose, tracebacks
from n4flow.compute.malloc import check_address_space, limit_arenas
from n4flow.errors import DiskFullError, InputError, N4flowError, N4flowWarning, OutOfMemoryError, reason
from n4flow.pipeline.stages import STAGES

USER_COMMANDS = {
    "run": "The whole chain on this machine, with the workflow's parameters.",
    "convert": "Any volume as an OME-Zarr with its pyramid.",
    "n4": "Correct the bias field of one image, any format to any format.",
    "inspect": "Check input and parameters, and say what a run would do.",
    "render": "Apply a stored recipe to a volume.",
    "view": "Look at results in full resolution, before and after.",
    "verify": "Check results against the checksums they were written with.",
    "versions": "Versions of everything that a result depends on.",
    "phantom": "Make a serial-section volume with known truth.",
}
# Steps of the workflow that are no stage of the chain, or several.
OTHER_STEPS = {
    "intensity": "Estimate what histograms tell: ranges of planes, matching, smoothing along Z.",
    "probe-gpu": "Say whether a GPU works here.",
    "remote-state": "Digest by which a change of a store at an address is noticed.",
    "join-channels": "Put the results of all channels of a sample together.",
    "publish": "Put a sample's results in place: links, clones or copies, all or nothing.",
    "provenance": "Settings, versions and digests of a run as an RO-Crate.",
    "warm-up": "Compile the kernels once, for an image or after an install.",
}
HELP = ("-h", "--help")
STEPS = {stage.command: stage for stage in STAGES if stage.process == stage.name}
# Modules of commands that share one; other stages estimate a correction, and other commands have one of their own name.
MODULES = {
    **dict.fromkeys(("shrink", "plane-statistics", "render-slab"), "slabs"),
    "intensity": "estimate",
    **dict.fromkeys(("versions", "probe-gpu", "remote-state", "provenance", "warm-up"), "run_info"),
}


class Commands(typer.core.TyperGroup):
    """A group that imports a command's module only when that command is asked for."""

    names_only = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands in the order a user needs them."""
        return [*USER_COMMANDS, *STEPS, *OTHER_STEPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        if self.names_only:
            return typer.core.TyperCommand(cmd_name, help=USER_COMMANDS.get(cmd_name, ""))
        stage, name = STEPS.get(cmd_name), cmd_name.replace("-", "_")
        estimates = stage is not None and stage.estimates is not None
        module = importlib.import_module(f"n4flow.commands.{MODULES.get(cmd_name, 'estimate' if estimates else name)}")
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        from n4flow.commands.options import Command

        cls = getattr(module, "Command", Command)
        settings = {"help_option_names": list(HELP)}
        function = module.command(stage) if hasattr(module, "command") else getattr(module, name)
        app.command(name=cmd_name, cls=cls, help=stage.title if stage else None, context_settings=settings)(function)
        return typer.main.get_command(app)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the name of a command without importing any."""
        self.names_only = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self.names_only = False

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands without importing them."""
        steps = {name: stage.title for name, stage in STEPS.items()} | OTHER_STEPS
        for title, commands in (("Commands", USER_COMMANDS), ("Steps of the workflow", steps)):
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


app = typer.Typer(
    cls=Commands,
    context_settings={"help_option_names": list(HELP)},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Even out the intensity of serial-section volumes without harming anatomy.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from n4flow import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Do what goes before every command."""
    check_address_space()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; end with the exit code that its outcome has."""
    limit_arenas()
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("n4flow").setLevel(logging.INFO)
    tracebacks.clear()
    warnings.showwarning = _show_warning
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing half-written stays behind
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(app)(args=given, prog_name="n4flow", standalone_mode=False) or 0
    except SystemExit:
        raise
    except KeyboardInterrupt:
        code = _fail("stopped", 130)
    except BaseException as error:  # noqa: BLE001  a panic of Rust, too, which is no Exception
        # typer takes the end of a file for one of the keyboard's, and says "Aborted!"; what began it is its cause.
        code = _end(error.__cause__ if isinstance(error, typer.Abort) and error.__cause__ is not None else error)
    sys.exit(code)


def _end(error: BaseException) -> int:
    """Say what an error is, in one sentence; a fault of ours is shown with its traceback. Return the exit code."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # One of typer's, about arguments, with the usage.
        error.show()
        return int(error.exit_code)
    if tracebacks:
        traceback.print_exception(error)
    match error:
        case N4flowError():
            return _fail(str(error), error.exit_code)
        case MemoryError():
            sentence = f"out of memory ({reason(error)}); give the task more memory or fewer slab_planes"
            return _fail(sentence, OutOfMemoryError.exit_code)
        case RuntimeError(args=("can't start new thread",)):
            sentence = (
                "no further thread can be started; raise the limit of processes or of memory, or give fewer --threads"
            )
            return _fail(sentence, OutOfMemoryError.exit_code)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            where = f" at {error.filename}" if error.filename else ""
            full = "the limit of a file's size is reached" if error.errno == errno.EFBIG else "disk or quota full"
            return _fail(f"{full}{where}; free space or choose another folder", DiskFullError.exit_code)
        case OSError(filename=str() | bytes() | Path()):
            return _fail(f"{error.filename}: {str(error.strerror).lower()}; check the path", InputError.exit_code)
    if not tracebacks:
        traceback.print_exception(error)
    return _fail("this is a fault of n4flow and not of yours; please report it with the lines above", 1)


def _fail(sentence: str, code: int) -> int:
    try:
        typer.echo(f"n4flow: {sentence}", err=True)
    except OSError:  # a full disk may hold the log of this task, too: the code alone says it then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # so that Python's last flush does not fail
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_place: Any, **_options: Any) -> None:
    """Show n4flow's own warnings as sentences, and no others."""
    if issubclass(category, N4flowWarning):
        typer.echo(f"n4flow: warning: {message}", err=True)
