"""The streaming passes against NumPy on the whole array."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest

from n4flow.compute import threads as planes
from n4flow.compute.arrays import as_block, as_mask
from n4flow.errors import InputError
from n4flow.statistics import histogram_kernels as kernels
from n4flow.statistics.accumulate import Tile, TileShrinker
from n4flow.statistics.bins import bin_edges, bin_index, pairs_of_bins
from n4flow.statistics.histograms import CLASSES, HistogramFiles, PlaneHistograms
from n4flow.statistics.measure import _count_plane, plane_histograms, shrink_planes
from n4flow.statistics.pooling import Pool, pool, weighted_percentile
from n4flow.statistics.shrunken import ShrunkenFiles, ShrunkenVolume

RELATIVE_BIN_WIDTH = 2.0**-10
NOTHING = np.empty(0, np.float32), np.empty(0, np.uint32)


def hostile(seed: int = 0, shape: tuple[int, int, int] = (4, 23, 31)) -> np.ndarray:
    """Positive intensities with padding, NaN, infinities, a negative plane, an empty one and a constant one."""
    rng = np.random.default_rng(seed)
    volume = rng.gamma(3, 50, shape).astype(np.float32)
    volume[:, :4] = 0
    volume[0, 9, 9] = np.nan
    volume[0, 9, 10] = np.inf
    volume[1, 8, 8] = -np.inf
    volume[1] *= -1
    volume[2] = 0
    volume[3, 5:] = 7
    return volume


def valid(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values != 0)].astype(np.float64)


@pytest.mark.parametrize("k", [1, 3, 5, 40])
def test_shrink_is_the_mean_of_valid_voxels_of_each_block(k: int) -> None:
    volume = hostile()
    small = shrink_planes(volume, k)
    assert small.mean.shape == (4, -(-23 // k), -(-31 // k))
    assert small.full_shape == volume.shape
    for z, r, c in np.ndindex(small.mean.shape):
        block = volume[z, r * k : (r + 1) * k, c * k : (c + 1) * k]
        inside = valid(block)
        expected = np.float32(inside.mean()) if inside.size else 0
        # one rounding to float32 of a float64 sum
        np.testing.assert_allclose(small.mean[z, r, c], expected, rtol=1e-6)
        assert small.valid[z, r, c] == np.float32(inside.size / block.size)


def test_shrink_counts_what_it_leaves_out() -> None:
    volume = hostile()
    planes = shrink_planes(volume, 4).planes
    assert planes["n_nonfinite"].tolist() == [2, 1, 0, 0]
    assert planes["n_zero"].tolist() == [4 * 31, 4 * 31, 23 * 31, 4 * 31]
    assert planes["n_negative"].tolist() == [0, len(valid(volume[1])), 0, 0]
    assert planes["n_valid"].tolist() == [len(valid(plane)) for plane in volume]
    assert planes["minimum"].tolist() == [valid(volume[0]).min(), valid(volume[1]).min(), 0, valid(volume[3]).min()]
    assert planes["maximum"].tolist() == [valid(volume[0]).max(), valid(volume[1]).max(), 0, valid(volume[3]).max()]


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int16", "uint32", "int8", "float64", ">f4", "bool"])
def test_shrink_takes_any_real_type(dtype: str) -> None:
    kind = np.dtype(dtype)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "ui" else (0, 2)
    volume = np.random.default_rng(1).integers(low, high, (2, 9, 11), endpoint=kind.kind in "ui").astype(kind)
    volume[0, 0, :3] = high
    small = shrink_planes(volume, 2)
    as_float = shrink_planes(volume.astype(np.float32), 2)
    np.testing.assert_allclose(small.mean, as_float.mean, rtol=1e-6)
    np.testing.assert_array_equal(small.valid, as_float.valid)
    saturated = (volume == high).sum(axis=(1, 2)) if kind.kind in "ui" else np.zeros(2)
    np.testing.assert_array_equal(small.planes["n_saturated"], saturated)


def test_shrink_does_not_depend_on_slabs_or_threads_and_survives_a_file(tmp_path) -> None:
    volume = hostile()
    whole = shrink_planes(volume, 3)
    parts = ShrunkenVolume.concatenate(
        [shrink_planes(volume[:1], 3, threads=1), shrink_planes(volume[1:], 3, threads=3)]
    )
    parts.save(tmp_path / "shrunken.npz")
    loaded = ShrunkenFiles([tmp_path / "shrunken.npz"]).part(0, 4)
    for other in (parts, loaded):
        np.testing.assert_array_equal(other.mean, whole.mean)
        np.testing.assert_array_equal(other.valid, whole.valid)
        assert (other.shrink, other.full_shape) == (whole.shrink, whole.full_shape)
        assert other.planes.keys() == whole.planes.keys()
        for name, values in whole.planes.items():
            np.testing.assert_array_equal(other.planes[name], values)


def test_shrink_refuses_what_is_not_a_volume() -> None:
    with pytest.raises(InputError, match=r"must be a \(Z, Y, X\) array of real numbers, not empty, got \(3, 4\)"):
        shrink_planes(np.ones((3, 4)), 2)
    with pytest.raises(InputError, match="complex64"):
        shrink_planes(np.ones((1, 3, 4), np.complex64), 2)
    with pytest.raises(InputError, match="not empty"):
        as_block(np.ones((0, 3, 4)))
    with pytest.raises(InputError, match="shrink must be at least 1, got 0"):
        shrink_planes(np.ones((1, 3, 4)), 0)
    with pytest.raises(InputError, match="one shrink factor and plane size"):
        ShrunkenVolume.concatenate([shrink_planes(np.ones((1, 4, 4)), 2), shrink_planes(np.ones((1, 4, 4)), 1)])


@pytest.fixture(scope="module")
def counted() -> tuple[np.ndarray, np.ndarray, np.ndarray, PlaneHistograms]:
    volume = hostile(shape=(4, 61, 67))
    rng = np.random.default_rng(3)
    tissue, agarose = rng.random(volume.shape) > 0.5, rng.random(volume.shape[1:]) > 0.6
    return volume, tissue, agarose, plane_histograms(volume, tissue, agarose)


@pytest.mark.parametrize("cls", [*CLASSES, "all"])
def test_percentiles_lie_within_a_bin_of_numpys_and_means_are_exact(counted, cls: str) -> None:
    volume, tissue, agarose, histograms = counted
    for z in range(4):
        members = {
            "tissue": tissue[z],
            "agarose": agarose & ~tissue[z],
            "other": ~tissue[z] & ~agarose,
            "all": tissue[z] | True,
        }
        expected = valid(volume[z][members[cls]])
        assert histograms.count(z, cls) == expected.size
        if not expected.size:
            assert np.isnan(histograms.median(z, cls))
            assert np.isnan(histograms.mean(z, cls))
            continue
        for q in (0, 0.1, 3, 50, 97, 99.9, 100):
            exact = np.percentile(expected, q)
            assert abs(histograms.percentile(z, q, cls) - exact) <= RELATIVE_BIN_WIDTH * abs(exact)
        # bin means are rounded to float32 once
        np.testing.assert_allclose(histograms.mean(z, cls), expected.mean(), rtol=1e-7)


def test_percentiles_of_whole_numbers_and_of_a_few_voxels_are_numpys() -> None:
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 2048, (1, 40, 40)).astype(np.uint16)  # each has a bin of its own
    few = rng.random((1, 3, 3)).astype(np.float32)
    for volume in (counts, few):
        for q in (0, 12.5, 50, 77, 99.9, 100):
            np.testing.assert_allclose(
                plane_histograms(volume).percentile(0, q), np.percentile(volume.astype(np.float64), q), rtol=1e-6
            )


def test_agarose_under_tissue_is_not_agarose() -> None:
    volume = np.ones((1, 4, 4), np.float32)
    tissue = np.zeros((1, 4, 4), bool)
    tissue[0, :2] = True
    histograms = plane_histograms(volume, tissue, np.ones((4, 4), bool))
    assert [histograms.count(0, cls) for cls in (*CLASSES, "all")] == [8, 8, 0, 16]


def test_histograms_do_not_depend_on_slabs_threads_or_pieces(counted, tmp_path, monkeypatch) -> None:
    volume, tissue, agarose, whole = counted
    slabs = [
        plane_histograms(volume[a:b], tissue[a:b], agarose, z_start=a, threads=t)
        for a, b, t in ((2, 4, 2), (0, 1, 1), (1, 2, 3))
    ]
    merged = PlaneHistograms.concatenate(slabs)
    for slab in slabs:
        slab.save(tmp_path / f"{slab.z_start}.npz")
    files = HistogramFiles([tmp_path / f"{slab.z_start}.npz" for slab in slabs])
    # planes that do not fit into one packed table, in strips of one row
    monkeypatch.setattr(kernels, "PIECE_VOXELS", 500)
    monkeypatch.setattr("n4flow.statistics.measure.strips", lambda height, _width: pairwise(range(height + 1)))
    for other in (merged, files, plane_histograms(volume, tissue, agarose)):
        assert (other.z_start, other.n_planes) == (0, 4)
        np.testing.assert_array_equal(other.filled, whole.filled)
        for z, cls in itertools.product((3, 0, 1, 2), (*CLASSES, "all")):
            for found, expected in zip(other.pairs(z, cls), whole.pairs(z, cls), strict=True):
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


def test_files_hold_negative_values_empty_planes_and_largest_counts(tmp_path) -> None:
    rows = [
        [(np.float32([-3e38, -1e-45, 1e-45, 3e38]), np.uint32([1, 2, 3, 2**32 - 1])), *[NOTHING] * 2],
        [NOTHING] * 3,
        [NOTHING, NOTHING, (np.float32([7]), np.uint32([1]))],
    ]
    PlaneHistograms.of_planes(rows, 5).save(tmp_path / "slab.npz")
    files = HistogramFiles([tmp_path / "slab.npz"])
    assert files.filled.tolist() == [True, False, True]
    for z, c in itertools.product(range(3), range(3)):
        for found, expected in zip(files.pairs(5 + z, CLASSES[c]), rows[z][c], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_array_operations_count_as_the_compiled_loop_does(counted) -> None:
    volume, tissue, agarose, whole = counted
    for z in range(4):
        for cls, (values, counts) in zip(CLASSES, _count_plane(volume[z], tissue[z], agarose), strict=True):
            expected = whole.pairs(z, cls)
            np.testing.assert_array_equal(values, expected[0])
            np.testing.assert_array_equal(counts, expected[1])


def test_slabs_with_a_gap_are_refused(tmp_path) -> None:
    parts = [plane_histograms(np.ones((2, 3, 3)), z_start=z) for z in (0, 3)]
    with pytest.raises(InputError, match="one ends before plane 2, the next begins at 3"):
        PlaneHistograms.concatenate(parts)
    for part in parts:
        part.save(tmp_path / f"{part.z_start}.npz")
    with pytest.raises(InputError, match="one ends before plane 2, the next begins at 3"):
        HistogramFiles([tmp_path / "3.npz", tmp_path / "0.npz"])
    with pytest.raises(InputError, match="plane must be from 0 to 1, got 2"):
        parts[0].count(2)


def test_edges_of_bins_are_neighbouring_floats_of_few_bits_also_below_the_normal_ones() -> None:
    """Positive floats are ordered as their bits are, so a bin is a run of them that differ in the lowest 13."""
    first = np.array([0, 1, 700, 1 << 10, (1 << 10) + 1, (2 << 10) - 1, 2 << 10, 127 << 10, 200 << 10], np.int32)
    values = ((first << 13) + 77).view(np.float32)
    lower, upper = ((first + more << 13).view(np.float32).astype(np.float64) for more in (0, 1))
    for sign, expected in ((1, (lower, upper)), (-1, (-upper, -lower))):
        for found, edge in zip(bin_edges(sign * values), expected, strict=True):
            assert np.array_equal(found, edge)
    bins, residuals = bin_index(values), np.full(len(values), 77)
    again, counts = pairs_of_bins(bins, np.ones(len(values), np.int64), residuals)
    assert np.array_equal(again, values)
    assert (counts == 1).all()


def test_bins_are_narrow_ordered_and_hold_their_values() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(0, 10.0**e, 200) for e in range(-8, 9, 2)]).astype(np.float32)
    values = np.sort(values[values != 0])
    lower, upper = bin_edges(values)
    assert ((lower <= values) & (values <= upper)).all()
    assert ((upper - lower) <= RELATIVE_BIN_WIDTH * np.minimum(abs(lower), abs(upper)) * 1.0000001).all()
    assert (np.diff(bin_index(values)) >= 0).all()


def test_pooling_planes_is_pooling_their_voxels(counted) -> None:
    volume, tissue, _agarose, histograms = counted
    together = valid(volume[[0, 1, 3]][tissue[[0, 1, 3]]])
    values, counts = histograms.pooled([0, 1, 3], "tissue")
    assert counts.sum() == together.size
    np.testing.assert_allclose(counts @ values.astype(np.float64) / counts.sum(), together.mean(), rtol=1e-6)
    assert abs(weighted_percentile(values, counts, 30) - np.percentile(together, 30)) <= RELATIVE_BIN_WIDTH * 500
    assert [len(a) for a in pool(np.empty(0, np.float32), np.empty(0, np.int64))] == [0, 0]


@pytest.mark.parametrize("mask", [np.eye(5, dtype=bool), np.eye(5) * 255, np.eye(5, dtype=np.uint8), np.eye(5) - 0.0])
def test_masks_of_every_kind_are_one_mask(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(as_mask(mask, (5, 5)), np.eye(5, dtype=bool))


def test_a_mask_of_another_shape_names_both_shapes() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 5, 5\) of the volume, got \(5, 5\)"):
        as_mask(np.eye(5), (2, 5, 5))


def test_pooling_is_the_same_for_pairs_near_and_far() -> None:
    rng = np.random.default_rng(6)
    near = rng.uniform(1, 1.2, 3000).astype(np.float32)
    far = (near * 2.0 ** rng.integers(-40, 40, 3000) * rng.choice([-1, 1], 3000)).astype(np.float32)
    counts = rng.integers(1, 9, 3000)
    for values in (near, far):
        pooled, total = pool(values, counts)
        expected = {}
        for bin_, value, n in zip(bin_index(values).tolist(), values.tolist(), counts.tolist(), strict=True):
            moment, voxels = expected.get(bin_, (0.0, 0))
            expected[bin_] = (moment + n * value, voxels + n)
        assert total.tolist() == [expected[bin_][1] for bin_ in sorted(expected)]
        np.testing.assert_allclose(pooled, [expected[b][0] / expected[b][1] for b in sorted(expected)], rtol=1e-6)
        growing = Pool()
        for part in (slice(0, 1000), slice(1000, 1001), slice(1001, 3000)):
            growing.add(values[part], counts[part])
        assert growing.pairs()[1].tolist() == total.tolist()
        np.testing.assert_allclose(growing.pairs()[0], pooled, rtol=1e-7)


def test_threads_can_be_limited(monkeypatch) -> None:
    monkeypatch.setattr(planes, "_limit", [])
    cores = planes.available_threads()
    planes.limit_threads(1)
    assert planes.available_threads() == 1
    planes.limit_threads(10_000)
    assert planes.available_threads() == cores


def tiled(volume: np.ndarray, k: int, height: int, width: int) -> TileShrinker:
    """Return the block means of planes cut into tiles of so many rows and columns."""
    means, tiles = TileShrinker(volume.shape, k), []
    for y, x in np.ndindex(-(-volume.shape[1] // height), -(-volume.shape[2] // width)):
        at = y * height, x * width
        part = np.ascontiguousarray(volume[:, at[0] : at[0] + height, at[1] : at[1] + width])
        tiles.append(Tile(means, (0, *at), part.shape))
        tiles[-1].add(0, part)
    means.merge(slice(0, len(volume)), tiles)
    means.finish()
    return means


@pytest.mark.parametrize(("k", "height", "width"), [(12, 23, 28), (12, 20, 28), (5, 4, 3), (9, 6, 2), (40, 7, 9)])
def test_tiles_narrower_than_a_block_give_its_mean(k: int, height: int, width: int) -> None:
    """The last columns of a plane, or every tile, lie within one block that others touch, too."""
    volume = hostile()
    small, means = shrink_planes(volume, k), tiled(volume, k, height, width)
    np.testing.assert_allclose(means.mean, small.mean, rtol=1e-6)  # float64 sums in another order, rounded once
    np.testing.assert_array_equal(means.valid, small.valid)


def test_counts_of_a_tile_are_exact_beyond_the_whole_numbers_of_float32() -> None:
    volume = np.ones((1, 4100, 4100), np.float32)  # more than 2**24 voxels
    volume[0, 0, 0] = 0
    means = tiled(volume, 10, *volume.shape[1:])
    np.testing.assert_array_equal(means.counts, [[volume.size - 1, 1, 0, 0, 0]])
    assert means.valid[0, 0, 0] == np.float32(0.99)


def test_sums_of_large_blocks_of_integers_do_not_wrap() -> None:
    small = shrink_planes(np.full((1, 200, 200), 65535, np.uint16), 200)  # 2.6e9 is more than int32 holds
    np.testing.assert_array_equal(small.mean, [[[65535]]])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_block_wider_than_the_parts_of_threads(dtype: str) -> None:
    small = shrink_planes(np.full((1, 40, 1300), 3, dtype), 1300, threads=2)
    np.testing.assert_array_equal(small.mean, [[[3]]])
