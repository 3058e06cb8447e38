"""Real input through the workflow: a whole mouse brain as OME-TIFF, the MNI152 template as NIfTI and OME-Zarr."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import nilearn.datasets
import numpy as np
import pytest
from conftest import ROOT, Run
from scipy.stats import spearmanr

import n4flow
from n4flow.io.writers import write_volume

pytestmark = pytest.mark.engine

PARAMETERS = {"bias": "volume", "shrink": 1, "match": "off", "smooth_z": 0}
MOUSE = ROOT.parent / "shared" / "data" / "mouse_brain_50um.tif"
UNIT = "its header names no unit of length, and millimetres are assumed"
TEMPLATE = Path(nilearn.datasets.__file__).parent / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template at half its resolution; like the original, it does not say the unit of its voxel size."""
    source = nibabel.load(TEMPLATE)
    values = np.asarray(source.dataobj, dtype=np.float32)[::2, ::2, ::2]
    path = tmp_path_factory.mktemp("template") / "t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, source.affine @ np.diag([2, 2, 2, 1])), path)
    return path


@pytest.fixture(scope="module")
def own(template: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return what `n4flow.run` makes of the template."""
    result = n4flow.run(template, tmp_path_factory.mktemp("own"), voxel_um="2000 2000 2000", **PARAMETERS)
    return n4flow.open_volume(result.samples[0].store).read(slice(None))


def test_the_template_gives_the_same_voxels_from_other_formats(
    workflow: Run, template: Path, own: np.ndarray, tmp_path: Path
):
    volume = n4flow.open_volume(template, voxel_um=(2000, 2000, 2000))
    old = tmp_path / "v4.ome.zarr"  # the phantom is of version 0.5
    write_volume(old, volume.read(slice(None)), like=volume, ome_zarr_version="0.4")
    (tmp_path / "sheet.csv").write_text(f"sample,image\nt1,{template}\nv4,{old}\n")
    settings = [text for name, value in PARAMETERS.items() for text in (f"--{name}", str(value))]
    run = workflow("--input", tmp_path / "sheet.csv", *settings)
    for sample in ("t1", "v4"):
        written = n4flow.open_volume(run.outdir / sample / f"{sample}.ome.zarr")
        assert written.voxel_um == {"z": 2000.0, "y": 2000.0, "x": 2000.0}
        assert np.array_equal(written.read(slice(None)), own)
    said = [line for line in run.output.splitlines() if UNIT in line]  # taken for millimetres, which is said
    assert len(said) == 1
    assert "sample t1" in said[0]


def test_a_mouse_brain_of_thirty_sections(workflow: Run, tmp_path: Path):
    if not MOUSE.exists():
        pytest.skip("the mouse brain is not beside this checkout")
    rows = [f"m{i:02d},{9 * i},{9 * i + 9}" for i in range(30)]
    (tmp_path / "sections.csv").write_text("id,z_start,z_stop\n" + "\n".join(rows) + "\n")
    run = workflow("--input", MOUSE, "--sections", tmp_path / "sections.csv", "--shrink", 2, "--slab_planes", 128)
    folder = run.outdir / "mouse_brain_50um"
    volume = n4flow.open_volume(folder / "mouse_brain_50um.ome.zarr")
    assert volume.shape == (270, 193, 271)
    assert volume.voxel_um == {"z": 50.0, "y": 50.0, "x": 50.0}
    after = volume.read(slice(None))
    before = n4flow.open_volume(MOUSE).read(slice(None))
    assert np.isfinite(after).all()
    assert 0 <= after.min() < after.max() <= 1.5
    # tissue is brighter than what surrounds it, in every fifth plane, as it was
    tissue = n4flow.open_volume(folder / "mask.ome.zarr").read(slice(None)) > 0
    assert 0.2 < tissue.mean() < 0.7
    for z in range(20, 250, 5):
        assert np.median(after[z][tissue[z]]) > 3 * np.median(after[z][~tissue[z]])
    # broad shading is divided out, of anatomy too; the order of grey values within a plane mostly stays
    for z in (60, 135, 200):
        inside = tissue[z]
        assert spearmanr(before[z][inside], after[z][inside])[0] > 0.7
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["plan"]["sections"] == 30
