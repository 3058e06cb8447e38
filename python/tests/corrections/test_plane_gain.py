"""Smoothing along Z against SciPy, with known jitter, and where tissue is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from n4flow.corrections.base import Where
from n4flow.corrections.histogram_matching import apply_histogram_matching, estimate_lookup
from n4flow.corrections.plane_gain import PlaneGain, apply_zprofile_smoothing, estimate_plane_gain, smooth_along
from n4flow.corrections.plane_range import estimate_plane_range, normalize_volume
from n4flow.errors import InputError, N4flowWarning
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import plane_histograms, plane_means


def stack(profile: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Speckled planes whose tissue has the given means, in agarose of 1; and the tissue mask."""
    tissue = np.zeros((len(profile), 30, 40), bool)
    tissue[:, 6:24, 8:34] = True
    noise = np.random.default_rng(seed).gamma(25, 1 / 25, tissue.shape)
    return (np.where(tissue, profile[:, None, None], 1.0) * noise).astype(np.float32), tissue


def means(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.array([plane[inside].mean(dtype=np.float64) for plane, inside in zip(volume, mask, strict=True)])


JITTER = np.exp(np.random.default_rng(1).normal(0, 0.05, 40))
SLOW = 6 + np.sin(np.arange(40) / 12)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 9.0])
def test_gains_are_the_smoothed_over_the_observed_mean(sigma: float) -> None:
    volume, tissue = stack(SLOW * JITTER)
    observed = means(volume, tissue)
    gain = gaussian_filter1d(observed, sigma) / observed
    smoothed = apply_zprofile_smoothing(volume, tissue, sigma)
    np.testing.assert_allclose(smoothed[tissue], (volume * gain[:, None, None])[tissue], rtol=1e-5)  # float32
    np.testing.assert_array_equal(smoothed[~tissue], volume[~tissue])
    assert smoothed.dtype == np.float32


def test_jitter_goes_and_slow_change_stays() -> None:
    volume, tissue = stack(SLOW * JITTER)
    after = means(apply_zprofile_smoothing(volume, tissue, 3.0), tissue)
    inner = slice(6, -6)  # the mirrored ends bend the profile
    assert np.std(np.diff(np.log(after))) < 0.15 * np.std(np.diff(np.log(means(volume, tissue))))
    np.testing.assert_allclose(after[inner], SLOW[inner], rtol=0.05)  # jitter of 5 % averaged over ten planes


def test_sigma_zero_is_the_input_to_the_bit() -> None:
    volume, tissue = stack(SLOW * JITTER)
    np.testing.assert_array_equal(apply_zprofile_smoothing(volume, tissue, 0), volume)
    with pytest.raises(InputError, match=r"sigma must be 0 \(off\) or more"):
        apply_zprofile_smoothing(volume, tissue, -1)


@pytest.mark.parametrize("kind", ["bool", "uint8 0/255", "float", "uint8 0/1"])
def test_every_kind_of_mask_is_the_same_mask(kind: str) -> None:
    volume, tissue = stack(SLOW * JITTER)
    mask = {
        "bool": tissue,
        "uint8 0/255": tissue * np.uint8(255),
        "float": tissue.astype(float),
        "uint8 0/1": tissue.astype(np.uint8),
    }[kind]
    np.testing.assert_array_equal(
        apply_zprofile_smoothing(volume, mask, 2.0), apply_zprofile_smoothing(volume, tissue, 2.0)
    )


def test_planes_with_little_tissue_are_unchanged_and_out_of_the_smoothing() -> None:
    volume, tissue = stack(SLOW * JITTER)
    tissue[12:15] = False
    tissue[12:15, 10, 10:19] = True  # 9 voxels
    volume[12:15] *= 7
    smoothed = apply_zprofile_smoothing(volume, tissue, 2.0)
    np.testing.assert_array_equal(smoothed[12:15], volume[12:15])
    volume[12:15] = 0  # what stands there does not matter to the rest
    np.testing.assert_array_equal(
        np.delete(apply_zprofile_smoothing(volume, tissue, 2.0), slice(12, 15), 0),
        np.delete(smoothed, slice(12, 15), 0),
    )


