"""How far a computation is: those who do the work say it, and whoever asked for it listens."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

INTERVAL = 0.1  # Seconds between two looks at what compiled code has done.


@dataclass(frozen=True)
class Progress:
    """How far a step of a computation is; what a progress callback is called with.

    Parameters
    ----------
    step : str
        A stage of the chain (`RENDER`), or what a function does (`N4`).
    total : int
        Of the step, in `unit`; 0 where nobody can know it.
    unit : {'bytes', 'iterations', 'planes', ''}
        Bytes are those of the input. Iterations are the most that the levels of N4 may take.
    sample : str
        The sample that is worked on, where there are samples.
    number, of : int
        Which of how many steps it is.
    done : int
        What of the total is done; at the end of the step, all of it.
    """

    step: str
    total: int = 0
    unit: str = ""
    sample: str = ""
    number: int = 1
    of: int = 1
    done: int = 0


Listener = Callable[[Progress], object]


class _Step:
    """A step that somebody listens to; threads may count at the same time."""

    def __init__(self, progress: Progress, listener: Listener) -> None:
        self.progress, self.listener, self.lock = progress, listener, threading.Lock()

    def reach(self, done: int) -> None:
        """Say that so much is done, if that is more than before."""
        with self.lock:
            if done > self.progress.done and self.progress.total:
                self.progress = replace(self.progress, done=min(done, self.progress.total))
                self.listener(self.progress)


_current: ContextVar[_Step | None] = ContextVar("step", default=None)


@contextmanager
def counted(progress: Progress, listener: Listener | None) -> Iterator[None]:
    """Tell a listener of a step: its beginning, what `advance` counts inside it, and its end."""
    if listener is None:
        yield
        return
    step = _Step(progress, listener)
    token = _current.set(step)
    try:
        listener(progress)
        yield
    finally:
        _current.reset(token)
    step.reach(progress.total)


def advance(amount: int) -> None:
    """Count an amount as done in the step that this code runs in, if anybody listens."""
    step = _current.get()
    if step is not None:
        step.reach(step.progress.done + amount)


def advance_part(of: int) -> None:
    """Count one of `of` equal parts of the step as done, if anybody listens."""
    step = _current.get()
    if step is not None:
        step.reach(step.progress.done + -(-step.progress.total // of))


@contextmanager
def portion(amount: int) -> Iterator[None]:
    """Count an amount as done at the end, less what was counted inside."""
    step = _current.get()
    if step is None:
        yield
        return
    end = step.progress.done + amount
    yield
    step.reach(end)


@contextmanager
def watched(count: Callable[[], int]) -> Iterator[None]:
    """Count while compiled code runs, which calls nobody: a thread looks at what it has done so far.

    Parameters
    ----------
    count : callable
        Returns how much is done since the beginning; it must only read.
    """
    step = _current.get()
    if step is None:
        yield
        return
    before, over = step.progress.done, threading.Event()

    def look() -> None:
        while not over.wait(INTERVAL):
            step.reach(before + count())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
