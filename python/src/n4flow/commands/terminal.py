"""What a command says while it works: bars on a terminal, a line for each stage in a log."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from n4flow.compute.progress import Listener, Progress, counted, peak_memory

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]
LogFile = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Append what is said to a file, with times."),
]
log = logging.getLogger("n4flow")
tracebacks: list[bool] = []  # Holds an entry where the traceback of an error is asked for.


def keep_tracebacks(asked: bool) -> None:
    """Show where errors arise, and what each stage has counted; before a command or after it."""
    if asked:
        tracebacks[:] = [True]
        log.setLevel(logging.DEBUG)


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        callback=keep_tracebacks,
        help="Say the numbers of each stage, and where in the code an error is.",
    ),
]


@contextmanager
def telling(*, quiet: bool = False, log_file: Path | None = None) -> Iterator[Listener | None]:
    """Yield what shows progress on a terminal, None where there is none; log lines go to a file, too, if one is named.

    The file gets the error that ends the block as well.
    """
    with ExitStack() as stack:
        if log_file is not None:
            stack.enter_context(_logged(log_file))
        if quiet:
            stack.enter_context(_level(logging.WARNING))
        bars = not quiet and sys.stderr.isatty()
        yield stack.enter_context(_bars()) if bars else None


@contextmanager
def reading(step: str, volumes: Sequence[Volume]) -> Iterator[None]:
    """Show on a terminal how much of some volumes a step has read, of which it reads every voxel once."""
    nbytes = sum(math.prod(volume.shape) * volume.dtype.itemsize for volume in volumes)
    with telling() as listener, counted(Progress(step, nbytes, "bytes"), listener):
        yield


@contextmanager
def _level(level: int) -> Iterator[None]:
    """Let what stands on the terminal be of a level, whatever a file gets."""
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.setLevel(level)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setLevel(logging.NOTSET)


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        said = str(error) or type(error).__name__
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "error: %s", (said,), None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _bars() -> Iterator[Listener]:
    """Yield a listener that keeps one bar below the lines of the log."""
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    class Far(rich_progress.ProgressColumn):
        """How far the step is, as of now."""

        def render(self, task: rich_progress.Task) -> Text:
            return Text(far(task.fields["progress"], task.elapsed or 0.0, peak_memory()))

    columns = (
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.TimeElapsedColumn(),
        Far(),
    )
    found = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    handlers = [each for each in found if each.stream is sys.stderr]
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: list[rich_progress.TaskID] = []

        def listen(progress: Progress) -> None:
            if progress.done == 0 or not tasks:  # a new step takes the place of the last one
                while tasks:
                    bars.remove_task(tasks.pop())
                named = f"{progress.sample} {progress.number}/{progress.of} " if progress.sample else ""
                tasks.append(bars.add_task(named + progress.step, total=progress.total or None, progress=progress))
            bars.update(tasks[0], completed=progress.done, progress=progress)

        for handler in handlers:
            handler.setStream(sys.stderr)  # what is there now writes above the bar
        try:
            yield listen
        finally:
            for handler in handlers:
                handler.setStream(sys.__stderr__)


def far(progress: Progress, seconds: float, peak: int) -> str:
    """Return in words how far a step is: what is done, how fast, the time left, and the peak memory.

    >>> far(Progress("SHRINK", 4_000_000_000, "bytes", done=1_000_000_000), 2.0, 600_000_000)
    '1.0 GB of 4.0 GB, 500 MB/s, 6 s left, peak memory 600 MB'
    >>> far(Progress("N4", 200, "iterations", done=50), 2.0, 600_000_000)
    '50 of 200 iterations, 6 s left at most, peak memory 600 MB'
    """
    from n4flow.report.text import duration, size

    said = []
    if progress.total:
        bytes_ = progress.unit == "bytes"
        done, total = (size(n) if bytes_ else str(n) for n in (progress.done, progress.total))
        said.append(f"{done} of {total}" + ("" if bytes_ else f" {progress.unit}"))
        if progress.done and seconds > 0:
            said += [f"{size(progress.done / seconds)}/s"] * bytes_
            left = duration(seconds * (progress.total - progress.done) / progress.done)
            said.append(f"{left} left" + (" at most" if progress.unit == "iterations" else ""))
    return ", ".join([*said, f"peak memory {size(peak)}"])