def test_gaps_count_as_distance_along_z() -> None:
    values = np.array([1.0, 2.0, 0.0, 0.0, 0.0, 5.0])
    weights = np.array([1.0, 1, 0, 0, 0, 1])
    position = np.arange(-24, 30)  # the profile mirrored, four times over
    mirrored = np.pad(np.arange(6), (24, 24), mode="symmetric")
    for sigma in (0.8, 2.0):
        kernel = np.exp(-0.5 * ((np.arange(6)[:, None] - position[None]) / sigma) ** 2)
        kernel[np.abs(np.arange(6)[:, None] - position[None]) > int(4 * sigma + 0.5)] = 0
        expected = (kernel * (values * weights)[mirrored]).sum(1) / (kernel * weights[mirrored]).sum(1)
        np.testing.assert_allclose(smooth_along(values, weights, sigma), expected, rtol=1e-10)
    np.testing.assert_array_equal(smooth_along(values, weights, 0), values)
    assert (smooth_along(values, np.zeros(6), 2.0) == 0).all()


def test_flagged_sections_keep_their_planes_and_pull_nothing() -> None:
    volume, tissue = stack(SLOW * JITTER)
    table = SectionTable([Section("a", 0, 10), Section("b", 10, 20, "damaged"), Section("c", 20, 40)], 40)
    expected = apply_zprofile_smoothing(volume, tissue, 2.0, sections=table)
    volume[10:20] *= 9
    found = apply_zprofile_smoothing(volume, tissue, 2.0, sections=table)
    np.testing.assert_array_equal(found[10:20], volume[10:20])
    np.testing.assert_array_equal(np.delete(found, slice(10, 20), 0), np.delete(expected, slice(10, 20), 0))


@pytest.mark.parametrize("planes", [[], [7], [3, 30]])
def test_fewer_than_three_planes_are_no_trend(planes: list[int]) -> None:
    volume, tissue = stack(SLOW * JITTER)
    some = np.zeros_like(tissue)
    some[planes] = tissue[planes]
    with pytest.warns(
        N4flowWarning, match=f"{len(planes)} planes have enough tissue, fewer than 3: .* changes nothing"
    ):
        np.testing.assert_array_equal(apply_zprofile_smoothing(volume, some, 2.0), volume)
    some[12] = tissue[12]
    some[14] = tissue[14]
    some[16] = tissue[16]
    assert not np.array_equal(apply_zprofile_smoothing(volume, some, 2.0), volume)
    with pytest.warns(N4flowWarning, match="0 planes"):
        np.testing.assert_array_equal(apply_zprofile_smoothing(volume, tissue, 2.0, 10_000), volume)


def test_means_of_planes_are_those_of_their_tissue() -> None:
    volume, tissue = stack(SLOW[:5])
    volume[1, 10, 10:13] = np.nan, np.inf, 0
    tissue[2:4] = False
    volume[3] = 0
    found = plane_means(volume, tissue)
    for z in (0, 1, 4):
        inside = volume[z][tissue[z] & np.isfinite(volume[z]) & (volume[z] != 0)]
        assert found.mean(z, "tissue") == pytest.approx(inside.mean(dtype=np.float64), rel=1e-6)
        assert found.count(z) == inside.size
    assert found.filled.tolist() == [True, True, True, False, True]
    np.testing.assert_array_equal(
        plane_means(volume, tissue).counts[0], plane_means(volume.astype(float), tissue).counts[0]
    )


def test_invalid_and_negative_tissue() -> None:
    volume, tissue = stack(SLOW * JITTER)
    expected = estimate_plane_gain(plane_histograms(volume, tissue)).gain
    broken = volume.copy()
    broken[3, 10, 10:13] = np.nan, np.inf, -np.inf
    smoothed = apply_zprofile_smoothing(broken, tissue, 2.0)
    np.testing.assert_array_equal(smoothed[3, 10, 10:13], broken[3, 10, 10:13])
    np.testing.assert_allclose(estimate_plane_gain(plane_histograms(broken, tissue)).gain, expected, rtol=1e-3)
    broken[5] = -broken[5]  # a mean that is not positive has no gain
    correction = estimate_plane_gain(plane_histograms(broken, tissue))
    assert correction.gain[5] == 1
    assert not correction.measured[5]
    assert np.isfinite(correction.gain).all()


