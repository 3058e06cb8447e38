"""Kernels of a read-only cache folder are used; missing ones are compiled and the folder stays as it is."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_rooms

from n4flow.compute import numba_cache

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
        "NUMBA_CACHE_LOCATOR_CLASSES": "n4flow.compute.numba_cache.ReadOnlyCacheLocator",
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


KERNEL = """
import json, os, sys

import numba
from numba.core.caching import IndexDataCacheFile

from n4flow.compute import jit, numba_cache, simd  # what all kernels need is there before a process begins


def call(folder, digest, *words):
    numba.config.CACHE_DIR = folder
    if digest:
        numba_cache.sources_digest = lambda _file: digest  # as if a file that is imported had changed
    from n4flow.n4_bias.cpu.convergence_kernels import cv

    if "killed" in words:  # before the data, after the index
        IndexDataCacheFile._save_data = lambda *_: os._exit(0)
    if "at once" in words:  # another process looked at the index before this one wrote it
        IndexDataCacheFile._load_index = lambda _self: {}
    cv(*([2, 0, 1] if "whole" in words else [2.0, 0.0, 1.0]))
    return f"{sum(cv.stats.cache_hits.values())} {sum(cv.stats.cache_misses.values())}"


for line in sys.stdin:
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, call(*json.loads(line)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        said = answer.read()
    print(json.dumps([said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[subprocess.Popen[str]]:
    """Start what begins a process for each line that it is given, with numba imported and no kernel."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KERNEL], **pipes) as server:
        yield server
        server.stdin.close()


@pytest.fixture
def kernel(processes: subprocess.Popen[str], tmp_path: Path) -> Callable[..., str]:
    """Return a function that calls a kernel in a new process, and what that printed: hits and misses."""

    def call(*words: str) -> str:
        print(json.dumps([str(tmp_path), *words]), file=processes.stdin, flush=True)
        said, code = json.loads(processes.stdout.readline())
        assert code == 0
        return said

    return call


def test_kernels_are_as_fresh_as_what_they_are_made_of(kernel: Callable[..., str]) -> None:
    """A kernel in an unchanged file may hold parts of another file that has changed."""
    found = [kernel(digest) for digest in ("", "", "changed", "changed", "")]
    assert found == ["0 1", "1 0", "0 1", "1 0", "0 1"]


def test_a_stamp_is_of_every_file_that_python_would_read_for_a_kernel() -> None:
    """By the imports that Python's own parser finds, and theirs."""
    package = numba_cache.PACKAGE
    graph = test_rooms.imports(package)
    files = {test_rooms.module_name(file, package): file for file in package.rglob("*.py")}
    kernels = [module for module in graph if {"n4flow.compute.jit", "n4flow.compute.numba_cache"} & graph[module]]
    assert len(kernels) > 15
    for module in kernels:
        needed, new = {module}, {module}
        while new := set().union(*(graph[each] for each in new)) - needed:
            needed |= new
        found = numba_cache.sources(files[module])
        assert {files[each] for each in needed} <= found
        assert {file.name for file in found - {files[each] for each in needed}} <= {"__init__.py"}
        assert package / "report" / "html.py" not in found


def test_a_stamp_changes_with_what_a_kernel_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(numba_cache.PACKAGE, tmp_path / "n4flow", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(numba_cache, "PACKAGE", tmp_path / "n4flow")
    kernels = tmp_path / "n4flow" / "n4_bias" / "cpu" / "level_kernels.py"

    def stamp() -> str:
        for function in (numba_cache.imported, numba_cache.sources_digest):
            function.cache_clear()
        return numba_cache.sources_digest(kernels)

    before = stamp()
    (tmp_path / "n4flow" / "report" / "html.py").write_text("")
    assert stamp() == before
    for part in ("compute/simd.py", "n4_bias/cpu/sweep_kernels.py", "n4_bias/cpu/level_kernels.py"):
        file = tmp_path / "n4flow" / part
        file.write_text(file.read_text() + "\n")
        assert stamp() != before
        before = stamp()


def test_a_new_index_that_names_old_data_is_no_hit(kernel: Callable[..., str]) -> None:
    assert [kernel(""), kernel("changed", "killed")] == ["0 1", ""]
    assert [kernel("changed"), kernel("changed")] == ["0 1", "1 0"]


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 0.99])
def test_files_that_were_cut_short_are_written_anew(
    kernel: Callable[..., str], tmp_path: Path, kind: str, left: float
) -> None:
    assert kernel("") == "0 1"
    (file,) = tmp_path.rglob(f"*.cv-*.{kind}")
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    assert [kernel(""), kernel("")] == ["0 1", "1 0"]


def test_a_byte_that_flipped_in_compiled_code_is_seen(kernel: Callable[..., str], tmp_path: Path) -> None:
    assert kernel("") == "0 1"
    (file,) = tmp_path.rglob("*.cv-*.nbc")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert [kernel(""), kernel("")] == ["0 1", "1 0"]


def test_data_that_two_processes_wrote_at_once_are_told_apart(kernel: Callable[..., str], tmp_path: Path) -> None:
    assert kernel("") == "0 1"
    (data,) = tmp_path.rglob("*.cv-*.nbc")
    floats = data.read_bytes()
    assert kernel("", "at once", "whole") == "0 1"
    assert data.read_bytes() != floats  # of the same name
    data.write_bytes(floats)  # the first was the last to write
    assert [kernel("", "whole"), kernel("", "whole"), kernel(""), kernel("")] == ["0 1", "1 0", "0 1", "1 0"]


SHARED = """
import sys

from n4flow.compute import numba_cache
from n4flow.n4_bias.cpu.convergence_kernels import cv

print("ready", flush=True)
sys.stdin.readline()
cv(2.0, 0.0, 1.0)
print(sum(cv.stats.cache_hits.values()), sum(cv.stats.cache_misses.values()))
"""


def test_a_kernel_that_processes_need_at_once_is_compiled_by_one_of_them(tmp_path: Path) -> None:
    """The others wait, and read it from the cache."""
    command = [sys.executable, "-c", SHARED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.communicate()[0] for process in processes) == ["0 1\n", "1 0\n", "1 0\n"]


def test_a_process_that_ends_while_it_compiles_holds_nobody_up(kernel: Callable[..., str]) -> None:
    assert [kernel("", "killed"), kernel(""), kernel("")] == ["", "0 1", "1 0"]
