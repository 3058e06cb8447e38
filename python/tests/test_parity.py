"""One test for each row of docs/parity.md: what a function that carries a peer's name does differently."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

import n4flow
from n4flow.compute.arrays import probe_gpu
from n4flow.errors import GpuError, InputError, N4flowWarning
from n4flow.sections import Section, SectionTable

TABLE = Path(__file__).parents[2] / "docs" / "parity.md"
FAST = {"n_iterations": (15, 15), "shrink_factor": 2}


def shaded(shape: tuple[int, int, int] = (16, 34, 45), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Even tissue with 5 % noise under a known field, and the log of that field with mean 0."""
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    log_field = 0.3 * x[None, None] - 0.2 * y[None, :, None] ** 2 + 0.1 * z[:, None, None]
    log_field = log_field - log_field.mean()
    noise = np.random.default_rng(seed).normal(0, 0.05, shape)
    return (100 * np.exp(log_field + noise)).astype(np.float32), log_field


def has_gpu() -> bool:
    try:
        probe_gpu()
    except GpuError:
        return False
    return True


needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="a GPU works here, so asking for one is no error")


def test_every_row_names_its_test() -> None:
    named = re.findall(r"`(test_\w+)`", TABLE.read_text(encoding="utf-8"))
    here = [name for name in globals() if name.startswith("test_") and name != "test_every_row_names_its_test"]
    assert sorted(named) == sorted(here)


# n4_correct, n4_correct_gpu, n4_correct_per_section, sharpen_residual, apply_bias_field


def test_n4_correct_voxel_size_belongs_to_its_axis() -> None:
    z, _y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (16, 20, 48)), indexing="ij")
    log_field = 0.3 * np.sin(2 * np.pi * 1.25 * x)  # fine along X, nothing along Z
    volume = (100 * np.exp(log_field + np.random.default_rng(1).normal(0, 0.05, z.shape))).astype(np.float32)
    left = {}
    for sizes in ((0.1, 0.1, 0.1), (0.1, 0.1, 0.4), (0.4, 0.1, 0.1)):  # spans along X: 2, 8 and 2
        options = {"n_iterations": (30,), "spline_distance_mm": 2.4, "voxel_size_mm": sizes}
        _corrected, field = n4flow.n4_correct(volume, np.ones(volume.shape), shrink_factor=1, **options)
        left[sizes] = np.std(np.log(field) - log_field)
    assert left[0.1, 0.1, 0.4] < 0.3 * left[0.4, 0.1, 0.1]  # only a fine mesh along X can follow
    assert left[0.4, 0.1, 0.1] == pytest.approx(left[0.1, 0.1, 0.1], rel=0.1)


def test_n4_correct_counts_control_points_as_the_peer() -> None:
    import SimpleITK as sitk

    volume, _log_field = shaded((20, 40, 60))  # 2 x 4 x 6 mm
    mask = np.ones(volume.shape, np.uint8)
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([8])
    correction.SetNumberOfControlPoints([7, 4, 4])  # x, y, z: max(4, round(extent / 0.9 mm))
    correction.Execute(sitk.GetImageFromArray(volume), sitk.GetImageFromArray(mask))
    expected = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(sitk.GetImageFromArray(volume)))
    options = {"n_iterations": (8,), "spline_distance_mm": 0.9, "voxel_size_mm": (0.1,) * 3, "shrink_factor": 1}
    _corrected, field = n4flow.n4_correct(volume, mask, **options)
    np.testing.assert_allclose(np.log(field), expected - expected.mean(), atol=1e-4)