def test_padding_changes_no_voxel() -> None:
    volume, tissue = stack(SLOW * JITTER)
    wide = ((0, 0), (5, 9), (2, 31))
    padded = apply_zprofile_smoothing(np.pad(volume, wide), np.pad(tissue, wide, constant_values=True), 2.0)
    np.testing.assert_array_equal(padded[:, 5:-9, 2:-31], apply_zprofile_smoothing(volume, tissue, 2.0))


@pytest.mark.parametrize("lazy_mask", [False, True])
def test_dask_stays_lazy_and_is_the_same_to_the_bit(lazy_mask: bool) -> None:
    da = pytest.importorskip("dask.array")
    volume, tissue = stack(SLOW * JITTER)
    mask = da.from_array(tissue * np.uint8(255), chunks=(11, 30, 40)) if lazy_mask else tissue
    lazy = apply_zprofile_smoothing(da.from_array(volume, chunks=(9, 7, 23)), mask, 2.0)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), apply_zprofile_smoothing(volume, tissue, 2.0))


def test_histograms_pushed_through_the_chain_give_the_gains_of_the_chain() -> None:
    volume, tissue = stack(SLOW * JITTER)
    volume, agarose = volume * 100, ~tissue[0]
    histograms = plane_histograms(volume, tissue, agarose)
    plane_range = estimate_plane_range(histograms)
    lookup = estimate_lookup(histograms, [plane_range], 8, 256)
    gain = estimate_plane_gain(histograms, [plane_range, lookup], 8, 2.0)
    chained = apply_histogram_matching(normalize_volume(volume, agarose)[0], 8, 256, mask=tissue)
    observed = means(chained, tissue)
    expected = gaussian_filter1d(observed, 2.0) / observed
    np.testing.assert_allclose(gain.gain, expected, rtol=1e-3)  # the maps are estimated from bins of 2**-10


def test_the_gain_is_pointwise_and_survives_its_arrays() -> None:
    volume, tissue = stack(SLOW * JITTER)
    correction = estimate_plane_gain(plane_histograms(volume, tissue), sigma=2.0)
    again = PlaneGain.from_arrays(*correction.to_arrays())
    block = volume.copy()
    whole = correction.apply(block, Where(0, 0, 0, volume.shape, tissue))
    assert whole is block  # a block is as large as a stage has memory for
    part = (slice(7, 19), slice(3, 20), slice(10, 33))
    np.testing.assert_array_equal(
        again.apply(volume[part].copy(), Where(7, 3, 10, volume.shape, tissue[part])), whole[part]
    )
    np.testing.assert_array_equal(correction.map(volume[4][tissue[4]], 4), whole[4][tissue[4]])
    numbers = correction.summary()
    assert numbers["planes_measured"] == 40
    assert numbers["share"] == 1  # all that smoothing asks for
    assert numbers["gain_min"] < 1 < numbers["gain_max"]
    with pytest.raises(InputError, match="give the block's tissue mask"):
        correction.apply(volume.copy(), Where(0, 0, 0, volume.shape))


def test_gains_on_a_device_multiply_tissue_alone(any_device: Any) -> None:
    volume, tissue = stack(SLOW * JITTER)
    correction = PlaneGain(np.float32(JITTER), np.ones(40, bool), 2.0)
    where = Where(3, 0, 0, volume.shape, any_device.asarray(tissue[3:9]))
    found = correction.apply(any_device.asarray(volume[3:9]), where).get()
    expected = np.where(tissue, volume * np.float32(JITTER)[:, None, None], volume)[3:9]
    np.testing.assert_array_equal(found, expected)


def test_a_mask_of_another_shape_names_both() -> None:
    volume, tissue = stack(SLOW * JITTER)
    with pytest.raises(InputError, match=r"\(40, 30, 40\) of the volume, got \(39, 30, 40\)"):
        apply_zprofile_smoothing(volume, tissue[1:], 2.0)
