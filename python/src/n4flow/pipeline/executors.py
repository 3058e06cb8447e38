"""Executors of a pass: its slabs run one after the other in this process, or on the workers of a dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from n4flow.errors import InputError

log = logging.getLogger("n4flow")


class LocalExecutor:
    """Slabs run in this process, one after the other, each with all threads."""

    def results(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what each call returns, in order."""
        return [call() for call in calls]


class ClusterExecutor(LocalExecutor):
    """Slabs run on the workers of a cluster, which see the same files under the same paths.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def results(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what each call returns, in order; an error of a worker is raised here."""
        found: list[Any] = self._client.gather([self._client.submit(call, pure=False) for call in calls])
        return found


@contextmanager
def executor(scheduler: str | None) -> Iterator[LocalExecutor]:
    """Yield the executor of a pass: this process, or the cluster at the address of a dask scheduler.

    Raises
    ------
    InputError
        dask.distributed is not installed, or there is no scheduler at that address.
    """
    if scheduler is None:
        yield LocalExecutor()
        return
    try:
        from distributed import Client
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
    with client:
        if not client.scheduler_info()["workers"]:  # they may be waiting in a queue themselves
            log.warning("warning: the dask scheduler at %s has no workers yet; waiting for one", scheduler)
        yield ClusterExecutor(client)
