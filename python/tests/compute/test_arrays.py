"""Kinds of arrays that public functions take."""

import sys
import types

import numpy as np
import pytest

import n4flow
from n4flow.errors import InputError
from n4flow.io.writers import write_volume

IMAGE = np.random.default_rng(0).gamma(9, 10, (6, 12, 14)).astype(np.float32)
MASK = np.ones(IMAGE.shape, bool)


@pytest.fixture
def labelled(monkeypatch):
    """An array with dims, made as xarray's `DataArray` is: `data`, and `copy` with other data."""
    module = types.ModuleType("xarray")

    class DataArray:
        def __init__(self, data, dims):
            self.data, self.dims, self.shape, self.dtype = data, dims, data.shape, data.dtype

        def copy(self, data):
            return DataArray(data, self.dims)

    DataArray.__module__ = "xarray"
    monkeypatch.setitem(sys.modules, "xarray", module)
    return DataArray


def test_lists_and_what_numpy_can_read_are_taken(tmp_path):
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(store=str(tmp_path / "a.zarr"), data=IMAGE)
    expected = n4flow.n4(IMAGE, MASK, iters=(2, 2))
    for given in (IMAGE.tolist(), stored):
        np.testing.assert_array_equal(n4flow.n4(given, MASK, iters=(2, 2)), expected)
        np.testing.assert_array_equal(
            n4flow.normalize_volume(given, MASK[0])[0], n4flow.normalize_volume(IMAGE, MASK[0])[0]
        )


def test_results_of_a_labelled_array_keep_its_labels(labelled):
    expected = n4flow.n4_correct(IMAGE, MASK, n_iterations=(2, 2), shrink_factor=1)
    image = labelled(IMAGE, ("z", "y", "x"))
    results = n4flow.n4_correct(image, labelled(MASK, ("z", "y", "x")), n_iterations=(2, 2), shrink_factor=1)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dims == ("z", "y", "x")
        np.testing.assert_array_equal(result.data, wanted)
    _normalized, background = n4flow.normalize_volume(image, MASK[0])
    assert isinstance(background, np.ndarray)  # it has another shape, so it has other dims


def test_what_is_no_array_gets_a_sentence(tmp_path):
    nibabel, sitk = pytest.importorskip("nibabel"), pytest.importorskip("SimpleITK")
    write_volume(tmp_path / "v.ome.zarr", IMAGE, voxel_um=(20, 4, 5))
    for given, remedy in (
        (nibabel.Nifti1Image(IMAGE, np.eye(4)), r"Nifti1Image; give np.asarray\(img.dataobj\)"),
        (sitk.GetImageFromArray(IMAGE), r"Image; give sitk.GetArrayFromImage\(image\)"),
        (n4flow.open_volume(tmp_path / "v.ome.zarr"), "Volume; give volume.data"),
        ("volume.tif", "an array of numbers, got str"),
        ([[1, 2], [3]], "an array of numbers, got list"),
    ):
        for function in (n4flow.n4, n4flow.n4_correct, n4flow.otsu_mask, n4flow.compute_tissue_mask):
            with pytest.raises(InputError, match=remedy):
                function(given)
    with pytest.raises(InputError, match="give volume.data"):
        n4flow.n4(IMAGE, n4flow.open_volume(tmp_path / "v.ome.zarr"))
