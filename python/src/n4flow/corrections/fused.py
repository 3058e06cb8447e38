"""Corrections that follow each other voxel by voxel, and are one pass over memory.

The bias field, the range of a plane, the map of its section and the gain of its tissue come in this order in every
recipe of the workflow; each is one argument of a compiled loop, see `base.FUSED`. On the host, that loop takes a plane
through all four while it is in cache; on a GPU a kernel takes a voxel through them, see `fused_gpu`. Other corrections
are applied one by one. The bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from n4flow.compute.threads import parallel_planes
from n4flow.corrections.base import FUSED, ArgumentsOfRun, Correction, Where


def groups(corrections: Sequence[Correction]) -> list[list[Correction]]:
    """Cut corrections into runs that are one pass: those in the order of `FUSED`, one each; others alone."""
    found: list[list[Correction]] = []
    last = len(FUSED)
    for correction in corrections:
        rank = len(FUSED) if correction.fused is None else FUSED.index(correction.fused)
        if last < rank < len(FUSED):
            found[-1].append(correction)
        else:
            found.append([correction])
        last = rank
    return found


def on_host(group: Sequence[Correction], block: np.ndarray, where: Where) -> np.ndarray:
    """Return a NumPy block that went through the corrections of one pass; it may be overwritten."""
    from n4flow.corrections import kernels

    block = np.require(block, np.float32, ["C", "W"])
    nothing = dict(zip(FUSED, (kernels.NO_FIELD, kernels.NO_LIMITS, kernels.NO_MAP, kernels.NO_GAIN), strict=True))
    sources = sources_of(group, block, where)

    def correct(start: int, stop: int) -> None:
        for planes, given in runs(sources, start, stop):
            kernels.correct_planes(block[planes], *(given.get(name) or nothing[name] for name in FUSED))

    parallel_planes(correct, len(block))
    return block


def sources_of(group: Sequence[Correction], block: Any, where: Where) -> dict[str, ArgumentsOfRun]:
    """Return the source of each argument that the corrections of one pass are; see `Correction.fused_arguments`."""
    return {correction.fused: correction.fused_arguments(block, where) for correction in group if correction.fused}


def runs(sources: dict[str, ArgumentsOfRun], start: int, stop: int) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield planes of a block, from one to another, and the arguments that they have in common."""
    while start < stop:
        end, given = stop, {}
        for name, arguments in sources.items():
            end, given[name] = arguments(start, end)
        yield slice(start, end), given
        start = end