def test_n4_correct_ends_nearer_the_truth_where_a_distance_is_fine() -> None:
    import SimpleITK as sitk

    rng = np.random.default_rng(3)
    _z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (8, 50, 60)), indexing="ij")
    log_field = 0.25 * x + 0.2 * y**2
    anatomy = gaussian_filter(rng.normal(0, 1, x.shape), (4, 4, 4))  # as fine as a field of 16 spans
    anatomy *= 0.3 / anatomy.std()
    volume = (100 * np.exp(anatomy + log_field + rng.normal(0, 0.05, x.shape))).astype(np.float32)
    options = {"spline_distance_mm": 1.6, "voxel_size_mm": (0.1,) * 3, "shrink_factor": 1, "n_iterations": [20] * 4}
    left = {}
    for name, correct in (("n4_correct", n4flow.n4_correct), ("gpu", partial(n4flow.n4_correct_gpu, use_gpu=False))):
        left[name] = np.std(np.log(correct(volume, **options)[1]) - log_field)
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetNumberOfControlPoints([4, 4, 4])
    correction.SetMaximumNumberOfIterations([20] * 4)
    image = sitk.GetImageFromArray(volume)
    correction.Execute(image, sitk.GetImageFromArray(np.ones(volume.shape, np.uint8)))
    itk = np.std(sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)) - log_field)
    assert max(left.values()) < 0.75 * itk


def test_n4_correct_without_a_mask_fits_the_whole_volume() -> None:
    volume, log_field = shaded()
    for correct in (n4flow.n4_correct, lambda v, **o: n4flow.n4_correct_per_section(v, 1, **o)):
        _corrected, field = correct(volume, **FAST)
        assert np.std(np.log(field) - log_field) < 0.3 * np.std(log_field)
        np.testing.assert_array_equal(correct(volume, mask=np.ones(volume.shape), **FAST)[1], field)
        otsu = correct(volume, mask=n4flow.otsu_mask(volume), **FAST)[1]
        assert np.abs(np.log(otsu / field)).max() > 0.01
    sharpened = n4flow.sharpen_residual(np.log(volume))
    np.testing.assert_array_equal(sharpened, n4flow.sharpen_residual(np.log(volume), np.ones(volume.shape)))
    assert np.std(sharpened) != np.std(np.log(volume))


def test_n4_correct_may_overwrite_the_volume_by_either_result() -> None:
    image, _log_field = shaded()
    options = {"mask": np.ones(image.shape), **FAST}
    expected = n4flow.n4_correct(image, **options)
    for correct in (n4flow.n4_correct, lambda v, **o: n4flow.n4_correct_per_section(v, 1, n_processes=None, **o)):
        for number, name in enumerate(("out", "bias_out")):
            volume = image.copy()
            results = correct(volume, **{name: volume}, **options)
            assert results[number] is volume
            for result, wanted in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, wanted)


def test_n4_correct_refuses_results_that_overwrite_each_other() -> None:
    image, _log_field = shaded()
    for correct in (n4flow.n4_correct, lambda v, **o: n4flow.n4_correct_per_section(v, 2, **o)):
        volume = image.copy()
        with pytest.raises(InputError, match="out and bias_out share memory"):
            correct(volume, out=volume, bias_out=volume)
        with pytest.raises(InputError, match="bias_out shares memory with vol, but is another view"):
            correct(volume, bias_out=volume[::-1])
        np.testing.assert_array_equal(volume, image)


def test_n4_correct_leaves_no_uncorrected_rim() -> None:
    volume, log_field = shaded((17, 33, 67))  # no size is a multiple of 4
    _corrected, field = n4flow.n4_correct(volume, np.ones(volume.shape), shrink_factor=4, n_iterations=(30, 30))
    error = np.log(field) - log_field
    rim = np.ones(volume.shape, bool)
    rim[2:-2, 2:-2, 2:-2] = False
    assert not (field == 1).any()
    assert np.std(error[rim]) < 2 * np.std(error[~rim]) + 0.01
    assert np.std(error) < 0.3 * np.std(log_field)


def test_n4_correct_takes_any_mask() -> None:
    volume, _log_field = shaded()
    mask = np.zeros(volume.shape, bool)
    mask[2:-2, 4:-4, 5:-5] = True
    expected = n4flow.n4_correct(volume, mask, **FAST)[1]
    for other in (mask * np.uint8(255), mask.astype(np.uint8), mask.astype(np.float32)):
        np.testing.assert_array_equal(n4flow.n4_correct(volume, other, **FAST)[1], expected)
    assert np.ptp(expected) > 0.1


