"""Agarose at zero, brightness between sections kept, and levels where there is no agarose."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from n4flow.corrections.base import Where
from n4flow.corrections.plane_range import PlaneRange, compute_scale_factors, estimate_plane_range, normalize_volume
from n4flow.errors import InputError, N4flowWarning
from n4flow.masks.agarose_levels import BORROWED, OWN, UNKNOWN
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import plane_histograms

BIN = 2.0**-10


def stack(n_z: int = 12, gain: np.ndarray | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Speckled tissue in agarose, planes of different gain; and the agarose mask."""
    tissue = np.zeros((40, 50), bool)
    tissue[8:30, 10:42] = True
    clean = np.where(tissue, 500.0, 100.0)
    volume = clean * np.random.default_rng(seed).gamma(16, 1 / 16, (n_z, 40, 50))
    if gain is not None:
        volume *= gain[:, None, None]
    return volume.astype(np.float32), ~tissue


def plain(volume: np.ndarray, agarose: np.ndarray, percentile: float) -> tuple[np.ndarray, np.ndarray]:
    """The definition, in NumPy, for a volume without invalid voxels."""
    upper = np.percentile(volume, percentile, axis=(1, 2))
    lower = np.median(volume[:, agarose], axis=1)
    clipped = np.maximum(np.minimum(volume, upper[:, None, None]), lower[:, None, None]) - lower[:, None, None]
    return clipped / (upper - lower).max(), lower


def test_it_is_the_definition_within_a_bin() -> None:
    volume, agarose = stack(gain=np.exp(np.random.default_rng(1).normal(0, 0.2, 12)))
    expected, level = plain(volume.astype(np.float64), agarose, 99.0)
    normalized, background = normalize_volume(volume, agarose, 99.0)
    np.testing.assert_allclose(background, level, rtol=BIN)
    np.testing.assert_allclose(normalized, expected, atol=2 * BIN)  # level, cap and span are each within a bin
    assert normalized.dtype == background.dtype == np.float32
    assert (normalized.min(), normalized.max()) == (0.0, 1.0)
    below = volume <= level[:, None, None] * (1 - BIN)
    assert (normalized[below] == 0).all()


def test_brightness_between_sections_is_kept() -> None:
    gain = np.repeat([1.0, 1.5, 0.7], 4)
    volume, agarose = stack(gain=gain)
    normalized, _background = normalize_volume(volume, agarose)
    means = normalized[:, ~agarose].mean(axis=1).reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(
        means / means[0], gain[::4], rtol=0.02
    )  # speckle of 25 % in 2800 voxels, and the level's


