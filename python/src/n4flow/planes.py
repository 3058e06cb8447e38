"""What a stage does to every array it is given: check it, and share its planes out to threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from n4flow.errors import InputError

_limit: list[int] = []  # one number, once `limit_threads` was called


def available_threads() -> int:
    """Return how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, *_limit) if _limit else cores


def limit_threads(threads: int) -> None:
    """Let the stages of this process use at most so many threads; a job may own fewer cores than it sees."""
    _limit[:] = [max(1, int(threads))]


def run_tasks(function: Callable[..., Any], tasks: Iterable[Any], threads: int | None = None) -> list[Any]:
    """Return `function(task)` for each task, in order, computed by `threads` threads."""
    tasks = list(tasks)
    workers = min(threads or available_threads(), len(tasks))
    if workers <= 1:
        return [function(task) for task in tasks]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, tasks))


def as_mask(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Any:
    """Return `mask` as a bool array of `shape`: bool, 0/1, 0/255 and float masks alike; what is not 0 is inside.

    Raises
    ------
    InputError
        Another shape; the sentence gives both.
    """
    mask = mask if hasattr(mask, "shape") else np.asarray(mask)
    if tuple(mask.shape) != tuple(shape):
        msg = f"{name} must have the shape {tuple(shape)} of the volume, got {tuple(mask.shape)}; resample it"
        raise InputError(msg)
    return mask if mask.dtype == bool else (mask != 0) & (mask == mask)  # NaN is outside


def as_block(block: Any, name: str = "volume") -> Any:
    """Return `block` if it is a (Z, Y, X) array of real numbers with at least one voxel; else an InputError."""
    block = block if hasattr(block, "dtype") else np.asarray(block)
    if block.ndim != 3 or 0 in block.shape or block.dtype.kind not in "buif":
        msg = f"{name} must be a (Z, Y, X) array of real numbers, not empty, got {tuple(block.shape)} {block.dtype}"
        raise InputError(msg)
    return block
