"""The checks that nf-test asks of a process alone, asked of the tasks of a whole run."""

from __future__ import annotations

import re

import pytest
from checks import CHECKS, Case
from conftest import ROOT, PhantomRun

from n4flow.errors import N4flowError

pytestmark = pytest.mark.engine

# What a process's task leaves for its check, in its folder.
MADE = {
    "INSPECT": "plan.json",
    "SHRINK": "shrunken_*.npz",
    "TISSUE_MASK": "masks.npz",
    "N4_SECTIONS": "20_*.npz",
    "PROVE": "proven/20_*.npz",
    "PLANE_STATISTICS": "histograms_*.npz",
    "INTENSITY": "estimated/*.npz",
    "RENDER": "slab_*",
    "FINISH": "published/phantom",
    "PROVENANCE": "published",
}


@pytest.fixture(scope="module")
def case(phantom_run: PhantomRun) -> Case:
    """Return the phantom of the run, beside which lies what its processes were given."""
    folder, run = phantom_run.phantom.parent, phantom_run.first
    (folder / "1").mkdir()
    (task,) = run.folders("PROVE")
    for file in task.glob("proven/20_*.npz"):
        (folder / "1" / file.name).symlink_to(file)
    (folder / "masks.npz").symlink_to(run.folders("TISSUE_MASK")[0] / "masks.npz")
    return Case(folder)


@pytest.mark.parametrize("process", MADE)
def test_a_process_makes_of_the_phantom_what_its_truth_says(process: str, case: Case, phantom_run: PhantomRun):
    files = [file for task in phantom_run.first.folders(process) for file in sorted(task.glob(MADE[process]))]
    assert files
    CHECKS[process](case, files)


def test_a_check_notices_one_wrong_voxel(case: Case, phantom_run: PhantomRun):
    (folder,) = phantom_run.first.folders("FINISH")
    (chunk, *_others) = sorted((folder / "published/phantom/phantom.ome.zarr/0/c").rglob("*/*/*"))
    kept = chunk.read_bytes()
    chunk.write_bytes(kept[:200] + bytes([kept[200] ^ 1]) + kept[201:])
    try:
        with pytest.raises((AssertionError, N4flowError)):
            CHECKS["FINISH"](case, [folder / "published/phantom"])
    finally:
        chunk.write_bytes(kept)


def test_every_module_has_a_suite_and_every_process_a_check():
    modules = {path.stem: path.read_text() for path in (ROOT / "modules").glob("*.nf")}
    suites = {path.name.removesuffix(".nf.test") for path in (ROOT / "tests" / "modules").glob("*.nf.test")}
    assert suites == set(modules)
    processes = {name for text in modules.values() for name in re.findall(r"^process (\w+) ", text, re.MULTILINE)}
    assert processes == set(CHECKS) | {"PROBE_GPU", "REMOTE_STATE", "JOIN_CHANNELS"}  # no file of the phantom