@pytest.mark.parametrize(
    "mask",
    [lambda m: m, lambda m: m * np.uint8(255), lambda m: m.astype(float), lambda m: np.broadcast_to(m, (12, 40, 50))],
)
def test_every_kind_of_mask_is_the_same_mask(mask) -> None:
    volume, agarose = stack()
    expected = normalize_volume(volume, agarose)
    for a, b in zip(normalize_volume(volume, mask(agarose)), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_agarose_in_a_third_of_the_sections_changes_less_than_a_hundredth() -> None:
    section_gain = np.repeat(np.exp(np.random.default_rng(2).normal(0, 0.05, 10)), 4)
    depth = np.tile(np.exp(-0.1 * np.arange(4)), 10)  # attenuation within each section
    volume, agarose = stack(40, section_gain * depth)
    # 98 % of 2000 voxels: above, two or three specks of speckle would decide the range
    expected, level = normalize_volume(volume, agarose, 98, sections=10)
    lacking = [1, 5, 6]
    padded = volume.copy()
    for s in lacking:
        padded[4 * s : 4 * s + 4, agarose] = 0
    filled = volume.copy()  # tissue fills the field
    for s in lacking:
        planes = slice(4 * s, 4 * s + 4)
        filled[planes, agarose] *= 5
    for broken in (padded, filled):
        histograms = plane_histograms(broken, agarose=agarose)
        correction = estimate_plane_range(histograms, 10, 98)
        assert set(np.flatnonzero(correction.source == BORROWED) // 4) == set(lacking)
        found, background = normalize_volume(broken, agarose, 98, sections=10)
        assert np.isfinite(found).all()
        # levels differ by the gain of the section, 5 %, which nothing can know without agarose
        np.testing.assert_allclose(background, level, rtol=0.15)
        tissue = np.broadcast_to(~agarose, volume.shape)
        change = np.abs(found[tissue].mean() / expected[tissue].mean() - 1)
        assert change < 0.01
        for s in lacking:
            planes = slice(4 * s, 4 * s + 4)
            assert abs(found[planes, ~agarose].mean() / expected[planes, ~agarose].mean() - 1) < 0.03


def test_a_bright_section_is_not_taken_for_one_without_agarose() -> None:
    gain = np.ones(12)
    gain[5] = 6.0
    volume, agarose = stack(gain=gain)
    correction = estimate_plane_range(plane_histograms(volume, agarose=agarose))
    assert (correction.source == OWN).all()
    dim, agarose = stack(gain=1 / gain)
    assert (estimate_plane_range(plane_histograms(dim, agarose=agarose)).source == OWN).all()


def test_a_borrowed_level_follows_the_depth_in_the_section() -> None:
    depth = np.tile([1.0, 0.8, 0.6], 5)
    volume, agarose = stack(15, depth)
    volume[6:9, agarose] = np.nan
    correction = estimate_plane_range(plane_histograms(volume, agarose=agarose), 5)
    np.testing.assert_allclose(correction.lower, 98 * depth, rtol=0.02)
    assert correction.confidence[[0, 6, 7, 8]].tolist() == [1, 0.25, 0.25, 0.25]


def test_part_of_a_section_without_agarose_takes_the_level_of_the_rest() -> None:
    volume, agarose = stack(12)
    volume[4, agarose] = 0
    correction = estimate_plane_range(plane_histograms(volume, agarose=agarose), 3)
    assert correction.source.tolist() == [OWN] * 4 + [BORROWED] + [OWN] * 7
    assert correction.lower[4] == pytest.approx(correction.lower[5])


def test_without_any_agarose_the_level_is_zero_with_a_warning() -> None:
    volume, agarose = stack()
    with pytest.warns(N4flowWarning, match="no plane shows agarose"):
        normalized, background = normalize_volume(volume, np.zeros_like(agarose))
    assert (background == 0).all()
    np.testing.assert_allclose(normalized.max(), 1.0)
    assert np.isfinite(normalized).all()


def test_flagged_sections_borrow_and_do_not_count() -> None:
    volume, agarose = stack()
    table = SectionTable([Section("a", 0, 4), Section("b", 4, 8, "damaged"), Section("c", 8, 12)], 12)
    volume[4:8] *= 30
    correction = estimate_plane_range(plane_histograms(volume, agarose=agarose), table)
    rest = estimate_plane_range(plane_histograms(np.delete(volume, slice(4, 8), axis=0), agarose=agarose), 2)
    assert correction.span == rest.span
    assert correction.source.tolist() == [OWN] * 4 + [BORROWED] * 4 + [OWN] * 4
    normalized, background = normalize_volume(volume, agarose, sections=table)
    assert (normalized.min(), normalized.max()) == (0, 1)
    np.testing.assert_allclose(background[4:8], (rest.lower[:4] + rest.lower[4:]) / 2)


def test_when_every_section_is_flagged_nothing_is_divided() -> None:
    volume, agarose = stack(4)
    table = SectionTable([Section("a", 0, 4, "interpolated")], 4)
    with pytest.warns(N4flowWarning) as caught:
        normalized, background = normalize_volume(volume, agarose, sections=table)
    assert ["no plane shows agarose" in str(w.message) for w in caught] == [True, False]
    np.testing.assert_array_equal(normalized, volume)
    assert (background == 0).all()


def test_an_all_zero_section_changes_no_other_to_the_bit() -> None:
    volume, agarose = stack()
    volume[1] *= 1.3  # the largest range is not the empty section's
    expected, _level = normalize_volume(volume, agarose, sections=3)
    volume[4:8] = 0
    found, background = normalize_volume(volume, agarose, sections=3)
    np.testing.assert_array_equal(found[[0, 1, 2, 3, 8, 9, 10, 11]], expected[[0, 1, 2, 3, 8, 9, 10, 11]])
    assert (found[4:8] == 0).all()
    assert np.isfinite(background).all()


def test_a_constant_plane_and_a_constant_volume_stay_finite() -> None:
    volume, agarose = stack()
    volume[3] = 400
    normalized, background = normalize_volume(volume, agarose)
    assert background[3] == pytest.approx(np.delete(background, 3).mean(), rel=0.05)  # not its own: all of it is flat
    assert np.ptp(normalized[3]) == 0
    with pytest.warns(N4flowWarning, match="not divided"):
        flat, _level = normalize_volume(np.full((2, 5, 6), 7.0), np.ones((5, 6), bool))
    assert (flat == 0).all()


def test_invalid_voxels_count_for_nothing_and_stay() -> None:
    volume, agarose = stack()
    expected, level = normalize_volume(volume, agarose)
    broken = volume.copy()
    broken[2, 0, :3] = np.nan, np.inf, -np.inf
    found, background = normalize_volume(broken, agarose)
    np.testing.assert_array_equal(found[2, 0, :3], broken[2, 0, :3])
    rest = np.isfinite(found)
    np.testing.assert_allclose(found[rest], expected[rest], atol=1e-3)  # three voxels of 2000 moved median and cap
    np.testing.assert_allclose(background, level, rtol=1e-3)


def test_padding_changes_no_voxel() -> None:
    volume, agarose = stack()
    expected, level = normalize_volume(volume, agarose)
    wide = ((3, 8), (5, 1))
    for fill in (True, False):
        found, background = normalize_volume(
            np.pad(volume, ((0, 0), *wide)), np.pad(agarose, wide, constant_values=fill)
        )
        np.testing.assert_array_equal(found[:, 3:-8, 5:-1], expected)
        np.testing.assert_array_equal(background, level)
        assert found.sum(dtype=np.float64) == pytest.approx(expected.sum(dtype=np.float64))


def test_negative_agarose_and_integers() -> None:
    volume, agarose = stack()
    dark = volume - 150
    expected, level = plain(dark.astype(np.float64), agarose, 99.9)
    normalized, background = normalize_volume(dark, agarose)
    np.testing.assert_allclose(background, level, rtol=2 * BIN)
    np.testing.assert_allclose(normalized, expected, atol=2 * BIN)
    counts = volume.astype(np.uint16)
    before = counts.copy()
    expected, level = plain(counts.astype(np.float64), agarose, 99.9)
    normalized, background = normalize_volume(counts, agarose)
    np.testing.assert_array_equal(background, level.astype(np.float32))  # whole numbers below 2048 are exact
    np.testing.assert_allclose(normalized, expected, atol=2 * BIN)
    np.testing.assert_array_equal(counts, before)


def test_one_plane_and_one_section() -> None:
    volume, agarose = stack(1)
    normalized, background = normalize_volume(volume, agarose)
    np.testing.assert_allclose(normalized, plain(volume.astype(np.float64), agarose, 99.9)[0], atol=2 * BIN)
    assert background.shape == (1,)


@pytest.mark.parametrize("chunks", [(5, 40, 50), (3, 17, 11), (12, 7, 50)])
def test_dask_stays_lazy_and_is_the_same_to_the_bit(chunks: tuple[int, ...]) -> None:
    da = pytest.importorskip("dask.array")
    volume, agarose = stack()
    expected = normalize_volume(volume, agarose, 99.5, sections=3)
    seen = []
    lazy = da.from_array(volume, chunks=chunks).map_blocks(lambda block: (seen.append(1), block)[1], dtype=volume.dtype)
    seen.clear()
    found = normalize_volume(lazy, da.from_array(agarose, chunks=20), 99.5, sections=3)
    assert not seen
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, da.Array)
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a.compute(), b)
    assert found[0].chunks == lazy.chunks


