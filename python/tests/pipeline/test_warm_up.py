"""Kernels compiled side by side are those that are used, and processes that compile them end with who started them."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from n4flow.n4_bias.api import n4
from n4flow.n4_bias.cpu import level_kernels
from n4flow.pipeline import warm_up

PARTS = "sharpen", "measure_change", "fit_sweep"


def test_parts_that_are_compiled_beside_a_level_have_the_types_that_it_calls(monkeypatch) -> None:
    """Otherwise they would be compiled twice: numba counts what it finds neither here nor in its cache."""
    level, parts = level_kernels.run_level, [getattr(level_kernels, name) for name in PARTS]
    counts = []

    def misses() -> list[int]:
        return [sum(part.stats.cache_misses.values()) for part in parts]

    def both(*arguments):
        level(*arguments)
        counts.append(misses())
        level_kernels.compile_parts(*arguments)
        counts.append(misses())

    monkeypatch.setattr(level_kernels, "run_level", both)
    plane = np.add.outer(np.arange(48, dtype=np.float32), np.arange(1, 61, dtype=np.float32))
    n4(plane, plane > 0, iters=(2,), backend="cpu")
    assert counts[0] == counts[1]
    assert [len(part.overloads) for part in parts] == [1, 1, 1]


def test_a_job_that_is_done_ends_well() -> None:
    with warm_up._start("n4") as job:
        assert job.wait(timeout=300) == 0


STARTS = """
import sys
from n4flow.pipeline import warm_up

process = warm_up._start("chain-uint8")
print(process.pid, flush=True)
sys.stdin.readline()
"""


def test_a_job_ends_with_the_process_that_started_it() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STARTS], **pipes) as parent:
        job = int(parent.stdout.readline())
        assert running(job)
        parent.kill()
    until = time.monotonic() + 30
    while running(job) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running(job)


def running(process: int) -> bool:
    """Whether a process is there and has not ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
