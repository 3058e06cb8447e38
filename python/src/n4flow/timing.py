"""The clock of a stage: seconds, warnings and the numbers that the report shows."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from n4flow.errors import N4flowWarning

log = logging.getLogger("n4flow")


@contextmanager
def stage(name: str, **numbers: Any) -> Iterator[dict[str, Any]]:
    """Time a stage and collect what it says.

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
    collected: dict[str, Any] = {"stage": name, **numbers}
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", N4flowWarning)
        yield collected
    said = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, N4flowWarning)))
    for message in said:
        log.warning("warning: %s", message)
    collected.update(seconds=round(time.perf_counter() - started, 3), warnings=said)