def test_the_correction_is_pointwise_and_survives_its_arrays() -> None:
    volume, agarose = stack()
    volume[4:8, agarose] = 0
    correction = estimate_plane_range(plane_histograms(volume, agarose=agarose), 3)
    whole = correction.apply(volume.copy(), Where(0, 0, 0, volume.shape))
    again = PlaneRange.from_arrays(*correction.to_arrays())
    for z, y, x in [(0, 3, 7), (5, 0, 20), (11, 12, 0)]:
        part = volume[z:, y : y + 9, x : x + 14].copy()
        np.testing.assert_array_equal(again.apply(part, Where(z, y, x, volume.shape)), whole[z:, y : y + 9, x : x + 14])
        np.testing.assert_array_equal(correction.map(volume[z].ravel(), z), whole[z].ravel())
    numbers = correction.summary()
    assert (numbers["planes_own"], numbers["planes_borrowed"], numbers["planes_unknown"]) == (8, 4, 0)
    assert numbers["borrowed_planes"] == [4, 5, 6, 7]
    assert UNKNOWN not in correction.source
    assert len({OWN, BORROWED, UNKNOWN}) == 3


@pytest.mark.parametrize("percentile", [0, -1, 101])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    volume, agarose = stack(2)
    with pytest.raises(InputError, match=f"percentile_max must be above 0 and at most 100 .*, got {percentile}"):
        normalize_volume(volume, agarose, percentile)


