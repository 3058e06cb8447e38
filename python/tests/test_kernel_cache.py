"""Kernels of a read-only cache folder are used; missing ones are compiled and the folder stays as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import json, os, sys
from numba import config, njit

if sys.argv[1] == "read-only":
    writable = os.access  # root may write anywhere, so the answer for this folder is made up
    os.access = lambda path, mode: path != config.CACHE_DIR and writable(path, mode)

@njit(cache=True)
def double(value):
    return 2 * value

results = [double(1)] + ([double(1.5)] if sys.argv[1] == "read-only" else [])
print(json.dumps([results, sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values())]))
"""


@pytest.fixture
def run(tmp_path: Path):
    """Run the module above in a new process, with a cache folder that keeps what earlier runs compiled."""
    module, cache = tmp_path / "module.py", tmp_path / "cache"
    module.write_text(MODULE)
    cache.mkdir()
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_CACHE_LOCATOR_CLASSES": "n4flow.kernel_cache.ReadOnlyCacheLocator",
        "TMPDIR": str(tmp_path),
    }

    def run(mode: str) -> str:
        command = [sys.executable, module, mode]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    return run


def test_read_only_cache(run, tmp_path: Path):
    assert run("writable") == "[[2], 0, 1]"
    compiled = sorted((tmp_path / "cache").rglob("*"))
    assert run("read-only") == "[[2, 3.0], 1, 1]"  # the integer kernel is found, the one for floats is compiled
    assert sorted((tmp_path / "cache").rglob("*")) == compiled
    assert not list(tmp_path.glob("n4flow-kernels-*"))


def test_read_only_and_empty(run):
    assert run("read-only") == "[[2, 3.0], 0, 2]"
