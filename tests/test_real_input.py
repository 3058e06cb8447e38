"""Real input through the workflow: a whole mouse brain as OME-TIFF, the MNI152 template as NIfTI and OME-Zarr."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import nilearn.datasets
import numpy as np
import pytest
from conftest import ROOT, Run

import n4flow
from n4flow.volume import write_volume

pytestmark = pytest.mark.engine

MOUSE = ROOT.parent / "shared" / "data" / "mouse_brain_50um.tif"
TEMPLATE = Path(nilearn.datasets.__file__).parent / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template at half its resolution, as NIfTI with an oblique affine."""
    source = nibabel.load(TEMPLATE)
    values = np.asarray(source.dataobj, dtype=np.float32)[::2, ::2, ::2]
    affine = source.affine @ np.diag([2, 2, 2, 1])
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    path = tmp_path_factory.mktemp("template") / "t1.nii.gz"
    nibabel.save(image, path)
    return path


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
    # what varies smoothly in plane is removed, anatomy is kept: planes before and after are strongly correlated
    for z in (60, 135, 200):
        inside = tissue[z]
        assert np.corrcoef(before[z][inside], after[z][inside])[0, 1] > 0.8
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["plan"]["sections"] == 30


@pytest.mark.parametrize("kind", ["t1.nii.gz", "t1_v4.ome.zarr", "t1_v5.ome.zarr"])
def test_the_template_gives_the_same_voxels_from_every_format(workflow: Run, template: Path, tmp_path: Path, kind: str):
    volume = n4flow.open_volume(template)
    image = template
    if kind != "t1.nii.gz":
        image = tmp_path / kind
        write_volume(image, volume.read(slice(None)), like=volume, ome_zarr_version="0.4" if "v4" in kind else "0.5")
    run = workflow("--input", image, "--bias", "volume", "--shrink", 1, "--match", "off", "--smooth_z", 0)
    written = next(run.outdir.glob("*/*[15].ome.zarr"))
    assert n4flow.open_volume(written).voxel_um == pytest.approx({"z": 2000.0, "y": 2000.0, "x": 2000.0})
    expected = n4flow.run(template, tmp_path / "own", bias="volume", shrink=1, match="off", smooth_z=0).samples[0]
    own, workflow_s = n4flow.open_volume(expected.store), n4flow.open_volume(written)
    assert np.array_equal(own.read(slice(None)), workflow_s.read(slice(None)))
