"""Against SimpleITK itself: the lattice read back, and the fast engine where re-implementations drift."""

from pathlib import Path

import nibabel
import nilearn
import numpy as np
import pytest
import SimpleITK as sitk

from n4flow.errors import InputError
from n4flow.n4_bias import bspline, itk, sharpening
from n4flow.n4_bias import reference as plain
from n4flow.n4_bias.api import fit_bias
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.problem import level_controls, make_problem
from n4flow.n4_bias.settings import FitSettings

SAME = 1e-5  # 0.001 %, mean relative difference of the corrected image in the mask, global scale removed
LEVELS = (50, 50)


@pytest.fixture(scope="module")
def template() -> np.ndarray:
    """The MNI152 T1 template at 4 mm: 8-bit values, as the nilearn wheel carries it."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    image = nibabel.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    return np.ascontiguousarray(np.asarray(image.dataobj).T[::4, ::4, ::4], np.float32)


@pytest.fixture(scope="module")
def shaded(template) -> np.ndarray:
    """The template with a smooth field and texture below 8 bits."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in template.shape], indexing="ij")
    noise = np.random.default_rng(0).normal(1, 0.01, template.shape)
    return (template * np.exp(0.15 * x + 0.1 * y * z) * noise).astype(np.float32)


def both(image, mask, **options) -> tuple[BiasField, BiasField]:
    options = {"iters": LEVELS, "threads": 2} | options
    return fit_bias(image, mask, backend="itk", **options), fit_bias(image, mask, backend="cpu", **options)


def assert_same(image, mask, **options) -> None:
    reference, ours = both(image, mask, **options)
    assert [level.iterations for level in ours.levels] == [level.iterations for level in reference.levels]
    d = (ours.log_field().astype(np.float64) - reference.log_field())[mask]
    assert np.abs(np.expm1(d - d.mean())).mean() < SAME


def test_lattice_is_read_back_from_simpleitk(shaded):
    mask = shaded > 60
    problem, settings = make_problem(shaded, mask), FitSettings(iterations=(4, 3), threads=2)
    solution = itk.fit(problem, level_controls((4, 5, 4), 2, shaded.shape), settings)
    bias = BiasField(solution.lattice.astype(np.float32), shaded.shape, shaded.shape, (1, 1, 1))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([4, 3])
    n4.SetNumberOfControlPoints([4, 5, 4])
    image = sitk.GetImageFromArray(shaded)
    corrected = sitk.GetArrayFromImage(n4.Execute(image, sitk.GetImageFromArray(mask.astype(np.uint8))))
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    assert np.abs(bias.log_field() - log_field).max() < 3e-6
    assert np.allclose(bias.apply(shaded)[mask], corrected[mask], rtol=4e-6)
    # another grid, by ITK's rule
    grid = sitk.Image([31, 40, 50], sitk.sitkFloat32)
    expected = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(grid))
    assert np.abs(bias.log_field((50, 40, 31), rule="index") - expected).max() < 3e-6


def test_levels_that_do_not_double_every_axis(shaded):
    section = shaded[18:21]
    problem, settings = make_problem(section, section > 60), FitSettings(iterations=(4, 4, 4), threads=2)
    controls = level_controls((4, 4, 4), 3, section.shape, thin=True)
    assert [c[0] for c in controls] == [4, 5, 5]
    reference = itk.fit(problem, controls, settings)
    ours = plain.fit(problem, controls, settings)
    assert [level.iterations for level in reference.levels] == [level.iterations for level in ours.levels]
    assert np.abs(reference.lattice - ours.lattice)[:, 2:-2, 2:-2].max() < 1e-3


def test_texture(shaded):
    assert_same(shaded, shaded > 60, iters=(50, 50, 50))


def test_hard_edge_in_the_histogram(template):
    assert_same(template, template > 90)


def test_eight_bits(shaded):
    image = np.clip(np.round(shaded), 0, 255).astype(np.uint8)
    assert_same(image, image > 60)


def test_holes(shaded):
    mask = (shaded > 60) & (np.random.default_rng(1).random(shaded.shape) > 0.3)
    assert_same(shaded, mask)


def test_mask_in_a_corner(shaded):
    mask = np.zeros(shaded.shape, bool)
    mask[28:, 28:, 20:] = True
    assert_same(shaded, mask & (shaded > 60), iters=(20, 20))


def test_first_voxel_the_minimum(shaded):
    mask = shaded > 60
    image = shaded.copy()
    image[tuple(np.argwhere(mask)[0])] = 0.8 * image[mask].min()
    assert_same(image, mask)


def test_without_a_mask(shaded):
    crop = np.maximum(shaded[15:30, 20:40, 15:35], 20)
    assert_same(crop, np.ones(crop.shape, bool))


def test_anisotropic(shaded):
    thick = shaded[::4]
    assert_same(thick, thick > 60, control_points=(4, 5, 6))


def test_a_slice(shaded):
    plane = np.concatenate(list(shaded[12:36:2]))  # several slices below each other: enough voxels to compare
    assert_same(plane, plane > 60, iters=(50, 50, 50))


def test_a_plane_of_a_volume(shaded):
    assert_same(shaded[20:21], shaded[20:21] > 60, iters=(10, 10))


def test_itk_counts_the_brightest_voxel_or_not_by_rounding(shaded):
    """In float32, (highest - lowest) / bin width may exceed the last bin: ITK then leaves the brightest voxel out."""
    crop = shaded[20:30, 20:32, 15:27]
    mask, points = crop > 60, (4, 4, 4)
    coordinates = [bspline.sample_coordinates(n, c) for n, c in zip(crop.shape, points, strict=True)]
    omega = bspline.fit_weights(mask.astype(float), points)
    counted = []
    for k in range(50):
        image = crop ** np.float32(1 + k / 97)  # each has another range
        w = np.log(image[mask]).astype(np.float64)
        low, high = sharpening.itk_range(w)
        reference = fit_bias(image, mask, iters=(1,), backend="itk").log_field()
        off = []
        for some in (w, w[w < high]):
            counts = sharpening.histogram(some, low, high, 200)
            residual = np.zeros(crop.shape)
            residual[mask] = w - sharpening.sharpen(w, sharpening.expected_log_intensity(counts, low, high), low, high)
            off.append(np.abs(bspline.evaluate(bspline.fit(residual, omega), coordinates) - reference)[mask].max())
        assert min(off) < 3e-6 < max(off) / 3  # float32 of ITK
        counted.append(off[0] < off[1])
    assert any(counted)
    assert not all(counted)


def test_what_simpleitk_does_not_have(shaded):
    mask = shaded > 60
    for options, name in (
        ({"weights": np.ones(shaded.shape)}, "weights"),
        ({"over_relax": 1.5}, "over_relax"),
        ({"convergence": "cv"}, "convergence 'cv'"),
    ):
        with pytest.raises(InputError, match=f"backend itk has no {name}"):
            fit_bias(shaded, mask, backend="itk", **options)


def test_over_relaxed_steps_end_near_the_plain_ones(shaded):
    mask = shaded > 60
    usual, quick = (fit_bias(shaded, mask, over_relax=a) for a in (1.0, 1.8))
    made = [sum(level.iterations for level in bias.levels) for bias in (usual, quick)]
    assert made[1] < 0.75 * made[0]
    d = (usual.log_field().astype(np.float64) - quick.log_field())[mask]
    assert np.abs(np.expm1(d - d.mean())).mean() < 3e-3