def test_n4_correct_excludes_and_counts_invalid_voxels() -> None:
    volume, _log_field = shaded()
    mask = np.ones(volume.shape, bool)
    expected = n4flow.n4_correct(volume, mask, **FAST)[1]
    broken = volume.copy()
    broken[8, 17, 20:24] = np.nan, np.inf, -5.0, 0.0
    corrected, field = n4flow.n4_correct(broken, mask, **FAST)
    np.testing.assert_allclose(np.log(field), np.log(expected), atol=1e-3)  # four voxels of 24000
    assert np.isnan(corrected[8, 17, 20])
    assert np.isinf(corrected[8, 17, 21])
    assert corrected[8, 17, 22] == pytest.approx(-5.0 / field[8, 17, 22])
    assert corrected[8, 17, 23] == 0
    bias = n4flow.fit_bias(broken, mask, iters=(2,))
    assert (bias.voxels.nonfinite, bias.voxels.nonpositive) == (2, 2)


def test_n4_correct_keeps_the_brightness() -> None:
    volume, _log_field = shaded()
    mask = np.ones(volume.shape, bool)
    corrected, field = n4flow.n4_correct(volume, mask, **FAST)
    assert abs(np.log(field).mean()) < 0.01  # on the fit grid it is 0
    assert np.log(corrected).mean() == pytest.approx(np.log(volume).mean(), abs=0.01)
    np.testing.assert_allclose(corrected * field, volume, rtol=1e-5)


