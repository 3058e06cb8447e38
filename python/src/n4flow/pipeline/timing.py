"""The clock of a stage and its numbers: seconds, warnings, and how they are written as JSON."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from n4flow.compute import clock
from n4flow.compute.malloc import trim_heap
from n4flow.errors import N4flowWarning
from n4flow.report.text import plain

log = logging.getLogger("n4flow")
EXACT = 17  # Significant digits that tell every float64 from the next.


@contextmanager
def stage(name: str, **numbers: Any) -> Iterator[dict[str, Any]]:
    """Time a stage and collect what it says; memory that the one before it freed is given back first.

    Parameters
    ----------
    name : str
        Name of the workflow's process.
    **numbers
        What is known before it begins.

    Yields
    ------
    dict
        To be filled with the stage's numbers; `stage`, `seconds` and `warnings` are added. Each of n4flow's warnings is
        logged once.
    """
    trim_heap()
    collected: dict[str, Any] = {"stage": name, **numbers}
    started = clock.now()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", N4flowWarning)
        yield collected
    said = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, N4flowWarning)))
    for message in said:
        log.warning("warning: %s", message)
    collected.update(seconds=round(clock.now() - started, 3), warnings=said)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s", json.dumps(plain(collected), ensure_ascii=False))


def dumps(value: Any) -> str:
    """Return JSON text; NumPy scalars and arrays as numbers and lists, what is not finite as null."""
    return json.dumps(plain(value, EXACT), indent=2, ensure_ascii=False, allow_nan=False)
