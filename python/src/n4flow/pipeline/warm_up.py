"""Compile every kernel once, by using it: for a container image, or after an install.

Jobs run in processes of their own, since numba compiles one kernel at a time in a process. Of the kernels that several
need, each is compiled by the one that comes first (`compute.numba_cache`); the others wait for it, at no cost.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from n4flow.compute import clock
from n4flow.compute.threads import limit_threads, thread_limit

log = logging.getLogger("n4flow")
DTYPES = ("uint8", "uint16", "float32")  # what stores hold; each is a compilation of its own
# What each process of `warm_up` does, the longest first.
JOBS = ("n4", "n4-parts", *(f"chain-{dtype}" for dtype in reversed(DTYPES)))


def warm_up() -> dict[str, Any]:
    """Run the chain and N4 on tiny volumes of every common data type, so that numba's cache holds every kernel.

    Returns
    -------
    dict
        `compiled_seconds`, in all, and `processes`, how many ran at a time.
    """
    started = time.perf_counter()
    # One more than cores, because some wait for others; each takes 0.5 GB.
    processes = 1 if thread_limit() == 1 else thread_limit() + 1

    def finish(job: str) -> None:
        with _start(job) as process:
            if process.wait():
                msg = f"compiling kernels for {job} failed; its messages are above"
                raise RuntimeError(msg)
        log.info("compiled kernels for %s after %.0f s", job, time.perf_counter() - started)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(finish, JOBS))
    return {"compiled_seconds": round(time.perf_counter() - started, 1), "processes": min(processes, len(JOBS))}


def compile_beside(*jobs: str) -> None:
    """Let other cores, if there are any, do jobs as soon as this process has to compile a kernel."""

    def start() -> None:
        if thread_limit() > 1:
            for job in jobs:
                atexit.register(_start(job, stderr=subprocess.DEVNULL).kill)

    clock.at_first_kernel(start)


def _start(job: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """Start a process that does a job, and that ends at once when this one has ended or closed the pipe."""
    command = [sys.executable, "-P", "-m", "n4flow.pipeline.warm_up", job]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, **pipes)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not `sys.stdin`, which Python wants to lock when it ends
    os._exit(1)


def do(job: str, folder: Path) -> None:
    """Do one of JOBS: use kernels on a tiny volume."""
    import numpy as np

    from n4flow.n4_bias.api import n4
    from n4flow.phantom.options import PhantomOptions
    from n4flow.phantom.store import Phantom
    from n4flow.pipeline.run import run

    kind, _dash, dtype = job.partition("-")
    if kind == "n4":
        from n4flow.n4_bias.cpu import level_kernels

        if dtype == "parts":
            level_kernels.run_level = level_kernels.compile_parts
        plane = np.add.outer(np.arange(48, dtype=np.float32), np.arange(1, 61, dtype=np.float32))
        n4(plane, plane > 0, iters=(2, 2), backend="cpu")
        return
    # wide enough for a deeper level and for chunks at an edge
    phantom = Phantom(PhantomOptions(sections=2, planes=4, size=(48, 300), dtype=dtype))
    image = folder / f"{dtype}.ome.zarr"
    phantom.write(image)
    chain: dict[str, Any] = {
        "iterations": "2,2",
        "backend": "cpu",
        "sections": 2,
        "shrink": 2,
        "dtype": "input",
    }
    run(image, folder / dtype, bias="two_pass", **chain)
    run(image, folder / f"{dtype}_harmonized", harmonize="auto", **chain)
    if dtype == DTYPES[-1]:  # from here on every type is float32
        run(image, folder / "background", background_radius_um=500, **chain)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.setLevel(logging.WARNING)
    limit_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        do(sys.argv[1], Path(scratch))