def scales(volume: np.ndarray, n: int, sigma: float, percentile: float) -> tuple[np.ndarray, ...]:
    """The definition of scale factors in NumPy and SciPy, every section usable."""
    raw = np.array([np.percentile(part[part != 0], percentile) for part in np.split(volume.astype(np.float64), n)])
    smoothed = gaussian_filter1d(raw, sigma) if sigma else raw
    return np.repeat(np.median(smoothed) / smoothed, len(volume) // n), raw, smoothed


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_scale_factors_are_the_definition(sigma: float) -> None:
    gain = np.repeat(np.exp(np.random.default_rng(3).normal(0, 0.3, 6)), 2)
    volume, _agarose = stack(12, gain)
    volume[:, :3] = 0
    expected, raw, smoothed = scales(volume, 6, sigma, 90)
    factors, found_raw, found_smoothed, boundaries = compute_scale_factors(volume, 6, sigma, 90, 0.8, 1.3)
    np.testing.assert_allclose(found_raw, raw, rtol=BIN)
    np.testing.assert_allclose(found_smoothed, smoothed, rtol=BIN)
    np.testing.assert_allclose(factors, np.clip(expected, 0.8, 1.3), rtol=2 * BIN)
    assert boundaries == [0, 2, 4, 6, 8, 10]
    assert factors.min() >= np.float32(0.8)
    assert factors.max() <= np.float32(1.3)


def test_empty_and_flagged_sections_have_no_weight_in_the_scale_factors() -> None:
    volume, _agarose = stack(8)
    volume[2:4] = 0
    volume[4:6] *= 50
    table = SectionTable([Section("a", 0, 2), Section("b", 2, 4), Section("c", 4, 6, "damaged"), Section("d", 6, 8)], 8)
    factors, raw, smoothed, _boundaries = compute_scale_factors(volume, table, 1.0, 50, 0.5, 2.0)
    assert raw[1] == raw[2] == 0
    assert (smoothed > 0).all()
    np.testing.assert_allclose(factors, 1.0, rtol=0.02)  # all usable sections are alike
    factors, raw, smoothed, _boundaries = compute_scale_factors(np.zeros((4, 5, 6)), None, 1.0, 50, 0.5, 2.0)
    assert (factors == 1).all()
    assert (raw == 0).all()
    with pytest.raises(InputError, match="min_scale <= max_scale, got 50, 2, 1"):
        compute_scale_factors(volume, None, 1.0, 50, 2, 1)


def test_no_warning_where_there_is_nothing_to_warn_of() -> None:
    volume, agarose = stack()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalize_volume(volume, agarose)
        compute_scale_factors(volume, None, 1.0, 50, 0.5, 2.0)
