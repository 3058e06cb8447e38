"""Histogram matching against scikit-image and against known gains; maps that stay tame without evidence."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.exposure import match_histograms

from n4flow.compute.arrays import probe_gpu
from n4flow.corrections.base import Where
from n4flow.corrections.histogram_matching import apply_histogram_matching, estimate_lookup
from n4flow.corrections.plane_range import estimate_plane_range, normalize_volume
from n4flow.corrections.section_lookup import BORROWED, IDENTITY, MATCHED, SectionLookup, _lookup_arrays
from n4flow.errors import GpuError, InputError, N4flowWarning
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import plane_histograms


def stack(gain: np.ndarray, planes: int = 3, seed: int = 0) -> np.ndarray:
    """Sections of two tissue classes and zeros, each section times its gain; (Z, 40, 50) float32 in about [0, 1]."""
    rng = np.random.default_rng(seed)
    grey = rng.random((len(gain) * planes, 40, 50)) < 0.5
    volume = np.where(grey, 0.35, 0.6) * rng.gamma(60, 1 / 60, grey.shape) * np.repeat(gain, planes)[:, None, None]
    volume[:, :8] = 0
    return volume.astype(np.float32)


GAIN = np.array([1.0, 1.3, 0.8, 0.9, 1.1])


def test_every_section_gets_the_pooled_distribution() -> None:
    volume = stack(GAIN)
    matched = apply_histogram_matching(volume, 5, 256)
    pool = volume[volume > 0]
    quantiles = np.linspace(2, 98, 33)
    for part in np.split(matched, 5):
        # knots rest on 64 voxels or more: a quantile of theirs is known to about 1 % of the range
        np.testing.assert_allclose(np.percentile(part[part > 0], quantiles), np.percentile(pool, quantiles), atol=0.01)
        assert part[part > 0].mean() == pytest.approx(pool.mean(), rel=1e-3)


def test_it_agrees_with_scikit_image() -> None:
    volume = stack(GAIN)
    matched = apply_histogram_matching(volume, 5, 512)
    pool = volume[volume > 0]
    for z in range(0, 15, 3):
        inside = volume[z : z + 3] > 0
        reference = match_histograms(volume[z : z + 3][inside], pool)
        bulk = (reference > np.percentile(pool, 1)) & (reference < np.percentile(pool, 99))
        np.testing.assert_allclose(matched[z : z + 3][inside][bulk], reference[bulk], atol=0.015)


@pytest.mark.parametrize("factor", [1e-4, 30.0, 40000.0])
def test_any_range_of_intensities(factor: float) -> None:
    volume = stack(GAIN)
    expected = apply_histogram_matching(volume, 5, 256)
    found = apply_histogram_matching(volume * np.float32(factor), 5, 256) / np.float32(factor)
    assert abs(found - volume).max() > 0.1  # it did something
    assert np.mean(abs(found - expected)) < 1e-3 * expected.mean()  # bins of 2**-10 lie differently
    np.testing.assert_allclose(found, expected, atol=0.01)
    exact = apply_histogram_matching(volume * 1024, 5, 256)  # a power of two moves no bin
    np.testing.assert_array_equal(exact, expected * 1024)


def test_equal_sections_are_left_as_they_are() -> None:
    volume = np.tile(stack(np.ones(1)), (4, 1, 1))
    np.testing.assert_allclose(apply_histogram_matching(volume, 4, 256), volume, rtol=1e-5)
    np.testing.assert_allclose(apply_histogram_matching(volume[:3], 1, 64), volume[:3], rtol=1e-5)


def test_a_low_bin_count_still_takes_the_gain_out() -> None:
    volume = stack(GAIN)
    for n_bins in (1, 4, 16):
        means = [part[part > 0].mean() for part in np.split(apply_histogram_matching(volume, 5, n_bins), 5)]
        np.testing.assert_allclose(means, volume[volume > 0].mean(), rtol=0.02)  # few knots, straight lines


def test_per_plane() -> None:
    jitter = np.exp(np.random.default_rng(1).normal(0, 0.1, 15))
    volume = stack(np.ones(5)) * jitter[:, None, None].astype(np.float32)
    matched = apply_histogram_matching(volume, None, 256)
    means = [plane[plane > 0].mean() for plane in matched]
    assert np.std(means) / np.mean(means) < 1e-3
    np.testing.assert_array_equal(apply_histogram_matching(volume, 15, 256), matched)


def test_voxels_at_or_below_the_threshold_are_untouched_and_uncounted() -> None:
    volume = stack(GAIN) + np.float32(0.5)  # an offset, and agarose at exactly 0.5
    matched = apply_histogram_matching(volume, 5, 256, tissue_threshold=0.5)
    np.testing.assert_array_equal(matched[volume <= 0.5], volume[volume <= 0.5])
    np.testing.assert_allclose(matched - 0.5, apply_histogram_matching(volume - np.float32(0.5), 5, 256), atol=0.02)


def test_nothing_above_the_threshold_changes_nothing_and_says_so() -> None:
    volume = stack(GAIN)
    for quiet in (volume, np.zeros((4, 5, 6), np.float32)):
        with pytest.warns(N4flowWarning, match="histogram matching changes nothing"):
            np.testing.assert_array_equal(apply_histogram_matching(quiet, 2, 256, tissue_threshold=9.0), quiet)


def knots(lookup: SectionLookup, z: int) -> tuple[np.ndarray, np.ndarray]:
    number = int(lookup.map_of_plane[z])
    assert number >= 0
    part = slice(lookup.offsets[number], lookup.offsets[number + 1])
    return lookup.knots_x[part], lookup.knots_y[part]


def test_maps_rise_begin_at_the_threshold_and_are_not_steep() -> None:
    rng = np.random.default_rng(2)
    volume = stack(GAIN)
    volume[7, 20, :9] = rng.random(9) * 50  # debris, a hundred times brighter
    volume[10:12] = 0  # little tissue
    lookup = estimate_lookup(plane_histograms(volume), (), 5, 256, 0.0, "all")
    for z in range(0, 15, 3):
        x, y = knots(lookup, z)
        assert (x[0], y[0]) == (0, 0)
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) >= 0).all()
        slopes = np.diff(y) / np.diff(x)
        assert slopes.max() < 4  # the gains alone ask for up to 2.5
        values = np.linspace(1e-4, 60, 5001).astype(np.float32)
        mapped = lookup.map(values, z)
        assert (np.diff(mapped) >= 0).all()
        assert np.abs(np.diff(mapped)).max() < 4 * (values[1] - values[0])  # no jumps, above the last knot either
        assert lookup.map(np.float32([1e-6]), z)[0] < 1e-4


def test_above_its_last_knot_a_map_ends_at_the_brightest_voxel() -> None:
    volume = stack(np.array([1.0, 0.5, 0.9]))
    volume[4, 20, :3] = 1.5  # debris in the dim section, as bright as the brightest voxel
    volume[7, 20, 0] = 1.6
    lookup = estimate_lookup(plane_histograms(volume), (), 3, 256, 0.0, "all")
    for z, highest in ((0, volume[:3].max()), (3, 1.5), (6, 1.6)):
        x, y = (float(part[-1]) for part in knots(lookup, z))
        slope = min(y / x, (1.6 - y) / (highest - x))
        values = np.linspace(x, highest, 9).astype(np.float32)
        assert (slope < y / x) == (z > 0)
        np.testing.assert_allclose(lookup.map(values, z), y + (values - x) * slope, rtol=2e-3)  # a bin
    matched = lookup.apply(volume.copy(), Where(0, 0, 0, volume.shape))
    assert matched.max() <= np.float32(1.6)
    assert matched[4, 20, 0] > 1.5  # the ratio would make it 2.7
    assert lookup.map(np.float32([99]), 3)[0] == pytest.approx(1.6)  # a brighter voxel, of a section that borrows


def test_spans_without_evidence_lie_on_the_line_between_their_neighbours() -> None:
    rng = np.random.default_rng(3)
    low = rng.normal(0.3, 0.01, (6, 20, 30))
    volume = np.where(np.arange(30) < 15, low, low + 0.5).astype(np.float32)
    volume[3:] *= 1.2
    lookup = estimate_lookup(plane_histograms(volume), (), 2, 256, 0.0, "all")
    for z, factor in ((0, 1.0), (3, 1.2)):
        x, _y = knots(lookup, z)
        gap = 1 + np.argmax(np.diff(x[1:]))
        assert x[gap] < 0.35 * factor < 0.75 * factor < x[gap + 1]
        inside = np.linspace(x[gap], x[gap + 1], 9).astype(np.float32)
        slopes = np.diff(lookup.map(inside, z)) / np.diff(inside)
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)
        assert 0.7 < slopes[0] < 1.2  # the peaks of the pool are 0.5 to 0.6 apart and wide


def test_flagged_constant_and_empty_sections() -> None:
    volume = stack(np.array([1.0, 1.2, 0.9, 1.0, 1.1, 0.8]))
    volume[3:6] *= 5  # damaged
    volume[6:9] = 0  # empty
    volume[12:15][volume[12:15] > 0] = 3  # saturated
    flags = ["ok", "damaged", "ok", "ok", "ok", "ok"]
    table = SectionTable([Section(f"s{i}", 3 * i, 3 * i + 3, flag) for i, flag in enumerate(flags)], 18)
    lookup = estimate_lookup(plane_histograms(volume), (), table, 256, 0.0, "all")
    usable = [0, 1, 2, 9, 10, 11, 15, 16, 17]
    assert lookup.status.reshape(6, 3)[:, 0].tolist() == [MATCHED, BORROWED, IDENTITY, MATCHED, BORROWED, MATCHED]
    matched = apply_histogram_matching(volume, table, 256)
    np.testing.assert_array_equal(matched[usable], apply_histogram_matching(volume[usable], 3, 256))
    assert (matched[6:9] == 0).all()
    np.testing.assert_array_equal(matched[3:6], lookup_of(lookup, volume[3:6], 0))  # the nearest usable section's map
    assert np.isfinite(matched).all()
    numbers = lookup.summary()
    assert [numbers[f"planes_{name}"] for name in ("matched", "borrowed", "left_alone")] == [9, 6, 3]


def lookup_of(lookup: SectionLookup, block: np.ndarray, z: int) -> np.ndarray:
    return lookup.map(block.ravel(), z).reshape(block.shape)


def test_all_flagged_changes_nothing() -> None:
    volume = stack(GAIN)
    table = SectionTable([Section("a", 0, 15, "interpolated")], 15)
    with pytest.warns(N4flowWarning, match="changes nothing"):
        np.testing.assert_array_equal(apply_histogram_matching(volume, table, 256), volume)


def test_invalid_voxels_stay_and_count_for_nothing() -> None:
    volume = stack(GAIN)
    expected = apply_histogram_matching(volume, 5, 256)
    broken = volume.copy()
    broken[:, 0, :4] = np.nan, np.inf, -np.inf, -2.0  # were zeros
    found = apply_histogram_matching(broken, 5, 256)
    np.testing.assert_array_equal(found[:, 0, :4], broken[:, 0, :4])
    np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])


def test_padding_changes_no_voxel() -> None:
    volume = stack(GAIN)
    padded = apply_histogram_matching(np.pad(volume, ((0, 0), (30, 5), (7, 60))), 5, 256)
    np.testing.assert_array_equal(padded[:, 30:-5, 7:-60], apply_histogram_matching(volume, 5, 256))
    assert np.count_nonzero(padded) == np.count_nonzero(volume)


def test_after_a_plane_range_the_maps_are_those_of_the_normalised_volume() -> None:
    volume = (stack(GAIN) * 900 + 100).astype(np.float32)
    agarose = np.zeros((40, 50), bool)
    agarose[:8] = True
    tissue = np.broadcast_to(~agarose, volume.shape)
    normalized, _level = normalize_volume(volume, agarose)
    histograms = plane_histograms(volume, tissue, agarose)
    lookup = estimate_lookup(histograms, [estimate_plane_range(histograms)], 5, 256, 0.0)
    matched = lookup.apply(normalized.copy(), Where(0, 0, 0, volume.shape))
    # the histograms are counted before or after the range: the same voxels in other bins of 2**-10
    np.testing.assert_allclose(matched, apply_histogram_matching(normalized, 5, 256, mask=tissue), atol=4e-3)
    assert (matched[:, agarose] == 0).all()


def test_the_lookup_is_pointwise_and_survives_its_arrays() -> None:
    volume = stack(GAIN)
    lookup = estimate_lookup(plane_histograms(volume), (), 5, 128, 0.0, "all")
    whole = lookup.apply(volume.copy(), Where(0, 0, 0, volume.shape))
    again = SectionLookup.from_arrays(*lookup.to_arrays())
    part = volume[4:11, 5:21, 9:44].copy()
    np.testing.assert_array_equal(again.apply(part, Where(4, 5, 9, volume.shape)), whole[4:11, 5:21, 9:44])
    for z in (0, 7, 14):
        segments = lookup.segments(int(lookup.map_of_plane[z]))
        values = np.concatenate([segments[0], volume[z].ravel(), [-1, 99, np.nan, np.inf]]).astype(np.float32)
        # the compiled loop and the array operations of a GPU, bit for bit
        np.testing.assert_array_equal(lookup.map(values, z), _lookup_arrays(values, 0.0, segments))


def test_knots_of_any_distance_are_found() -> None:
    rng = np.random.default_rng(4)
    for spread in (1, 3, 12):  # a table of starts, a longer one, and none
        x = np.cumsum(10.0 ** -rng.uniform(0, spread, 60))
        y = np.cumsum(rng.random(60))
        lookup = SectionLookup(x[0], np.zeros(1, np.int32), np.zeros(1, np.uint8), np.array([0, 60]), x, y)
        values = np.sort(np.concatenate([x, rng.uniform(x[0], x[-1], 500)])).astype(np.float32)
        values = values[values > x[0]]
        inside = values < x[-1]
        # the map is one of float32, and so are its knots: their rounding moves a steep segment by more than a value's
        expected = np.interp(values[inside], x.astype(np.float32), y.astype(np.float32))
        np.testing.assert_allclose(lookup.map(values, 0)[inside], expected, rtol=2e-6)
        assert (np.diff(lookup.map(values, 0)) >= 0).all()
        assert (len(lookup._table(0)) == 1) == (spread == 12)


@pytest.mark.parametrize("chunks", [(5, 40, 50), (4, 13, 17)])
@pytest.mark.parametrize("masked", [False, True])
def test_dask_stays_lazy_and_is_the_same_to_the_bit(chunks: tuple[int, ...], masked: bool) -> None:
    da = pytest.importorskip("dask.array")
    volume = stack(GAIN)
    mask = volume > 0.2 if masked else None
    lazy = apply_histogram_matching(da.from_array(volume, chunks=chunks), 5, 256, mask=mask)
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.float32
    np.testing.assert_array_equal(lazy.compute(), apply_histogram_matching(volume, 5, 256, mask=mask))


def test_the_input_is_not_modified() -> None:
    volume = stack(GAIN)
    before = volume.copy()
    apply_histogram_matching(volume, 5, 256)
    np.testing.assert_array_equal(volume, before)
    counts = (volume * 1000).astype(np.uint16)
    assert apply_histogram_matching(counts, 5, 256).dtype == np.float32


def test_a_bin_count_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="n_bins must be at least 1"):
        apply_histogram_matching(stack(GAIN), 5, 0)


def test_the_gpu_asked_for_is_the_gpu_used() -> None:
    volume = stack(GAIN)
    try:
        probe_gpu()
    except GpuError:
        with pytest.raises(GpuError, match="no working GPU"):
            apply_histogram_matching(volume, 5, 256, use_gpu=True)
    else:
        np.testing.assert_array_equal(
            apply_histogram_matching(volume, 5, 256, use_gpu=True), apply_histogram_matching(volume, 5, 256)
        )
