"""N4FLOW as a part of another pipeline, between two processes of its own: tests/including."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, runner

import n4flow

pytestmark = pytest.mark.engine


def test_a_pipeline_with_n4flow_in_a_subfolder_runs_it_and_is_resumed(nextflow: str, tmp_path: Path):
    project = tmp_path / "pipeline"
    shutil.copytree(ROOT / "tests" / "including", project)
    (project / "n4flow").symlink_to(ROOT)  # as a submodule, or a clone
    volume = np.random.default_rng(5).uniform(10, 200, (6, 40, 50)).astype(np.float32)
    np.save(tmp_path / "a.npy", volume)
    run = runner(nextflow, tmp_path, project)
    first = run("--input", tmp_path / "?.npy", profile="standard")
    assert first.ran() == {"STITCH", "INSPECT", "SHRINK", "TISSUE_MASK", "RENDER", "FINISH", "REGISTER"}
    # with all corrections off what goes in comes out, whatever the pipeline's own parameters are called
    after = n4flow.open_volume(first.outdir / "mouse_a.ome.zarr")
    assert np.array_equal(after.read(slice(None)), volume)
    assert after.voxel_um == {"z": 50, "y": 25, "x": 25}
    assert json.loads((first.outdir / "mouse_a.json").read_text())["corrections"] == []
    resumed = run("--input", tmp_path / "?.npy", "-resume", profile="standard")
    assert resumed.ran() == set()
    assert resumed.ran("CACHED") == first.ran()
    run("--input", tmp_path / "?.npy", "-preview", profile="standard", parser="v2")
