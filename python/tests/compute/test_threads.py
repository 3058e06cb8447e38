"""Pools of threads that are shared by the calls within a block."""

from __future__ import annotations

import threading

import pytest

from n4flow.compute import threads
from n4flow.compute.threads import available_threads, reuse_threads, run_tasks


@pytest.mark.parametrize("most", [1, 3])
def test_a_block_has_no_more_threads_than_it_asks_for(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "_limit", [])
    together = threading.Barrier(most, timeout=20)

    def work(_task: int) -> int:
        together.wait()  # All threads that there are must come.
        return threading.get_ident()

    with reuse_threads(most):
        found = run_tasks(work, range(4 * most))
        assert available_threads() == (1 if most == 1 else 4)
        with reuse_threads():  # takes part in what is there
            found += run_tasks(work, range(4 * most))
    assert len(set(found)) == most
    assert (threading.get_ident() in found) == (most == 1)
    assert available_threads() == 4
