"""A whole run against plain NumPy, on a volume with a border, an origin, odd sizes and voxels of three sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter1d

import n4flow
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume

VOXEL_UM = {"z": 7.5, "y": 2.0, "x": 2.5}
ORIGIN_UM = {"z": 150.0, "y": -40.0, "x": 12.5}
SHAPE = (13, 67, 83)
BORDER = (slice(None), slice(5, 60), slice(9, 80))  # around it the mosaic has no data: exact zeros
OFF = {"bias": "off", "match": "off", "smooth_z": 0, "normalize": False, "trust": "full", "sections": 3}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A store and its mask: tissue of 400 in agarose of 100, whose planes have gains of their own, and shading."""
    folder, rng = tmp_path_factory.mktemp("reference"), np.random.default_rng(3)
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    tissue = np.broadcast_to(y**2 + x**2 < 0.4, SHAPE)
    volume = np.where(tissue, 400.0, 100.0) * rng.gamma(100, 1 / 100, SHAPE)
    volume *= rng.uniform(0.8, 1.25, SHAPE[0])[:, None, None] * np.exp(0.4 * y + 0.2 * x * y)
    inside = np.zeros(SHAPE, bool)
    inside[BORDER] = True
    volume = np.where(inside, volume, 0).astype(np.float32)
    write_volume(folder / "v.ome.zarr", volume, like=Volume.from_array(volume, VOXEL_UM, ORIGIN_UM))
    np.save(folder / "mask.npy", tissue)
    return folder, volume, tissue & inside, inside


def run(given, out, **parameters):
    """Return the result of a run as float64, and its sample."""
    folder = given[0]
    own = {**OFF, "mask": folder / "mask.npy", "shrink": 1, **parameters}
    sample = n4flow.run(folder / "v.ome.zarr", out, **own).samples[0]
    return n4flow.open_volume(sample.store).read(slice(None)).astype(np.float64), sample


def test_results_lie_where_the_input_lies(given, tmp_path):
    after, sample = run(given, tmp_path / "out")
    np.testing.assert_array_equal(after, given[1])
    for store in (sample.store, sample.folder / "mask.ome.zarr"):
        said = json.loads((store / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
        assert [axis["name"] for axis in said["axes"]] == list("zyx")
        for number, level in enumerate(said["datasets"]):
            scale, shift = (step[step["type"]] for step in level["coordinateTransformations"])
            shrunk = np.array(scale) / list(VOXEL_UM.values())
            assert number > 0 or shrunk.tolist() == [1, 1, 1]
            # The first voxel of a level is the mean of so many: its centre lies between theirs.
            middle = np.array(list(ORIGIN_UM.values())) + (shrunk - 1) / 2 * list(VOXEL_UM.values())
            np.testing.assert_allclose(shift, middle, rtol=1e-9)
    assert n4flow.open_volume(sample.store).origin_um == ORIGIN_UM


def test_planes_are_normalised_to_the_percentile_that_was_asked_for(given, tmp_path):
    _folder, volume, tissue, inside = given
    after, sample = run(given, tmp_path / "out", normalize=True, percentile_max=90)
    stated = n4flow.Recipe.load(sample.folder / "recipe.json")[0]
    dark = inside & ~tissue
    lower = np.array([np.median(plane[part]) for plane, part in zip(volume, dark, strict=True)])
    upper = np.array([np.percentile(plane[part], 90) for plane, part in zip(volume, inside, strict=True)])
    np.testing.assert_allclose(stated.lower, lower, rtol=0.03)  # the agarose mask keeps a distance from tissue
    np.testing.assert_allclose(stated.upper, upper, rtol=2e-3)  # histograms have bins of a thousandth
    low, high = (np.asarray(limit, np.float64)[:, None, None] for limit in (stated.lower, stated.upper))
    expected = np.where(inside, (np.clip(volume, low, high) - low) / (high - low).max(), 0)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_every_plane_gets_the_gain_of_its_own_place(given, tmp_path):
    _folder, volume, tissue, _inside = given
    after, _sample = run(given, tmp_path / "out", smooth_z=1.5)
    means = np.array([plane[part].mean(dtype=float) for plane, part in zip(volume, tissue, strict=True)])
    gains = gaussian_filter1d(means, 1.5) / means
    np.testing.assert_allclose(after, np.where(tissue, volume * gains[:, None, None], volume), rtol=2e-3)


def test_the_field_is_the_one_that_itk_finds(given, tmp_path):
    _folder, volume, tissue, _inside = given
    after, _sample = run(given, tmp_path / "out", bias="volume", iterations="20,20", spline_um=1e6, tolerance=1e-6)
    itk = sitk.N4BiasFieldCorrectionImageFilter()
    itk.SetMaximumNumberOfIterations([20, 20])
    itk.SetConvergenceThreshold(1e-6)
    image, mask = sitk.GetImageFromArray(volume), sitk.GetImageFromArray(tissue.astype(np.uint8))
    itk.Execute(image, mask)
    expected = sitk.GetArrayFromImage(itk.GetLogBiasFieldAsImage(image))[tissue]
    found = np.log(volume[tissue] / after[tissue])
    expected, found = expected - expected.mean(), found - found.mean()
    assert expected.std() > 0.05
    # The run fits on a grid without the border and with a margin of its own, so its knots lie elsewhere than ITK's.
    assert np.abs(found - expected).max() < 0.2 * expected.std()
    assert (found @ expected) / (expected @ expected) == pytest.approx(1, abs=0.1)
