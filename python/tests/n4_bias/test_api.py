"""The bias field as users call it: known fields recovered, inputs of every kind, and what cannot be fitted."""

import warnings

import numpy as np
import pytest

import n4flow
from n4flow.corrections.base import Where
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.errors import InputError, N4flowWarning
from n4flow.n4_bias import sharpening
from n4flow.n4_bias.api import fit_spaced
from n4flow.n4_bias.inputs import FitInput
from n4flow.n4_bias.problem import Knots, first_controls, level_controls
from n4flow.n4_bias.settings import fit_settings
from n4flow.n4_bias.shrink import shrink_factors, shrink_masked
from n4flow.sections import Section, SectionTable

RNG = np.random.default_rng(6)


def brain(shape=(24, 60, 72), seed=0, spread=0.25):
    """Image, mask and true log field: two tissues in an ellipsoid, noise, a smooth field; nothing outside."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = sum(a**2 for a in axes[-2:]) < 0.8
    # classes in stripes, so that each is everywhere: what varies slowly is the field
    tissue = np.where(np.sin(9 * axes[-1]) * np.sin(8 * axes[-2]) > 0, 200.0, 120.0)
    log_field = spread * (axes[-1] + 0.5 * axes[-2] * axes[0])
    image = np.where(mask, tissue * np.exp(log_field) * (1 + 0.02 * rng.standard_normal(shape)), 0)
    return image.astype(np.float32), mask, log_field.astype(np.float32)


@pytest.fixture(scope="module")
def phantom():
    return brain()


def spread_in(log_field, truth, mask):
    return float(np.std((log_field - truth)[mask]))


# -------------------------------------------------------------------------------------------------------- n4, fit_bias


@pytest.mark.parametrize("backend", ["cpu", "itk"])
def test_a_known_field_is_recovered(phantom, backend):
    image, mask, truth = phantom
    corrected, log_bias = n4flow.n4(image, mask, backend=backend, iters=(30, 30, 20), return_bias=True)
    assert corrected.dtype == log_bias.dtype == np.float32
    # N4 stops early on purpose; what is left of a field of 0.14 standard deviation
    assert spread_in(log_bias, truth, mask) < 0.25 * np.std(truth[mask])
    assert np.allclose(corrected * np.exp(log_bias), image, rtol=1e-5)


def test_otsu_is_the_default_mask(phantom):
    image, _mask, _truth = phantom
    assert np.array_equal(n4flow.n4(image), n4flow.n4(image, n4flow.otsu_mask(image)))


@pytest.mark.parametrize("make", [lambda m: m * 255, lambda m: m.astype(float), lambda m: np.where(m, 1, np.nan)])
def test_masks_of_any_kind(phantom, make):
    image, mask, _truth = phantom
    assert np.array_equal(n4flow.fit_bias(image, make(mask)).lattice, n4flow.fit_bias(image, mask).lattice)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float64"])
def test_images_of_any_type(phantom, dtype):
    image, mask, _truth = phantom
    given = (image * 0.8).astype(dtype)
    expected = n4flow.n4(given.astype(np.float32), mask)
    assert np.array_equal(n4flow.n4(given, mask), expected)


def test_the_input_is_never_modified(phantom):
    image, mask, _truth = phantom
    kept = image.copy()
    n4flow.n4(image, mask)
    n4flow.n4_correct(image, mask)
    assert np.array_equal(image, kept)


def test_two_dimensions(phantom):
    image, mask, truth = phantom
    corrected, log_bias = n4flow.n4(image[12], mask[12], return_bias=True)
    assert corrected.shape == (60, 72)
    assert spread_in(log_bias, truth[12], mask[12]) < 0.4 * np.std(truth[12][mask[12]])
    volume = n4flow.fit_bias(image[12:13], mask[12:13])
    assert np.array_equal(volume.lattice[0], n4flow.fit_bias(image[12], mask[12]).lattice)


def test_what_lies_outside_the_mask_does_not_matter(phantom):
    image, mask, _truth = phantom
    damaged = image.copy()
    damaged[~mask] = np.nan
    assert np.array_equal(n4flow.fit_bias(damaged, mask).lattice, n4flow.fit_bias(image, mask).lattice)


def test_voxels_that_cannot_be_fitted_are_left_out_and_counted(phantom):
    image, mask, _truth = phantom
    clean = n4flow.fit_bias(image, mask)
    broken = image.copy()
    inside = np.argwhere(mask)
    broken[tuple(inside[1000])], broken[tuple(inside[2000])] = np.nan, np.inf
    some = inside[RNG.choice(len(inside), len(inside) // 20, replace=False)]
    broken[tuple(some.T)] = -broken[tuple(some.T)]
    bias = n4flow.fit_bias(broken, mask)
    assert bias.voxels.nonfinite == 2
    assert bias.voxels.nonpositive == pytest.approx(len(some), abs=2)
    assert np.std((bias.log_field() - clean.log_field())[mask]) < 0.004  # 5 % of the voxels fewer
    corrected = bias.apply(broken)
    assert np.isnan(corrected[tuple(inside[1000])])
    assert (corrected[tuple(some.T)] < 0).mean() > 0.99


def test_levels_say_what_was_done(phantom):
    image, mask, _truth = phantom
    bias = n4flow.fit_bias(image, mask, iters=(3, 50), control_points=(4, 5, 6))
    assert [level.control_points for level in bias.levels] == [(4, 5, 6), (5, 7, 9)]
    assert not bias.levels[0].converged
    assert bias.levels[0].iterations == 3
    assert bias.levels[1].converged
    assert bias.levels[1].measures[-1] <= 1e-3 < bias.levels[1].measures[-2]
    assert (bias.backend, bias.convergence, bias.reason) == ("cpu", "itk", None)
    assert bias.seconds > 0


@pytest.mark.parametrize("shrink", [2, 3, (1, 4, 4)])
def test_a_shrunken_fit_is_aligned_with_the_image(phantom, shrink):
    image, mask, truth = phantom
    whole, small = (n4flow.fit_bias(image, mask, shrink=k, iters=(30, 30)) for k in (1, shrink))
    assert small.shape == image.shape
    assert small.grid_shape == tuple(-(-n // k) for n, k in zip(image.shape, small.shrink, strict=True))
    # a field shifted by half a block would differ by the field's slope times that: 0.25 * 2 / 72 a voxel
    d = (small.log_field() - whole.log_field())[mask]
    along_x = np.polyfit(np.argwhere(mask)[:, 2] - 35.5, d, 1)[0]
    assert abs(along_x) < 2e-4
    assert np.std(d) < 0.02
    assert spread_in(small.log_field(), truth, mask) < 0.3 * np.std(truth[mask])


def test_shrunken_means_are_of_usable_voxels_only():
    image = np.arange(1, 61, dtype=np.float32).reshape(1, 6, 10)
    mask = np.ones(image.shape, bool)
    mask[0, :2, :2] = False
    image[0, 2, 2], image[0, 3, 3] = np.nan, -5
    mean, small, none = shrink_masked(image, mask, None, (1, 4, 4), 1)
    assert none is None
    assert mean.shape == (1, 2, 3)
    block = np.array([[3, 4], [13, 14], [21, 22], [23, 24], [31, 32], [33, 34]]).ravel()
    usable = [v for v in block if v not in (23, 34)]
    assert mean[0, 0, 0] == pytest.approx(np.mean(usable))
    assert mean[0, 1, 2] == pytest.approx(np.mean([49, 50, 59, 60]))
    assert small.all()
    mask[0, :4, :3] = False
    assert not shrink_masked(image, mask, None, (1, 4, 4), 1)[1][0, 0, 0]  # fewer than half
    weights = np.full(image.shape, 0.5, np.float32)
    weights[0, 4:, 8] = 0
    mean, _small, totals = shrink_masked(image, mask, weights, (1, 4, 4), 1)
    assert mean[0, 1, 2] == pytest.approx(np.mean([50, 60]))
    assert totals[0, 1, 2] == pytest.approx(0.25)


def test_one_factor_leaves_thin_axes_alone():
    assert shrink_factors(4, (5, 100, 7)) == (1, 4, 1)
    assert shrink_factors(4, (40, 100, 8)) == (4, 4, 2)
    assert shrink_factors((2, 3, 1), (5, 100, 7)) == (2, 3, 1)
    for shrink in (0, (1, 2), (1, 0, 2)):
        with pytest.raises(InputError, match="shrink must be a whole number of at least 1"):
            shrink_factors(shrink, (5, 100, 7))


def test_weights_decide_who_counts(phantom):
    image, mask, _truth = phantom
    spoilt = image.copy()
    spoilt[:, :20] *= 2
    weights = np.ones(image.shape)
    weights[:, :20] = 0
    weighted = n4flow.fit_bias(spoilt, mask, weights=weights)
    masked = n4flow.fit_bias(image, mask & (weights > 0))
    assert np.array_equal(weighted.lattice, masked.lattice)
    shrunken = n4flow.fit_bias(spoilt, mask, weights=weights, shrink=(1, 2, 2))
    assert np.std((shrunken.log_field() - masked.log_field())[:, 22:][mask[:, 22:]]) < 0.02


# -------------------------------------------------------------------------------------- what cannot be fitted, refusals


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda i, m: (i, m & False), "empty mask"),
        (lambda i, m: (np.full_like(i, np.nan), m), "no positive finite voxel"),
        (lambda i, m: (np.full_like(i, 5), m), "no spread"),
        (lambda i, m: (np.minimum(i, 100), m), "saturated"),
        (lambda i, m: (i, m & (np.cumsum(m).reshape(m.shape) == 1)), "too few voxels: 1"),
    ],
)
def test_what_cannot_be_fitted_is_kept(phantom, make, reason):
    image, mask = make(*phantom[:2])
    with pytest.warns(N4flowWarning, match=f"no bias field was fitted \\({reason}"):
        corrected, log_bias = n4flow.n4(image, mask, return_bias=True)
    assert np.array_equal(corrected, image, equal_nan=True)
    assert (log_bias == 0).all()
    with pytest.warns(N4flowWarning):
        corrected, field = n4flow.n4_correct(image, mask)
    assert np.array_equal(corrected, image, equal_nan=True)
    assert (field == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert n4flow.fit_bias(image, mask).reason.startswith(reason)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mask": np.ones((2, 3, 4))}, r"mask must have the shape \(24, 60, 72\) of the volume, got \(2, 3, 4\)"),
        ({"weights": np.ones((2, 3, 4))}, "weights must have the shape of the image"),
        ({"backend": "fast"}, "backend must be one of auto, cpu, gpu, itk, got 'fast'"),
        ({"control_points": 3}, "control points must be at least 4 along each of the 3 axes"),
        ({"control_points": 400}, "more than the 16777216 control points allowed"),
        ({"iters": ()}, "iterations must be one whole number of at least 0 for each level"),
        ({"conv_threshold": -1}, "the convergence threshold must be at least 0"),
        ({"over_relax": 0}, "over_relax must be above 0"),
        ({"nbins": 2}, "histogram bins must be 4 to 2048"),
        ({"fwhm": 0}, "fwhm must be above 0"),
        ({"wiener": 0}, "the Wiener noise must be above 0"),
        ({"convergence": "l2"}, "convergence must be 'itk' or 'cv', got 'l2'"),
    ],
)
def test_refusals_name_what_is_wrong(phantom, options, sentence):
    with pytest.raises(InputError, match=sentence):
        n4flow.fit_bias(phantom[0], **options)


@pytest.mark.parametrize("image", [np.ones(5), np.ones((2, 3, 4, 5)), np.ones((0, 3, 4)), np.ones((2, 3), complex)])
def test_images_must_be_planes_or_volumes_of_numbers(image):
    with pytest.raises(InputError, match="expected a 2-D or 3-D array of numbers"):
        n4flow.fit_bias(image)


def test_knot_distances():
    assert first_controls((193e3, 229e3, 193e3), 200e3, (193, 229, 193)) == (4, 4, 4)
    assert first_controls((100.0, 130.0, 46.0), 10.0, (100, 130, 46)) == (10, 13, 5)
    assert first_controls((30.0, 31.0), None, (30, 31)) == (4, 4)
    first_controls((500.0, 500.0), 100.0, (10, 10))
    with pytest.raises(InputError, match="must be above 0 micrometres, got -1"):
        first_controls((500.0, 500.0), -1.0, (10, 10))
    with pytest.raises(
        InputError, match=r"finer than the voxels of the fitted image \(50 micrometres\); give at least 200"
    ):
        first_controls((500.0, 500.0), 10.0, (10, 10))
    with pytest.raises(InputError, match=r"a lattice of \d+ control points \(0.2 GB\), at most 16777216 are allowed"):
        first_controls((300.0,) * 3, 1.0, (300,) * 3)


def test_levels_from_a_distance_stop_at_four_spans_and_a_fine_distance_is_doubted():
    image, mask, _truth = brain((8, 40, 60))
    small, options = FitInput(image, mask, None, image.shape, (1, 1, 1)), {"settings": fit_settings((1, 1, 1, 1))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bias = fit_spaced(small, voxel_um=(100.0,) * 3, spline_um=900, **options)
    assert [level.control_points[2] for level in bias.levels] == [7, 7, 7, 7]  # 4 spans, as far as doubling goes
    assert [level.control_points[1] for level in bias.levels] == [4, 5, 7, 7]
    assert [level.control_points[0] for level in bias.levels] == [4, 5, 7, 7]
    with pytest.warns(N4flowWarning, match=r"^vol: .* knots are 176 micrometres apart, 1.7 voxels .* times within"):
        fit_spaced(small, voxel_um=(100.0,) * 3, spline_um=162, name="vol", **options)


def test_knots_need_the_extent_of_every_axis(phantom):
    with pytest.raises(InputError, match=r"extent of the image along each of its 3 axes, got \(9.0,\)"):
        n4flow.fit_bias(phantom[0], control_points=Knots(1.0, (9.0,)))


def test_thin_axes_get_few_spans():
    assert level_controls((4, 4, 4), 4, (1, 50, 60), thin=True)[-1] == (1, 11, 11)
    assert level_controls((4, 4, 4), 4, (2, 50, 60), thin=True)[-1] == (4, 11, 11)
    assert level_controls((4, 4, 4), 4, (6, 50, 60), thin=True)[-1] == (7, 11, 11)
    assert level_controls((9, 4, 4), 1, (4, 50, 60), thin=True)[-1] == (6, 4, 4)
    assert level_controls((4, 4, 4), 4, (6, 50, 60))[-1] == (11, 11, 11)  # ITK's


# -------------------------------------------------------------------------------------------------- n4_correct and kin


def test_correct_keeps_the_brightness(phantom):
    image, mask, truth = phantom
    corrected, field = n4flow.n4_correct(image, mask, shrink_factor=2, spline_distance_mm=30)
    assert np.allclose(corrected * field, image, rtol=1e-5)
    assert spread_in(np.log(field), truth, mask) < 0.35 * np.std(truth[mask])
    assert abs(np.log(field)[mask].mean()) < 0.01  # centred on the shrunken mask
    assert corrected[mask].mean() == pytest.approx(image[mask].mean(), rel=0.05)


def test_out_may_be_the_volume(phantom):
    image, mask, _truth = phantom
    expected, field = n4flow.n4_correct(image, mask)
    volume, bias = image.copy(), np.empty(image.shape, np.float32)
    corrected, given = n4flow.n4_correct(volume, mask, out=volume, bias_out=bias)
    assert corrected is volume
    assert given is bias
    assert np.array_equal(volume, expected)
    assert np.array_equal(bias, field)


def test_voxel_size_is_in_the_order_of_the_axes():
    image, mask, _truth = brain((20, 40, 60))
    small, options = FitInput(image, mask, None, image.shape, (1, 1, 1)), {"settings": fit_settings((2,))}
    bias = fit_spaced(small, voxel_um=(3000.0, 1000.0, 500.0), spline_um=9_000, **options)
    assert bias.lattice.shape == (round(60 / 9), 4, 4)
    bias = fit_spaced(small, voxel_um=(500.0, 1000.0, 1200.0), spline_um=9_000, **options)
    assert bias.lattice.shape == (4, 4, 72 / 9)


def test_gpu_call_on_the_cpu_is_the_cpu(phantom):
    image, mask, _truth = phantom
    a = n4flow.n4_correct_gpu(image, mask, use_gpu=False, shrink_factor=2)
    b = n4flow.n4_correct(image, mask, shrink_factor=2, n_iterations=(25, 25, 25))
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])


def test_both_backends_agree_on_a_thin_section():
    image, mask, _truth = brain((3, 60, 72))
    fields = [
        n4flow.n4_correct(image, mask, shrink_factor=2, spline_distance_mm=40, n_iterations=(8, 8, 8), backend=backend)[
            1
        ]
        for backend in ("cpu", "itk")
    ]
    assert np.abs(np.log(fields[0] / fields[1]))[mask].mean() < 2e-4


def test_sections_are_corrected_one_by_one(phantom):
    image, mask, _truth = phantom
    table = SectionTable(
        [Section("a", 0, 7), Section("b", 7, 8), Section("c", 8, 12, "damaged"), Section("d", 12, 24)], 24
    )
    corrected, field = n4flow.n4_correct_per_section(image, table, mask, shrink_factor=2, n_processes=None)
    for section in table:
        planes = section.planes
        if section.usable:
            alone = n4flow.n4_correct(image[planes], mask[planes], shrink_factor=2)
            assert np.array_equal(corrected[planes], alone[0])
            assert np.array_equal(field[planes], alone[1])
        else:
            assert np.array_equal(corrected[planes], image[planes])
            assert (field[planes] == 1).all()
    together = n4flow.n4_correct_per_section(image, table, mask, n_processes=3, shrink_factor=2)
    assert np.array_equal(together[0], corrected)
    out = image.copy()
    assert n4flow.n4_correct_per_section(out, table, mask, out=out, shrink_factor=2)[0] is out
    assert np.array_equal(out, corrected)
    assert n4flow.n4_correct_per_section(image, 3, mask, shrink_factor=4)[0].shape == image.shape


def test_a_section_that_cannot_be_fitted_is_named(phantom):
    image, mask, _truth = phantom
    blank = image.copy()
    blank[8:16] = 0
    with pytest.warns(N4flowWarning, match="section s001: no bias field was fitted"):
        corrected, field = n4flow.n4_correct_per_section(blank, 3, mask, shrink_factor=2)
    assert (corrected[8:16] == 0).all()
    assert (field[8:16] == 1).all()
    others = n4flow.n4_correct_per_section(image, 3, mask, shrink_factor=2)[0]
    assert np.array_equal(corrected[:8], others[:8])  # neighbours untouched to the bit
    assert np.array_equal(corrected[16:], others[16:])


# --------------------------------------------------------------------------------------------------- fields as arrays


def test_apply_bias_field():
    image, field = RNG.uniform(1, 9, (4, 5, 6)), RNG.uniform(0.5, 2, (4, 5, 6))
    assert np.allclose(n4flow.apply_bias_field(image, field), image / field, rtol=1e-6)
    field[0, 0, 0] = 0
    assert n4flow.apply_bias_field(image, field)[0, 0, 0] == pytest.approx(image[0, 0, 0] / 1e-6, rel=1e-5)
    with pytest.raises(InputError, match="must have the shape of the image"):
        n4flow.apply_bias_field(image, field[1:])
    da = pytest.importorskip("dask.array")
    lazy = n4flow.apply_bias_field(da.from_array(image, chunks=2), da.from_array(field, chunks=2))
    assert lazy.dtype == np.float32
    assert np.array_equal(lazy.compute(), n4flow.apply_bias_field(image, field))


def test_sharpen_residual():
    values = np.log(brain((6, 30, 40))[0].clip(1))
    mask = values > 3
    sharpened = n4flow.sharpen_residual(values, mask)
    assert np.array_equal(sharpened[~mask], values[~mask])
    low, high = float(values[mask].min()), float(values[mask].max())
    expected = sharpening.expected_log_intensity(sharpening.histogram(values[mask], low, high, 200), low, high)
    assert np.allclose(sharpened[mask], sharpening.sharpen(values[mask], expected, low, high), atol=1e-6)
    weights = np.where(values > 5, 1.0, 0.1)
    weighted = n4flow.sharpen_residual(values, mask, mask_weights=weights)
    assert np.abs(weighted - sharpened)[mask].max() > 1e-3
    flat = np.full((3, 4), 2.0, np.float32)
    assert np.array_equal(n4flow.sharpen_residual(flat, flat > 0), flat)
    values[mask] = np.where(RNG.random(mask.sum()) < 0.01, np.nan, values[mask])
    assert np.isnan(n4flow.sharpen_residual(values, mask)).sum() == np.isnan(values).sum()


# ------------------------------------------------------------------------------------------------------ the correction


def test_the_correction_of_a_recipe(phantom, tmp_path):
    from n4flow.corrections.recipe import load_correction, save_correction

    image, mask, _truth = phantom
    fields = []
    for start, stop in ((0, 10), (14, 24)):
        part = slice(start, stop)
        small = FitInput(image[part, ::2, ::2], mask[part, ::2, ::2], None, (stop - start, 60, 72), (1, 2, 2))
        field = fit_spaced(small, voxel_um=(50.0, 10.0, 10.0), spline_um=400, settings=fit_settings((5, 5)))
        fields.append((start, stop, field))
    correction = BiasCorrection(tuple(fields))
    whole = correction.apply(image.copy(), Where(0, 0, 0, image.shape))
    for start, stop, field in fields:
        assert np.array_equal(whole[start:stop], field.apply(image[start:stop]))
    assert np.array_equal(whole[10:14], image[10:14])  # planes of no field
    for z, y, x in ((slice(0, 3), slice(0, 60), slice(0, 72)), (slice(8, 17), slice(11, 40), slice(5, 71))):
        block = correction.apply(image[z, y, x].copy(), Where(z.start, y.start, x.start, image.shape))
        assert np.array_equal(block, whole[z, y, x])
    save_correction(correction, tmp_path / "bias.npz")
    again = load_correction(tmp_path / "bias.npz")
    assert np.array_equal(again.apply(image.copy(), Where(0, 0, 0, image.shape)), whole)
    facts = again.summary()["fields"]
    assert facts == correction.summary()["fields"]
    assert [f["z_start"] for f in facts] == [0, 14]
    assert facts[0]["p1"] < facts[0]["p50"] < facts[0]["p99"]
    assert facts[0]["iterations"] == [level.iterations for level in fields[0][2].levels]
    assert facts[0]["knot_um"] == pytest.approx([9 * 50 / 2, 29 * 20 / 2, 35 * 20 / 2])


def test_field_of_a_shrunken_section_is_centred(phantom, monkeypatch):
    image, mask, _truth = phantom
    small = FitInput(image, mask, None, image.shape, (1, 1, 1))
    options = {"voxel_um": (50.0, 10.0, 10.0), "spline_um": None, "settings": fit_settings((10, 10))}
    centred = fit_spaced(small, **options)
    assert abs(centred.log_field()[mask].mean()) < 1e-5
    monkeypatch.setattr("n4flow.n4_bias.field.BiasField.centred", lambda field, _mask: field)
    free = fit_spaced(small, **options)
    assert np.ptp(free.log_field() - centred.log_field()) < 1e-5
    assert abs(free.log_field()[mask].mean()) > 1e-3
