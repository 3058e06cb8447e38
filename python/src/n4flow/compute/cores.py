"""How many cores a process may use: those that it is bound to, and what its control groups allow of their time."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and by the quota of its control groups."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota())))


@functools.cache
def _quota() -> float:
    return quota(*CONTROL_GROUPS)


def quota(root: Path, own: Path) -> float:
    """Return the time of how many cores the control groups of a process allow, infinity without a quota.

    `docker run --cpus 2` and Kubernetes set a quota and leave the affinity as it is.

    Parameters
    ----------
    root : path
        Where control groups are mounted.
    own : path
        File with the groups of the process, as Linux writes it.
    """
    return min(_quotas(root, own), default=math.inf)


def _quotas(root: Path, own: Path) -> Iterator[float]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        mount = root if number == "0" else root / "cpu"
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):  # a group is held to the quota of those that it is in, too
            yield from _of_group(folder)
            if folder == mount:
                break


def _of_group(folder: Path) -> Iterator[float]:
    """Yield the quota of one group: `cpu.max` has 'QUOTA PERIOD', or 'max' for none; version 1 has a file for each."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            allowed, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue
        if allowed > 0 < period:
            yield allowed / period