@needs_no_gpu
def test_n4_correct_gpu_never_changes_to_the_cpu() -> None:
    volume, _log_field = shaded()
    with pytest.raises(GpuError):
        n4flow.n4_correct_gpu(volume)
    with pytest.raises(GpuError):
        n4flow.n4_correct(volume, backend="gpu")
    expected = n4flow.n4_correct(volume, **FAST)
    for a, b in zip(n4flow.n4_correct_gpu(volume, use_gpu=False, **FAST), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_n4_correct_per_section_takes_a_table() -> None:
    volume, _log_field = shaded()
    mask = np.ones(volume.shape, bool)
    table = SectionTable([Section("a", 0, 5), Section("b", 5, 9, "damaged"), Section("c", 9, 16)], 16)
    corrected, field = n4flow.n4_correct_per_section(volume, table, mask, n_processes=2, **FAST)
    for planes in (slice(0, 5), slice(9, 16)):
        alone = n4flow.n4_correct(volume[planes], mask[planes], **FAST)
        np.testing.assert_array_equal(corrected[planes], alone[0])
        np.testing.assert_array_equal(field[planes], alone[1])
    np.testing.assert_array_equal(corrected[5:9], volume[5:9])


def test_sharpen_residual_survives_no_spread_and_nan() -> None:
    log_v = np.random.default_rng(2).normal(4, 0.3, (5, 6, 7)).astype(np.float32)
    mask = np.zeros(log_v.shape, bool)
    mask[1:4] = True
    log_v[2, 2, 2] = np.nan
    sharpened = n4flow.sharpen_residual(log_v, mask * np.uint8(255))
    np.testing.assert_array_equal(sharpened[~mask], log_v[~mask])
    assert np.isnan(sharpened[2, 2, 2])
    assert np.isfinite(np.delete(sharpened.ravel(), np.ravel_multi_index((2, 2, 2), log_v.shape))).all()
    flat = np.full((3, 4, 5), 2.0, np.float32)
    np.testing.assert_array_equal(n4flow.sharpen_residual(flat, np.ones(flat.shape)), flat)


def test_apply_bias_field_keeps_padding_and_takes_a_field_object() -> None:
    volume, _log_field = shaded()
    volume[:, :3] = 0
    volume[3, 9, 9] = np.nan
    bias = n4flow.fit_bias(volume, volume > 0, iters=(5,))
    corrected = n4flow.apply_bias_field(volume, bias)
    assert (corrected[:, :3] == 0).all()
    assert np.isnan(corrected[3, 9, 9])
    array = np.exp(bias.log_field()).astype(np.float32)
    np.testing.assert_allclose(corrected, n4flow.apply_bias_field(volume, array), rtol=1e-5)
    array[0, 5, 5] = 0
    assert n4flow.apply_bias_field(volume, array)[0, 5, 5] == pytest.approx(volume[0, 5, 5] / 1e-6)
    plane = array[4:5]
    np.testing.assert_array_equal(
        n4flow.apply_bias_field(volume, plane), n4flow.apply_bias_field(volume, np.repeat(plane, len(volume), axis=0))
    )


# n4, otsu_mask


def test_n4_takes_any_mask_and_one_plane() -> None:
    volume, _log_field = shaded((6, 30, 31))
    mask = np.zeros(volume.shape, bool)
    mask[:, 3:-3, 4:-4] = True
    expected = n4flow.n4(volume, mask, iters=(8, 8), conv_threshold=0.0)
    found = n4flow.n4(volume, mask * 255, iters=(8, 8), conv_threshold=0.0)
    np.testing.assert_array_equal(found, expected)
    corrected, log_bias = n4flow.n4(volume[0], mask[0], iters=(8, 8), return_bias=True)
    assert corrected.shape == log_bias.shape == (30, 31)
    np.testing.assert_allclose(corrected * np.exp(log_bias), volume[0], rtol=1e-5)


def test_n4_raises_to_tiny_where_that_is_asked_for() -> None:
    volume, _log_field = shaded()
    dark = volume.copy()
    dark[::4, ::5, ::6] = 0.5  # below `tiny`, above 0
    mask, options = np.ones(volume.shape), {"iters": (4, 4), "return_bias": True}
    raised = n4flow.n4(np.maximum(dark, 20), mask, **options)[1]
    np.testing.assert_array_equal(n4flow.n4(dark, mask, tiny=20, **options)[1], raised)
    assert np.abs(n4flow.n4(dark, mask, **options)[1] - raised).max() > 1e-3
    corrected = n4flow.n4(dark, mask, tiny=20, iters=(4, 4))
    np.testing.assert_allclose(corrected, dark / np.exp(raised), rtol=1e-5)  # what was raised for the fit is kept
    with pytest.raises(InputError, match="tiny must be above 0"):
        n4flow.n4(dark, mask, tiny=0)


def test_n4_excludes_what_has_no_logarithm() -> None:
    volume, _log_field = shaded((6, 30, 31))
    mask = np.ones(volume.shape, bool)
    expected = n4flow.n4(volume, mask, iters=(8, 8), return_bias=True)[1]
    volume[3, 15, 15:18] = np.nan, 0, -3
    found = n4flow.n4(volume, mask, iters=(8, 8), return_bias=True)[1]
    assert np.std(found - expected) < 0.002  # of a field of 0.2


def test_n4_of_nothing_to_fit_says_so() -> None:
    for volume in (np.full((4, 9, 9), 7.0, np.float32), np.zeros((4, 9, 9), np.float32)):
        with pytest.warns(N4flowWarning):
            corrected = n4flow.n4(volume, np.ones(volume.shape))
        np.testing.assert_array_equal(corrected, volume)


def test_otsu_mask_survives_nan() -> None:
    volume, _log_field = shaded()
    volume[:, :12] *= 0.1
    broken = volume.copy()
    broken[0, 20, 20] = np.nan
    expected = volume > threshold_otsu(volume[np.isfinite(broken)], nbins=200)
    expected[0, 20, 20] = False
    np.testing.assert_array_equal(n4flow.otsu_mask(broken), expected)
    assert not n4flow.otsu_mask(np.full((3, 4, 5), 2.0)).any()


# compute_tissue_mask, get_agarose_mask


def block_of_tissue(n_z: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A block of bright tissue that touches the border, in darker agarose, with 20 % noise; and where it is."""
    tissue = np.zeros((n_z, 40, 44), bool)
    tissue[:, :24, :26] = True
    noise = np.random.default_rng(3).gamma(25, 1 / 25, tissue.shape)
    return (np.where(tissue, 500.0, 100.0) * noise).astype(np.float32), tissue


def test_compute_tissue_mask_keeps_the_border() -> None:
    volume, tissue = block_of_tissue()
    mask = n4flow.compute_tissue_mask(volume, n_serial_slices=4)
    assert mask[tissue].mean() > 0.99
    assert mask[[0, -1], :20, 0].all()  # closing in plane and along Z
    assert mask[[0, -1], 0, :20].all()


def test_compute_tissue_mask_of_a_section_without_tissue() -> None:
    volume, tissue = block_of_tissue(12)
    volume[4:6] = 0
    volume[6:8] = volume[6:8, ::-1, ::-1] * ~tissue[6:8, ::-1, ::-1]
    volume[6:8][volume[6:8] == 0] = 100
    volume[6:8, 16:] = 100 * np.random.default_rng(4).gamma(25, 1 / 25, (2, 24, 44))  # agarose alone
    mask = n4flow.compute_tissue_mask(volume, n_serial_slices=6, z_closing_sections=0)
    assert mask.reshape(6, -1).any(axis=1).tolist() == [True, True, False, False, True, True]


def test_compute_tissue_mask_bridges_sections_not_planes() -> None:
    volume, tissue = block_of_tissue(20)
    volume[8:12] = 0
    bridged, left = (n4flow.compute_tissue_mask(volume, n_serial_slices=5, z_closing_sections=n) for n in (1, 0))
    assert bridged[8:12][tissue[8:12]].mean() > 0.97
    assert not left[8:12].any()


def test_compute_tissue_mask_does_not_see_padding() -> None:
    volume, _tissue = block_of_tissue()
    wide = np.pad(volume, ((0, 0), (9, 30), (21, 2)))
    np.testing.assert_array_equal(n4flow.compute_tissue_mask(wide)[:, 9:-30, 21:-2], n4flow.compute_tissue_mask(volume))


@needs_no_gpu
def test_use_gpu_never_changes_to_the_cpu() -> None:
    volume, _tissue = block_of_tissue()
    for call in (
        lambda: n4flow.compute_tissue_mask(volume, use_gpu=True),
        lambda: n4flow.apply_histogram_matching(volume, 2, 64, use_gpu=True),
        lambda: n4flow.sharpen_residual(volume, volume > 0, use_gpu=True),
        lambda: n4flow.bkgd_spatial_mean([volume], cuda=True),
    ):
        with pytest.raises(GpuError):
            call()


def test_get_agarose_mask_leaves_padding_out() -> None:
    volume, tissue = block_of_tissue()
    volume[:, 36:] = 0
    volume[::2, :, 40:] = 0  # padded in every other plane
    agarose, _threshold = n4flow.get_agarose_mask(volume)
    assert not agarose[36:].any()
    assert agarose[:36, 40:].all()
    assert (agarose & tissue[0]).sum() < 0.01 * agarose.sum()


def test_get_agarose_mask_without_agarose() -> None:
    volume = np.random.default_rng(5).gamma(25, 1 / 25, (6, 40, 44)).astype(np.float32)
    with pytest.warns(N4flowWarning, match="no dark side"):
        agarose, threshold = n4flow.get_agarose_mask(volume)
    assert not agarose.any()
    assert np.isfinite(threshold)


# normalize_volume, compute_scale_factors, apply_histogram_matching, apply_zprofile_smoothing


def test_normalize_volume_without_agarose_is_not_nan() -> None:
    volume, tissue = block_of_tissue()
    volume[3, ~tissue[3]] = 0
    normalized, background = n4flow.normalize_volume(volume, ~tissue[0])
    assert np.isfinite(normalized).all()
    assert background[3] == pytest.approx((background[2] + background[4]) / 2)
    with pytest.warns(N4flowWarning, match="no plane shows agarose"):
        normalized, background = n4flow.normalize_volume(volume, np.zeros(volume.shape[1:], bool))
    assert np.isfinite(normalized).all()
    assert (background == 0).all()


def test_normalize_volume_does_not_count_padding() -> None:
    volume, tissue = block_of_tissue()
    expected, background = n4flow.normalize_volume(volume, ~tissue[0], 99.0)
    wide = ((10, 60), (0, 50))
    found, level = n4flow.normalize_volume(np.pad(volume, ((0, 0), *wide)), np.pad(~tissue[0], wide) * 255, 99.0)
    np.testing.assert_array_equal(found[:, 10:-60, :-50], expected)
    np.testing.assert_array_equal(level, background)


def test_normalize_volume_divides_by_the_largest_span() -> None:
    volume, tissue = block_of_tissue(20)
    usual = n4flow.normalize_volume(volume, ~tissue[0], span_percentile=90)[0][:7]
    volume[7] *= 6
    dark = n4flow.normalize_volume(volume, ~tissue[0])[0]
    robust = n4flow.normalize_volume(volume, ~tissue[0], span_percentile=90)[0]
    upper, lower = np.percentile(volume, 99.9, axis=(1, 2)), np.median(volume[:, ~tissue[0]], axis=1)
    spans = upper - lower
    for found, divisor in ((dark, spans.max()), (robust, np.percentile(spans, 90))):
        clipped = np.clip(volume, lower[:, None, None], upper[:, None, None]) - lower[:, None, None]
        np.testing.assert_allclose(found, np.minimum(clipped / divisor, 1), atol=0.005)  # levels are known to 0.1 %
    assert robust.max() == 1
    assert dark[:7][tissue[:7]].mean() < 0.25 * robust[:7][tissue[:7]].mean()
    np.testing.assert_allclose(robust[:7][tissue[:7]].mean(), usual[tissue[:7]].mean(), rtol=0.05)


def test_normalize_volume_limits_a_percentile_of_spans() -> None:
    volume, tissue = block_of_tissue(20)
    volume[:15] = np.where(tissue[:15], 100 + volume[:15] / 100, volume[:15].clip(99, 101))  # hardly any contrast
    spans = np.percentile(volume, 99.9, axis=(1, 2)) - np.median(volume[:, ~tissue[0]], axis=1)
    free = n4flow.normalize_volume(volume, ~tissue[0], 99.9, 0.0, span_percentile=50)[0]
    limited = n4flow.normalize_volume(volume, ~tissue[0], 99.9, 0.2, span_percentile=50)[0]
    weak = tissue & (np.arange(20) < 15)[:, None, None]
    ratio = free[weak].mean() / limited[weak].mean()
    assert ratio == pytest.approx(0.2 * spans.max() / np.median(spans), rel=0.05)
    for fraction in (0.0, 0.1, 0.9):
        np.testing.assert_array_equal(
            n4flow.normalize_volume(volume, ~tissue[0], 99.9, fraction)[0],
            n4flow.normalize_volume(volume, ~tissue[0])[0],
        )


def test_normalize_volume_takes_any_mask() -> None:
    volume, tissue = block_of_tissue()
    expected, background = n4flow.normalize_volume(volume, ~tissue[0])
    for mask in (~tissue[0] * np.uint8(255), (~tissue[0]).astype(np.float64), (~tissue[0]).astype(int)):
        found, level = n4flow.normalize_volume(volume, mask)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(level, background)


def test_compute_scale_factors_excludes_nan_and_flagged_sections() -> None:
    volume, _tissue = block_of_tissue()
    volume[0, 0, 0] = np.nan
    volume[2:4] *= 100
    table = SectionTable([Section(f"s{i}", 2 * i, 2 * i + 2, "damaged" if i == 1 else "ok") for i in range(4)], 8)
    factors, raw, _smoothed, boundaries = n4flow.compute_scale_factors(volume, table, 1.0, 90, 0.5, 2.0)
    np.testing.assert_allclose(factors, 1, rtol=0.05)  # the others are alike
    assert raw[1] == 0
    assert boundaries == [0, 2, 4, 6]


def test_apply_histogram_matching_takes_any_range() -> None:
    volume, _tissue = block_of_tissue()
    volume[4:] *= 1.4
    matched = n4flow.apply_histogram_matching(volume, 2, 256)  # intensities in the hundreds
    means = matched[:4].mean(), matched[4:].mean()
    assert means[0] == pytest.approx(means[1], rel=0.01)
    small = n4flow.apply_histogram_matching(volume / np.float32(1024), 2, 256)
    np.testing.assert_array_equal(small * 1024, matched)


def test_apply_histogram_matching_leaves_equal_sections_alone() -> None:
    volume = np.tile(block_of_tissue(2)[0], (3, 1, 1)) / 1000
    for n_bins in (8, 256):
        np.testing.assert_allclose(n4flow.apply_histogram_matching(volume, 3, n_bins), volume, rtol=1e-5)


def test_apply_histogram_matching_stays_in_the_range_of_the_data() -> None:
    volume, _tissue = block_of_tissue()
    volume = np.clip(volume / volume.max(), 0, 1)
    volume[4:] *= 0.5
    volume[5, 20, 20:23] = 0.95  # debris
    table = SectionTable([Section("a", 0, 4), Section("b", 4, 7), Section("c", 7, 8, "damaged")], 8)
    volume[7] *= 2
    volume[7, 3, 3] = 1
    for sections in (2, 8, None, table):
        matched = n4flow.apply_histogram_matching(volume, sections, 256)
        assert matched.max() <= 1
        assert matched[5, 20, 20] > 0.9  # still among the brightest
    means = [part[:3].mean() for part in np.split(n4flow.apply_histogram_matching(volume, table, 256), 2)]
    assert means[0] == pytest.approx(means[1], rel=0.02)


def test_apply_histogram_matching_never_returns_its_input() -> None:
    few = np.zeros((2, 20, 20), np.float32)
    few[:, 0, 0] = 1
    with pytest.warns(N4flowWarning, match="changes nothing"):
        result = n4flow.apply_histogram_matching(few, 2, 16)
    assert not np.shares_memory(result, few)
    np.testing.assert_array_equal(result, few)


def test_apply_zprofile_smoothing_takes_any_mask() -> None:
    volume, tissue = block_of_tissue()
    volume[3] *= 1.2
    expected = n4flow.apply_zprofile_smoothing(volume, tissue, 2.0)
    for mask in (tissue * np.uint8(255), tissue.astype(np.float32), tissue.astype(int)):
        np.testing.assert_array_equal(n4flow.apply_zprofile_smoothing(volume, mask, 2.0), expected)
    np.testing.assert_array_equal(expected[~tissue], volume[~tissue])


def test_apply_zprofile_smoothing_knows_how_far_planes_are_apart() -> None:
    volume, tissue = block_of_tissue(20)
    volume[:10] *= 0.5  # a real step, in a gap without tissue
    mask = tissue.copy()
    mask[5:15] = False
    smoothed = n4flow.apply_zprofile_smoothing(volume, mask, 2.0)
    np.testing.assert_allclose(smoothed[4][mask[4]].mean(), volume[4][mask[4]].mean(), rtol=0.03)
    np.testing.assert_allclose(smoothed[15][mask[15]].mean(), volume[15][mask[15]].mean(), rtol=0.03)


def test_apply_zprofile_smoothing_survives_nan() -> None:
    volume, tissue = block_of_tissue()
    volume[2, 3, 3] = np.nan
    smoothed = n4flow.apply_zprofile_smoothing(volume, tissue, 2.0)
    assert np.isnan(smoothed).sum() == 1
    assert np.isfinite(smoothed[2, 0, :10]).all()


# bkgd_spatial_mean


def test_bkgd_spatial_mean_is_a_mean_beside_nan() -> None:
    flat = np.full((2, 25, 30), 40.0, np.float32)
    flat[0, 12, 12], flat[1, 0, :2] = np.nan, np.inf
    backgrounds, corrections, _info = n4flow.bkgd_spatial_mean(
        [flat], 7.0, noise_corrections=(given := [np.float32(2)])
    )
    np.testing.assert_allclose(backgrounds[0], 40.0, rtol=1e-6)
    assert given == [2]
    assert 0 < corrections[0] < 2


def test_bkgd_spatial_mean_takes_a_pair_for_two_channels() -> None:
    channels = list(np.random.default_rng(8).gamma(3, 30, (2, 4, 25, 30)).astype(np.float32))
    backgrounds, _corrections, info = n4flow.bkgd_spatial_mean(channels, (6.0, 10.0))
    assert info["channels_mean_radii_pix"] == [(6.0, 10.0)] * 2
    for channel, background in zip(channels, backgrounds, strict=True):
        alone = n4flow.bkgd_spatial_mean([channel], [(6.0, 10.0)])[0][0]
        np.testing.assert_array_equal(background, alone)
    info = n4flow.bkgd_spatial_mean(channels, [(6.0, 6.0), (8.0, 10.0)])[2]
    assert info["channels_mean_radii_pix"] == [(6.0, 6.0), (8.0, 10.0)]
