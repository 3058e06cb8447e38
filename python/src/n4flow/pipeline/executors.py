"""Executors of a pass: its slabs run one after the other in this process, or on the workers of a dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from n4flow.compute.progress import advance_part
from n4flow.errors import InputError

log = logging.getLogger("n4flow")


# Runs the passes over some slabs, and returns what each returns, in order.
Executor = Callable[[Sequence[Callable[[], Any]]], list[Any]]


def run_here(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run slabs in this process, one after the other, each with all threads."""
    return [call() for call in calls]


@contextmanager
def executor(scheduler: str | None) -> Iterator[Executor]:
    """Yield the executor of a pass: this process, or the cluster at the address of a dask scheduler.

    The workers of a cluster see the same files under the same paths; an error of a worker is raised here.

    Raises
    ------
    InputError
        dask.distributed is not installed, or there is no scheduler at that address.
    """
    if scheduler is None:
        yield run_here
        return
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        msg = "a dask scheduler needs dask.distributed; install n4flow[distributed]"
        raise InputError(msg) from error
    try:
        client = Client(scheduler, timeout="30s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        msg = (
            f"there is no dask scheduler at {scheduler} ({type(error).__name__}); give its address, as tcp://HOST:8786"
        )
        raise InputError(msg) from error

    def run_there(calls: Sequence[Callable[[], Any]]) -> list[Any]:
        futures = [client.submit(call, pure=False) for call in calls]
        for _finished in as_completed(futures, loop=client.loop):
            advance_part(len(futures))
        return client.gather(futures)

    with client:
        if not client.scheduler_info()["workers"]:  # they may be waiting in a queue themselves
            log.warning("warning: the dask scheduler at %s has no workers yet; waiting for one", scheduler)
        yield run_there
