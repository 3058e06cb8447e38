"""The tutorials, run as they are written, and what their results must be.

The tutorial of the cluster is run by test_slurm.py, on a Slurm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from conftest import ROOT
from pages import alike, follow

TUTORIALS = ROOT / "docs" / "tutorials"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a: 3 of 0.720, ... in 2 s\n", "a: 3 of  0.721, b, c in 1 min 3 s\n", True),
        ("3 MB at 1.5 MB/s\n", "compiling kernels for this processor\n3 kB at 2 MB/s\n", True),
        ("...\ndone.\n...\n", "a\ndone.\nb\n", True),
        ("...\ndone.\n...\n", "done.\n", True),
        ("3 of 4\n", "3 of 5\n", False),  # whole numbers are equal
        ("r 0.720\n", "r 0.730\n", False),  # others within 1 %
        ("pass\n", "pass\nwarning: something\n", False),
    ],
)
def test_what_a_page_shows_is_compared_with_what_is_printed(shown: str, printed: str, same: bool):
    assert alike(shown, printed) is same


def test_a_brain_as_a_folder_of_tiffs(tmp_path: Path):
    follow(TUTORIALS / "tiffs.md", tmp_path)
    before = tifffile.imread(sorted((tmp_path / "planes").iterdir())).astype(float)
    store = tmp_path / "results" / "planes" / "planes.ome.zarr"
    after = zarr.open_array(store / "0", mode="r")[:].astype(float)
    (axes,) = json.loads((store / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert axes["datasets"][0]["coordinateTransformations"][0]["scale"] == [50, 25, 25]
    tissue = np.load(tmp_path / "known.npz")["tissue"]

    def steps(volume: np.ndarray) -> float:
        """Return the median size of the change of brightness at the four cuts."""
        found = []
        for z in (8, 16, 24, 32):
            inside = tissue[z - 1] & tissue[z] & (after[z - 1] > 0) & (after[z] > 0)
            found.append(abs(np.median(np.log(volume[z][inside] / volume[z - 1][inside]))))
        return float(np.median(found))

    # attenuation of 0.5 within each section steps back at each cut
    assert steps(before) > 0.3
    assert steps(after) < 0.05


def test_a_t1_on_a_laptop(tmp_path: Path):
    follow(TUTORIALS / "t1.md", tmp_path)
    image, corrected, field = (sitk.ReadImage(tmp_path / f"{name}.nii.gz") for name in ("t1", "t1_corrected", "field"))
    for other in (corrected, field):  # on the image's grid, in the space that SimpleITK finds it in
        assert other.GetSize() == image.GetSize()
        assert np.allclose(other.GetSpacing(), image.GetSpacing())
        assert np.allclose(other.GetOrigin(), image.GetOrigin())
    quotient = sitk.GetArrayFromImage(image) / sitk.GetArrayFromImage(field)
    assert np.allclose(sitk.GetArrayFromImage(corrected), quotient, rtol=1e-5, atol=1e-4)
    # both calls find the field that was put in
    true = np.log(nibabel.load(tmp_path / "true_field.nii.gz").get_fdata())
    inside = nibabel.load(tmp_path / "truth.nii.gz").get_fdata() > 0
    for name in ("field", "ants_field"):
        found = np.log(nibabel.load(tmp_path / f"{name}.nii.gz").get_fdata())
        assert np.corrcoef(found[inside], true[inside])[0, 1] > 0.9, name


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((TUTORIALS / "library.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear the outputs before the notebook is committed"
            exec("".join(cell["source"]), names)
    before, after = names["scores"]
    assert after > before
    written = zarr.open_array(tmp_path / "results" / "brain" / "brain.ome.zarr" / "0", mode="r")[:]
    inside, truth = names["known"].tissue, names["known"].truth
    assert np.isclose(np.corrcoef(written[inside], truth[inside])[0, 1], after)
