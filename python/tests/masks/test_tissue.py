"""Masks of phantoms with known tissue, at the border, under padding, and where there is nothing to find."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from n4flow.compute.threads import limit_threads
from n4flow.errors import GpuError, InputError, N4flowWarning
from n4flow.masks import smoothed_sections
from n4flow.masks.agarose import agarose_levels, get_agarose_mask, projection
from n4flow.masks.agarose_levels import has_evidence
from n4flow.masks.morphology import Norms, close_along_z, close_plane, smooth_planes, smooth_valid
from n4flow.masks.otsu import Scale, otsu_split
from n4flow.masks.packed_mask import PackedMask
from n4flow.masks.smoothed_sections import SectionHistograms, Smoother, survey
from n4flow.masks.tissue import compute_tissue_mask, tissue_mask_with_levels
from n4flow.masks.tissue_source import TissueSource
from n4flow.n4_bias.otsu_mask import otsu_cut, otsu_mask
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import plane_histograms, shrink_planes
from n4flow.statistics.shrunken import ShrunkenFiles


def brain(n_z: int = 6, size: tuple[int, int] = (61, 73), radius: float = 20.0, seed: int = 0, drift: float = 0.0):
    """A bright disc with a darker core in speckled agarose, and where it is; `drift` moves it from plane to plane."""
    y, x = np.mgrid[: size[0], : size[1]]
    centre = (size[1] - 1) / 2 + drift * (np.arange(n_z) - (n_z - 1) / 2)
    distance = np.stack([np.hypot(y - (size[0] - 1) / 2, x - c) for c in centre])
    clean = np.where(distance < radius, np.where(distance < radius / 3, 4.0, 6.0), 1.0)
    speckle = np.random.default_rng(seed).gamma(9, 1 / 9, clean.shape)
    return (100 * clean * speckle).astype(np.float32), distance < radius


def test_an_intensity_goes_to_the_scale_and_back() -> None:
    values = np.array([0.0, np.nan, 0.5, 2.0, 50.0, 4e4], np.float32)
    assert np.allclose(Scale(2.0).forward(values), [0, 0, 1, 1, 1 + np.log(25), 1 + np.log(2e4)], rtol=1e-6)
    assert [Scale(2.0).back(1 + np.log(x / 2)) for x in (2.0, 50.0)] == pytest.approx([2.0, 50.0])
    assert [Scale().back(x) for x in (2.0, 50.0)] == [2.0, 50.0]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_tissue_of_a_phantom() -> None:
    volume, tissue = brain()
    assert dice(compute_tissue_mask(volume), tissue) > 0.97  # the rim moves by half a voxel at sigma 2


def test_oblique_cuts_move_the_mask_from_plane_to_plane() -> None:
    volume, tissue = brain(n_z=8, drift=3.0)
    found = compute_tissue_mask(volume, n_serial_slices=2, z_closing_sections=0)
    assert min(dice(a, b) for a, b in zip(found, tissue, strict=True)) > 0.95


def test_dark_tissue_is_not_cut_away() -> None:
    volume, tissue = brain()
    y, x = np.mgrid[:61, :73]
    disc = np.hypot(y - 30, x - 36) < 20
    volume[:, disc] *= 4
    volume[:, disc & (x < 40)] *= 0.35  # half of the tissue is dark, eight times the agarose nonetheless
    found = tissue_mask_with_levels(volume, 1)
    linear = ndimage.gaussian_filter(volume, (1, 2, 2))
    assert found.scale == "log"
    assert dice(found.mask, tissue) > 0.96
    assert dice(linear > threshold_otsu(linear), tissue) < 0.8


@pytest.mark.parametrize("slope", [0.5, 1.1])
def test_shading_is_not_taken_for_tissue(slope: float) -> None:
    volume, tissue = brain()
    shaded = volume * np.exp(slope * np.linspace(-1, 1, 73)).astype(np.float32)
    assert dice(compute_tissue_mask(shaded), tissue) > 0.9  # a factor of 3 and of 9 across the field


def test_a_dim_section_keeps_its_mask() -> None:
    volume, tissue = brain(n_z=9)
    volume[3:6] *= 0.15
    found = tissue_mask_with_levels(volume, 3)
    assert found.origins == ("own",) * 3
    assert dice(found.mask[3:6], tissue[3:6]) > 0.95
    assert dice(compute_tissue_mask(volume)[3:6], tissue[3:6]) < 0.1  # all planes are one section unless it is said


def test_sections_without_tissue_or_without_agarose_take_the_threshold_of_the_volume() -> None:
    volume, tissue = brain(n_z=12)
    rng = np.random.default_rng(1)
    volume[3:6] = 100 * rng.gamma(9, 1 / 9, volume[3:6].shape)  # agarose alone
    volume[6:9] = 500 * rng.gamma(9, 1 / 9, volume[6:9].shape)  # tissue fills the field
    found = tissue_mask_with_levels(volume, 4, z_closing_sections=0)
    assert found.origins == ("own", "volume", "volume", "own")
    assert found.thresholds[1] == found.thresholds[2] == found.volume_threshold
    assert not found.mask[3:6].any()
    assert found.mask[6:9].all()
    assert dice(found.mask[:3], tissue[:3]) > 0.95


def test_empty_and_constant_sections_have_no_mask_and_change_no_other() -> None:
    volume, _tissue = brain(n_z=9)
    whole = tissue_mask_with_levels(volume, 3, z_closing_sections=0)
    volume[3:6] = 0
    empty = tissue_mask_with_levels(volume, 3, z_closing_sections=0)
    volume[3:6] = 65535
    constant = tissue_mask_with_levels(volume, 3, z_closing_sections=0)
    assert (empty.origins, constant.origins) == (("own", "empty", "own"), ("own", "constant", "own"))
    for found in (empty, constant):
        assert found.thresholds[1] is None
        assert not found.mask[3:6].any()
        np.testing.assert_array_equal(found.mask[[0, 1, 2, 6, 7, 8]], whole.mask[[0, 1, 2, 6, 7, 8]])


def test_flagged_sections_do_not_enter_the_threshold_of_the_volume() -> None:
    volume, _tissue = brain(n_z=9)
    expected = tissue_mask_with_levels(np.delete(volume, slice(3, 6), axis=0), 2).volume_threshold
    volume[3:6] *= 40
    table = SectionTable([Section("a", 0, 3), Section("b", 3, 6, "damaged"), Section("c", 6, 9)], 9)
    found = tissue_mask_with_levels(volume, table)
    assert found.volume_threshold == expected
    assert found.mask[3:6].any()
    everything = SectionTable([Section("a", 0, 9, "damaged")], 9)
    assert (
        dice(tissue_mask_with_levels(volume[:3], SectionTable([Section("a", 0, 3, "damaged")], 3)).mask, _tissue[:3])
        > 0.95
    )
    assert tissue_mask_with_levels(volume, everything).mask.any()


def test_a_volume_of_one_class_is_all_tissue_with_a_warning() -> None:
    volume = np.random.default_rng(2).gamma(9, 1 / 9, (4, 40, 50)).astype(np.float32)
    volume[:, :7] = 0
    with pytest.warns(N4flowWarning, match="one class of intensities"):
        found = tissue_mask_with_levels(volume, 2)
    assert found.origins == ("one_class", "one_class")
    np.testing.assert_array_equal(found.mask[:, 7:], True)
    assert not found.mask[:, :4].any()


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan])
def test_a_volume_of_one_value_has_no_tissue(value: float) -> None:
    with pytest.warns(N4flowWarning, match="the tissue mask is empty"):
        assert not compute_tissue_mask(np.full((3, 12, 14), value)).any()


def test_one_value_beside_zeros_is_tissue() -> None:
    volume = np.zeros((4, 20, 22))
    volume[:, 6:14, 5:17] = 3
    with pytest.warns(N4flowWarning, match="one class of intensities"):
        np.testing.assert_array_equal(compute_tissue_mask(volume, n_serial_slices=2), volume > 0)


def test_padding_changes_no_voxel() -> None:
    volume, _tissue = brain(n_z=4, radius=34)  # reaches the border
    volume[1, 5, 5] = np.nan
    volume[2, 30, 30] = np.inf
    padded = np.pad(volume, ((0, 0), (9, 17), (13, 5)))
    inside = (slice(None), slice(9, -17), slice(13, -5))
    np.testing.assert_array_equal(
        compute_tissue_mask(padded, n_serial_slices=2)[inside], compute_tissue_mask(volume, n_serial_slices=2)
    )
    agarose, threshold = get_agarose_mask(volume)
    padded_agarose, padded_threshold = get_agarose_mask(padded)
    assert padded_threshold == threshold
    np.testing.assert_array_equal(padded_agarose[inside[1:]], agarose)
    assert padded_agarose.sum() == agarose.sum()  # padding is neither agarose nor tissue


def test_closing_does_not_eat_the_mask_at_the_border() -> None:
    plane = np.ones((12, 15), bool)
    plane[5:7, 5:7] = False
    assert close_plane(plane, 3).all()
    speckled = np.random.default_rng(3).random((40, 50)) > 0.6
    filled = ndimage.binary_fill_holes(speckled)
    wide = np.pad(filled, 20)
    np.testing.assert_array_equal(close_plane(speckled, 4), ndimage.binary_closing(wide, disk(4))[20:-20, 20:-20])
    np.testing.assert_array_equal(close_plane(speckled, 0), filled)


def test_gaps_along_z_are_bridged_by_sections_not_planes() -> None:
    table = SectionTable([Section("a", 0, 4), Section("b", 4, 10), Section("c", 10, 12), Section("d", 12, 20)], 20)
    mask = np.zeros((20, 1, 3), bool)
    mask[[0, 3, 10, 19]] = True
    mask[:, 0, 2] = False
    mask[5, 0, 2] = True  # nothing on either side
    one = close_along_z(mask, table, 1)[:, 0, 0]
    two = close_along_z(mask, table, 2)[:, 0, 0]
    # planes 4-9 are one section, 11-18 are half a section and seven eighths of one
    assert np.flatnonzero(~one).tolist() == list(range(11, 19))
    assert two.all()
    assert close_along_z(mask, table, 2)[:, 0, 2].sum() == 1
    assert close_along_z(mask, table, 0) is close_along_z(mask, table, -1) is mask
    assert close_along_z(mask, SectionTable.equal(20, 1), 2) is mask
    even = np.random.default_rng(4).random((24, 5, 6)) > 0.7
    line = np.ones((7, 1, 1), bool)  # two sections of three planes, and one
    reference = ndimage.binary_closing(np.pad(even, ((9, 9), (0, 0), (0, 0))), line)[9:-9]
    np.testing.assert_array_equal(close_along_z(even, SectionTable.equal(24, 8), 2), reference)


@pytest.mark.parametrize("border", [(3, 0), (0, 2)])
def test_one_value_is_no_tissue_however_many_planes_are_empty(border: tuple[int, int]) -> None:
    volume = np.full((8, 20, 21), 7.0, np.float32)
    for padded in (volume, np.pad(volume, (border, (0, 0), (0, 0)))):
        with pytest.warns(N4flowWarning, match="the tissue mask is empty"):
            assert not compute_tissue_mask(padded).any()


@pytest.mark.parametrize("shrunken", [False, True])
def test_padding_along_z_makes_no_section_thicker(shrunken: bool) -> None:
    """A gap of two and a quarter sections stays, however many empty planes the first and the last section have."""
    volume, _tissue = brain(n_z=20)
    rim = np.median(volume[:, :5])
    volume[1:10] = rim  # three quarters of the first section, the second and half of the third
    cuts = [0, 4, 8, 12, 16, 20]
    found = []
    for low, high in ((0, 0), (5, 0), (40, 7)):
        padded = np.pad(volume, ((low, high), (0, 0), (0, 0)))
        edges = [0, *(cut + low for cut in cuts[1:-1]), len(padded)]
        table = SectionTable(
            [Section(f"s{i}", a, b) for i, (a, b) in enumerate(itertools.pairwise(edges))], len(padded)
        )
        source = shrink_planes(padded, 1) if shrunken else padded
        mask = tissue_mask_with_levels(source, table, smoothing_sigma_z=0.0).mask[:]
        assert not mask[:low].any()
        assert not mask[low + 20 :].any()
        found.append(mask[low : low + 20])
    assert [z for z in range(20) if found[0][z].any()] == [0, *range(10, 20)]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_a_section_alone_is_as_in_the_stack() -> None:
    volume, _tissue = brain(n_z=9)
    stack = tissue_mask_with_levels(volume, 3, z_closing_sections=0)
    alone = tissue_mask_with_levels(volume[3:6], 1, z_closing_sections=0)
    assert alone.thresholds[0] == stack.thresholds[1]
    np.testing.assert_array_equal(alone.mask, stack.mask[3:6])


def test_smoothing_is_a_mean_of_valid_voxels() -> None:
    rng = np.random.default_rng(5)
    values = rng.random((20, 25)).astype(np.float32) + 1
    values[:6] = 0
    values[9, 9] = np.nan
    valid = np.isfinite(values) & (values != 0)
    pad = 30
    wide = [np.pad(a, pad) for a in (np.where(valid, values, 0).astype(np.float64), valid.astype(np.float64))]
    total, weight = (ndimage.gaussian_filter(a, (2, 3))[pad:-pad, pad:-pad] for a in wide)
    smooth = smooth_valid(values, (2, 3))
    np.testing.assert_allclose(smooth[valid], (total[valid] / weight[valid]), rtol=1e-5)  # float32 sums
    assert (smooth[~valid] == 0).all()


def weighted_mean(values: np.ndarray, sigmas: tuple[float, ...], weights: np.ndarray) -> np.ndarray:
    valid = np.isfinite(values) & (values != 0)
    weights = np.where(valid, weights, 0)
    total, norm = (
        ndimage.gaussian_filter(a, sigmas, mode="constant") for a in (np.where(valid, values, 0) * weights, weights)
    )
    return np.divide(total, norm, out=np.zeros_like(total), where=valid & (norm > 0))


@pytest.mark.parametrize("sigmas", [(1.0, 2.0, 2.0), (0.0, 1.5, 3.2), (2.5, 0.0, 0.0)])
def test_compiled_smoothing_is_scipys(sigmas: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(11)
    values = rng.normal(0, 3, (9, 40, 47)).astype(np.float32)
    values[:, :6] = 0
    values[2:4, 20:25, 7:30] = np.array([np.nan, np.inf, -np.inf, 0, 1e4])[:, None]
    norms = Norms()  # what it keeps of planes with some weights must not be taken for planes with others
    padded = np.where(np.arange(47) < 5, 0, values).astype(np.float32)
    padded[:5, -3:] = 0
    whole = np.full_like(values, 7.0)
    for image in (whole, values, padded, whole, -padded):
        for weights in (None, rng.random(values.shape).astype(np.float32)):
            expected = smooth_valid(image, sigmas) if weights is None else weighted_mean(image, sigmas, weights)
            for inner in (slice(0, 9), slice(2, 8), slice(8, 9)):
                found = smooth_planes(image, sigmas, weights, inner, norms)
                # the same sums in the same order; a compiler that contracts multiply and add may move the last bit
                np.testing.assert_allclose(found, expected[inner], rtol=3e-7, atol=1e-6)
                assert ((found == 0) == (expected[inner] == 0)).all()


@pytest.mark.parametrize("shape", [(40, 47), (1, 90), (70, 1), (3, 200)])
@pytest.mark.parametrize("radius", [1, 3, 20, 70])
def test_compiled_closing_is_scipys(shape: tuple[int, int], radius: int) -> None:
    def near(plane: np.ndarray) -> np.ndarray:  # dilation by a disk, whose own cost in SciPy grows with its area
        return ndimage.distance_transform_edt(~plane) <= radius

    rng = np.random.default_rng(radius)
    for share in (0.1, 0.4, 0.8):
        plane = rng.random(shape) < share
        filled = np.pad(ndimage.binary_fill_holes(plane), 2 * radius)
        expected = ~near(~near(filled))
        if radius <= 20:
            np.testing.assert_array_equal(expected, ndimage.binary_closing(filled, disk(radius)))
        inner = slice(2 * radius, -2 * radius)
        np.testing.assert_array_equal(close_plane(plane, radius), expected[inner, inner])


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_closing_on_a_device_is_scipys(any_device: Any, radius: int) -> None:
    plane = np.random.default_rng(3).random((40, 50)) > 0.6
    filled = np.pad(ndimage.binary_fill_holes(plane), 20)
    expected = ndimage.binary_closing(filled, disk(radius))[20:-20, 20:-20]
    np.testing.assert_array_equal(close_plane(any_device.asarray(plane), radius).get(), expected)


def test_a_winding_way_out_of_a_hole_is_found_to_its_end() -> None:
    plane = np.zeros((41, 150), bool)
    plane[[0, -1]] = plane[:, [0, -1]] = True
    plane[2::2] = True  # corridors of one row, joined at alternate ends
    plane[2:-1:4, -2] = plane[4:-1:4, 1] = False
    assert close_plane(plane, 0).all()
    plane[39, 0] = False  # a way out at the end of the last one
    np.testing.assert_array_equal(close_plane(plane, 0), plane)
    np.testing.assert_array_equal(close_plane(plane.T, 0), plane.T)


@pytest.mark.parametrize("dark", [0.0, 3000.0])
def test_masks_do_not_depend_on_runs_files_or_packing(tmp_path, monkeypatch, dark: float) -> None:
    volume, _tissue = brain(n_z=14, size=(122, 146), radius=40.0, drift=2.0)
    volume[5:7] *= 1.7
    volume[:, :9] = 0
    volume = np.where(volume > 0, volume * 20 + dark, 0).astype(np.uint16)
    table = SectionTable([Section("a", 0, 5), Section("b", 5, 7, "damaged"), Section("c", 7, 14)], 14)
    shrunken = shrink_planes(volume, 2)
    for start, stop in ((0, 3), (3, 9), (9, 14)):
        shrunken.part(start, stop).save(tmp_path / f"{start:02d}.npz")
    files = ShrunkenFiles(sorted(tmp_path.glob("*.npz")))
    expected = tissue_mask_with_levels(shrunken, table)
    assert (expected.mask[:] != tissue_mask_with_levels(shrunken.mean, table).mask).mean() < 0.01  # it has no weights
    agarose, threshold = get_agarose_mask(shrunken.mean)
    assert expected.mask.any()
    assert agarose.any()
    for run, held, smooth in ((1, 0, 0), (4, 1 << 26, 1 << 17), (100, 50_000, 1 << 27)):
        monkeypatch.setattr(smoothed_sections, "RUN_PLANES", run)
        monkeypatch.setattr(smoothed_sections, "HELD_BYTES", held)
        monkeypatch.setattr(smoothed_sections, "HELD_SMOOTH", smooth)
        for source in (shrunken, files):
            found = tissue_mask_with_levels(source, table)
            assert isinstance(found.mask, PackedMask)
            np.testing.assert_array_equal(found.mask[:], expected.mask[:])
            np.testing.assert_array_equal(found.mask[4], expected.mask[4])
            assert found.thresholds == expected.thresholds
            assert found.mask.mean() == expected.mask.mean()
    for source in (shrunken, files):
        np.testing.assert_array_equal(get_agarose_mask(source)[0], agarose)
        assert get_agarose_mask(source)[1] == threshold
    assert agarose_levels(files, agarose, table, found.mask) == agarose_levels(shrunken, agarose, table, expected.mask)


@pytest.mark.parametrize(("runs_held", "again"), [(0, 3), (2, 1), (3, 0)])
def test_smoothed_planes_are_cached_as_far_as_there_is_room(monkeypatch, runs_held: int, again: int) -> None:
    volume, _tissue = brain(n_z=12)
    monkeypatch.setattr(smoothed_sections, "RUN_PLANES", 4)
    monkeypatch.setattr(smoothed_sections, "HELD_SMOOTH", runs_held * volume[:4].size * 4)
    smoother, section = Smoother(shrink_planes(volume, 1), (1.0, 2.0, 2.0), None), Section("a", 0, 12)
    first = [part.copy() for _z, part in smoother.runs(section, Scale())]
    smooth, counted = smoother._smooth, []
    monkeypatch.setattr(smoother, "_smooth", lambda *run: (counted.append(run), smooth(*run))[1])
    second = [part for _z, part in smoother.runs(section, Scale())]
    np.testing.assert_array_equal(np.concatenate(second), np.concatenate(first))
    assert len(counted) == again
    smoother.forget()  # another scale is another volume
    list(smoother.runs(section, Scale(1.0)))
    assert len(counted) == again + 3


@pytest.mark.parametrize("deep", [True, False])
def test_thresholds_are_found_without_holding_what_grows_along_z(tmp_path, monkeypatch, deep: bool) -> None:
    monkeypatch.setattr(smoothed_sections, "HELD_BYTES", 1 << 18)
    monkeypatch.setattr(smoothed_sections, "HELD_SMOOTH", 1 << 18)
    limit_threads(1)  # a pool starts as many threads as its tasks keep busy, each with 25 MB of tables
    n_planes = 120
    volume, _tissue = brain(n_z=n_planes, size=(90, 90), radius=30.0)
    shrunken, histograms = shrink_planes(volume, 1), plane_histograms(volume)
    held = sum(array.nbytes for z in range(n_planes) for array in histograms.pairs(z))
    peaks = []
    for n in (n_planes // 4, n_planes):
        shrunken.part(0, n).save(tmp_path / f"{n}.npz")
        source, table = ShrunkenFiles([tmp_path / f"{n}.npz"]), SectionTable.equal(n, 1 if deep else n)
        for measured in (False, True):  # buffers of threads are made once
            if measured:
                tracemalloc.start()
            survey(SectionHistograms(Smoother(source, (1.0, 0.5, 0.5), None), table, Scale()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.25 * held  # three quarters of which belong to the planes that were added


@pytest.mark.parametrize("seed", [1, 3, 20, 64])
def test_gaps_are_bridged_column_by_column_in_arrays_and_packed_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for reach in (1, 2, 5):
        inside = rng.random((70, 9, 13)) > 0.9
        ends = np.sort(rng.choice(np.arange(1, 70), 16, replace=False)).tolist()
        table = SectionTable([Section(str(a), a, b) for a, b in itertools.pairwise([0, *ends, 70])], 70)
        packed = PackedMask.of(inside)
        closed = close_along_z(packed, table, reach)
        sizes = np.array([section.z_stop - section.z_start for section in table])
        depth, expected = np.concatenate([[0.0], np.cumsum(np.repeat(1 / sizes, sizes))]), inside.copy()
        for y, x in np.ndindex(inside.shape[1:]):
            for below, above in itertools.pairwise(np.flatnonzero(inside[:, y, x])):
                expected[below:above, y, x] |= depth[above] - depth[below + 1] <= reach + 1e-6
        np.testing.assert_array_equal(close_along_z(inside, table, reach), expected)
        np.testing.assert_array_equal(closed[:], expected)
        np.testing.assert_array_equal(packed[:], inside)
        assert closed.mean() > inside.mean()


def test_gaps_of_two_deep_sections_are_bridged_in_the_memory_of_a_few_planes() -> None:
    rows, columns = np.mgrid[:200, :200]
    peaks, bits = [], []
    for n in (130, 650):
        planes = np.stack([np.hypot(rows - 100, columns - 100) < 60 + 20 * (z % 7 > 2) for z in range(n)])
        packed = PackedMask.of(planes)
        for measured in (False, True):
            if measured:
                tracemalloc.start()
            closed = close_along_z(packed, SectionTable.equal(n, 2), 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        bits.append(planes.size / 8)
        assert closed.mean() > packed.mean()
    assert peaks[1] - peaks[0] < 0.5 * (bits[1] - bits[0])  # two masks of a tenth of the bits, and Python's own


def test_intensities_around_zero_are_split() -> None:
    """Their mean is 0 to the last bit, by which nothing can be divided."""
    volume = np.ones((2, 40, 40), np.float32)
    volume[:, :20] = -1
    mask = compute_tissue_mask(volume, smoothing_sigma=0.0, smoothing_sigma_z=0.0, closing_radius=0)
    np.testing.assert_array_equal(mask, volume > 0)


def test_a_packed_mask_refuses_what_does_not_fit() -> None:
    packed = PackedMask.empty((6, 5, 7))
    packed[-1] = np.ones((5, 7), bool)
    assert packed[-1].all()
    assert packed[5].all()
    assert packed.mean() == 1 / 6
    for planes, shape in ((9, (5, 7)), (slice(4, 9), (5, 5, 7)), (1, (4, 7)), (slice(2, 5), (1, 5, 7))):
        with pytest.raises((ValueError, IndexError)):
            packed[planes] = np.ones(shape, bool)
    with pytest.raises(IndexError):
        packed[::2]
    assert packed[:].sum() == 35


def test_a_packed_mask_takes_a_tenth_of_its_bits() -> None:
    rows, columns = np.mgrid[:400, :500]
    planes = np.stack([np.hypot(rows - 200, columns - 200 - z) < 150 for z in range(6)])
    packed = PackedMask.of(planes)
    assert sum(map(len, packed.planes)) < planes.size / 80
    np.testing.assert_array_equal(packed.part(2, 5)[1:], planes[3:5])
    packed[1:3] = ~planes[1:3]
    np.testing.assert_array_equal(PackedMask.concatenate([packed.part(2, 6), packed.part(0, 2)])[0], ~planes[2])
    assert packed.mean() == np.concatenate([planes[:1], ~planes[1:3], planes[3:]]).mean()
    assert packed.any()
    assert not PackedMask.empty((3, 4, 5)).any()


def test_otsu_is_scikit_images() -> None:
    rng = np.random.default_rng(6)
    for n in (50, 5000):
        values = np.concatenate([rng.normal(3, 0.5, n), rng.normal(7, 1, n // 3)])
        counts, edges = np.histogram(values, 64)
        centres = (edges[:-1] + edges[1:]) / 2
        assert centres[otsu_cut(counts, centres)] == threshold_otsu(hist=(counts, centres))
    values[:4] = 1e4  # debris, less than one voxel in a thousand
    split = otsu_split(*plane_histograms(values.reshape(1, 1, -1)).pairs(0))
    assert split is not None
    values = np.minimum(values, np.percentile(values, 99.9))
    reference = threshold_otsu(values)
    assert abs(split.threshold - reference) < 2 * np.ptp(values) / 256
    assert abs(split.dark - values[values <= reference].mean()) < 0.02
    assert abs(split.bright - values[values > reference].mean()) < 0.05
    assert otsu_split(np.ones(1, np.float32), np.ones(1, np.int64)) is None


def test_two_values_are_told_apart_however_few_voxels_have_the_second() -> None:
    """The percentile to which debris is clipped is the first value then."""
    split = otsu_split(np.array([1.0, 5.0]), np.array([10_000, 5]))
    assert split is not None
    assert (split.dark, split.bright) == pytest.approx((1, 5), abs=4 / 256)
    assert 1 < split.threshold < 5


@pytest.mark.parametrize("scale", [1.0, 4000.0])
def test_otsu_mask_is_otsus_of_the_whole_volume(scale: float) -> None:
    volume = (brain()[0] * scale).astype(np.float32)
    volume[:, :9] = 0  # zeros count here, as everything does
    np.testing.assert_array_equal(otsu_mask(volume), volume > threshold_otsu(volume, nbins=200))
    np.testing.assert_array_equal(otsu_mask(volume[0]), volume[0] > threshold_otsu(volume[0], nbins=200))
    broken = volume.copy()
    broken[0, 40, 40:43] = np.nan, np.inf, -np.inf
    expected = volume > threshold_otsu(broken[np.isfinite(broken)], nbins=200)
    expected[0, 40, 40:43] = False
    np.testing.assert_array_equal(otsu_mask(broken), expected)


def test_otsu_mask_of_nothing_is_empty() -> None:
    assert not otsu_mask(np.full((4, 5), 7)).any()
    assert not otsu_mask(np.full((2, 4, 5), np.nan)).any()
    with pytest.raises(InputError, match="nbins must be at least 2, got 1"):
        otsu_mask(np.ones((4, 5)), 1)


def test_agarose_is_the_dark_side_of_the_projection() -> None:
    volume, tissue = brain()
    agarose, threshold = get_agarose_mask(volume)
    smooth = ndimage.gaussian_filter(volume.mean(axis=0), 1.0)
    assert abs(threshold - threshold_otsu(smooth)) < 0.02 * np.ptp(smooth)
    assert agarose.shape == volume.shape[1:]
    assert (agarose & ~tissue[0]).sum() > 0.97 * (~tissue[0]).sum()
    assert not (agarose & ndimage.binary_erosion(tissue[0], iterations=2)).any()


def test_partial_padding_counts_for_nothing_in_the_projection() -> None:
    volume, _tissue = brain(n_z=8)
    expected, _threshold = get_agarose_mask(volume)
    volume[::2, :, :40] = 0  # half of the planes are padded there, tissue too
    found, _threshold = get_agarose_mask(volume)
    assert dice(found, expected) > 0.98


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16", ">u2"])
def test_the_projection_is_numpys_mean_of_valid_voxels(dtype: str) -> None:
    rng = np.random.default_rng(4)
    volume = np.round(rng.normal(0, 9, (35, 131, 40))).astype(dtype)  # runs of planes and of rows; many exact zeros
    volume[:, 5] = 0
    if volume.dtype.kind == "f":
        volume[rng.random(volume.shape) < 0.2] = np.nan
        volume[3, 7] = np.inf
    wide = volume.astype(np.float64)
    wide[~np.isfinite(wide) | (wide == 0)] = np.nan
    expected = np.zeros(wide.shape[1:])
    some = np.isfinite(wide).any(axis=0)
    expected[some] = np.nanmean(wide[:, some], axis=0)
    np.testing.assert_allclose(projection(volume), expected, rtol=1e-12, atol=1e-12)  # NumPy adds in another order


@pytest.mark.parametrize("kind", ["constant", "empty", "noise"])
def test_without_a_dark_side_there_is_no_agarose(kind: str) -> None:
    volume = {
        "constant": np.full((3, 30, 30), 5.0),
        "empty": np.zeros((3, 30, 30)),
        "noise": np.random.default_rng(7).gamma(9, 1, (3, 60, 60)),
    }[kind]
    with pytest.warns(N4flowWarning, match="no dark side"):
        agarose, threshold = get_agarose_mask(volume)
    assert not agarose.any()
    assert np.isfinite(threshold)


def test_levels_of_the_report() -> None:
    volume, tissue = brain(n_z=9)
    volume[3:6] *= 2
    volume[6:9, ~tissue[6]] = 0  # no agarose in the last section
    shrunken = shrink_planes(volume, 2)
    agarose = ~tissue[0, ::2, ::2]
    levels = agarose_levels(shrunken, agarose, 3, tissue[:, ::2, ::2])
    assert [level["section"] for level in levels] == ["s000", "s001", "s002"]
    assert [level["source"] for level in levels] == ["own", "own", "borrowed"]
    assert levels[0]["confidence"] == 1.0 > levels[2]["confidence"] > 0
    means = shrunken.mean[:3][:, agarose]
    assert abs(levels[0]["level"] / np.median(means[means > 0]) - 1) < 0.02
    assert levels[2]["level"] == pytest.approx(levels[1]["level"], rel=0.02)


def test_expanding_gives_each_voxel_its_block() -> None:
    small = np.random.default_rng(8).random((4, 5, 6)) > 0.5
    whole = small.repeat(3, axis=1).repeat(3, axis=2)[:, :14, :16]
    source = TissueSource(small, np.zeros((5, 6), bool), 3)
    np.testing.assert_array_equal(source.block(slice(0, 4), slice(0, 14), slice(0, 16)), whole)
    np.testing.assert_array_equal(source.block(slice(1, 3), slice(4, 11), slice(7, 16)), whole[1:3, 4:11, 7:16])
    for mask in (small, PackedMask.of(small)):
        part = replace(source, small=mask).part(1, 4).part(2, 3)
        np.testing.assert_array_equal(part.small[:], small[2:3])
        np.testing.assert_array_equal(
            part.unpacked().block(slice(2, 3), slice(4, 11), slice(7, 16)), whole[2:3, 4:11, 7:16]
        )


def test_a_plane_that_is_bright_and_flat_under_the_agarose_shows_tissue() -> None:
    """One that exceeds twice the usual level or twice the usual flatness alone is believed."""
    level = np.array([10, 10, 10, 10, 10, 25, 19, 25, 25.0])
    top = level / [0.1, 0.1, 0.1, 0.1, 0.1, 0.25, 0.25, 0.19, 0.1]
    found = has_evidence(level, np.full(9, 200), top, np.ones(9, bool))
    assert np.flatnonzero(~found).tolist() == [5]


def test_the_gpu_asked_for_is_the_gpu_used() -> None:
    try:
        from n4flow.compute.arrays import probe_gpu

        probe_gpu()
    except GpuError:
        with pytest.raises(GpuError, match="no working GPU"):
            compute_tissue_mask(brain()[0], use_gpu=True)
    else:
        volume, tissue = brain()
        assert dice(compute_tissue_mask(volume, use_gpu=True), tissue) > 0.97
