"""Kinds of arrays that public functions take."""

import sys
import types

import numpy as np
import pytest

import n4flow
from n4flow.compute.arrays import check_float32
from n4flow.errors import InputError
from n4flow.io.writers import write_volume

IMAGE = np.random.default_rng(0).gamma(9, 10, (6, 12, 14)).astype(np.float32)
MASK = np.ones(IMAGE.shape, bool)


@pytest.fixture
def labelled(monkeypatch):
    """An array with dims and coords, made as xarray's `DataArray` is."""
    module = types.ModuleType("xarray")

    class DataArray:
        def __init__(self, data, coords=None, dims=None):
            self.data, self.dims, self.coords = np.asarray(data), dims, coords or {}
            self.shape, self.dtype = self.data.shape, self.data.dtype
            assert len(dims) == self.data.ndim  # as xarray asks for

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
    image, mask = (labelled(a, {"z": range(6)}, ("z", "y", "x")) for a in (IMAGE, MASK))
    options = {"n_iterations": (2, 2), "shrink_factor": 1}
    for results in (
        n4flow.n4_correct(image, mask, **options),
        n4flow.n4_correct(mask=mask, vol=image, **options),  # in any order
    ):
        for result, wanted in zip(results, expected, strict=True):
            assert (result.dims, result.coords) == (("z", "y", "x"), image.coords)
            np.testing.assert_array_equal(result.data, wanted)
    out, field = labelled(np.empty_like(IMAGE), None, ("a", "b", "c")), np.empty_like(IMAGE)
    results = n4flow.n4_correct(image, mask, out=out, bias_out=field, **options)
    assert results[0] is out
    assert results[1] is field
    np.testing.assert_array_equal(out.data, expected[0])
    assert isinstance(n4flow.n4_correct(IMAGE, mask, **options)[0], np.ndarray)  # a mask names no result
    assert n4flow.fit_bias(image, iters=(2,)).shape == IMAGE.shape  # a field is no array
    assert n4flow.otsu_mask(image).dims == ("z", "y", "x")
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
    with pytest.raises(InputError, match="Nifti1Image; give np.asarray"):
        n4flow.bkgd_spatial_mean([nibabel.Nifti1Image(IMAGE, np.eye(4))])
    with pytest.raises(InputError, match="an array of numbers, got float"):
        n4flow.apply_bias_field(IMAGE, 2.0)
    with pytest.raises(InputError, match="expected an array of numbers, got str"):
        n4flow.n4_correct(backend="cpu", vol="volume.tif")


def test_masks_and_fields_may_be_lists():
    field = np.full(IMAGE.shape, 2, np.float32)
    np.testing.assert_array_equal(n4flow.apply_bias_field(IMAGE, field.tolist()), IMAGE / 2)
    expected = n4flow.normalize_volume(IMAGE, MASK[0])[0]
    np.testing.assert_array_equal(n4flow.normalize_volume(IMAGE, MASK[0].tolist())[0], expected)


@pytest.mark.parametrize(
    "call",
    [
        n4flow.otsu_mask,
        n4flow.n4_correct,
        lambda volume: n4flow.normalize_volume(volume, np.ones(IMAGE.shape[1:], bool)),
        lambda volume: n4flow.apply_histogram_matching(volume, MASK, 2),
        n4flow.compute_tissue_mask,
        lambda volume: n4flow.bkgd_spatial_mean([volume]),
        lambda volume: n4flow.BiasField(np.zeros((4, 4, 4), np.float32), volume.shape, volume.shape, (1, 1, 1)).apply(
            volume
        ),
        lambda volume: n4flow.fit_bias(IMAGE, MASK, weights=volume),
    ],
)
@pytest.mark.parametrize("value", [1e300, -1e39])
def test_what_float32_cannot_hold_is_refused_and_never_infinite(call, value):
    volume = IMAGE.astype(np.float64)
    volume[2, 3, 4] = value
    with pytest.raises(InputError, match=r"has values beyond 3\.4e\+38, the largest float32"):
        call(volume)


def test_numbers_at_the_ends_of_float32_and_infinite_ones_are_none_beyond_it():
    ends = np.array([[np.inf, -np.inf, np.nan, 0, 1e-300, *np.finfo(np.float32).max * np.array([1.0, -1.0])]])
    check_float32(ends, "ends")
    check_float32(ends.astype(">f8"), "ends")
    with pytest.raises(InputError, match="ends has values beyond"):
        check_float32(np.nextafter(np.float64(np.finfo(np.float32).max) * (1 + 2.0**-25), np.inf) * ends[:, 5:], "ends")
