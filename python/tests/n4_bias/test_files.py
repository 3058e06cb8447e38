"""`n4flow n4` and its library call: from file to file, with voxel size and orientation."""

import json
import re
import warnings

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import n4flow
from n4flow.commands import main
from n4flow.compute.threads import available_threads
from n4flow.errors import InputError, N4flowWarning
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume
from n4flow.n4_bias import engine
from n4flow.n4_bias.ants import AntsHabits
from n4flow.n4_bias.files import correct_file
from n4flow.n4_bias.inputs import prepare
from n4flow.n4_bias.settings import fit_settings

SHAPE, VOXEL_UM = (10, 40, 50), (3000.0, 1000.0, 500.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    tissue = np.where(y * y + x * x < 0.8, np.where(np.sin(9 * x) > 0, 200, 130), 0)
    noise = 1 + 0.02 * rng.standard_normal(SHAPE)
    return (tissue * np.exp(0.2 * x + 0.1 * z) * noise).astype(np.float32)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".tif", ".ome.zarr", ".npy"])
def test_any_format_to_any_format(tmp_path, image, ending):
    source, output, bias = (tmp_path / f"{name}{ending}" for name in ("source", "output", "bias"))
    write_volume(source, image, voxel_um=VOXEL_UM)
    facts = correct_file(source, output, bias=bias, iterations=(8, 8))
    expected = n4flow.n4(image, iters=(8, 8))
    written = open_volume(output, require_voxel_um=False)
    assert np.array_equal(written.read(slice(None)), expected)
    if ending != ".npy":
        assert list(written.voxel_um.values()) == pytest.approx(VOXEL_UM)
    field = open_volume(bias, require_voxel_um=False).read(slice(None))
    assert np.allclose(expected * field, image, rtol=1e-5)
    assert facts["shape"] == list(SHAPE)
    assert sum(facts["iterations"]) > 0
    json.dumps(facts)


def test_orientation_is_kept(tmp_path, image):
    affine = np.array([[0, -0.5, 0, 9], [1, 0, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1]], float)
    nifti = nibabel.Nifti1Image(image.T, affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_qform(affine, code=1)
    nibabel.save(nifti, tmp_path / "image.nii")
    correct_file(tmp_path / "image.nii", tmp_path / "corrected.nii", iterations=(2,))
    corrected = nibabel.load(tmp_path / "corrected.nii")
    assert np.array_equal(corrected.affine, affine)
    assert corrected.header["qform_code"] == 1
    assert corrected.get_data_dtype() == np.float32


def test_options_reach_the_fit(tmp_path, image, capsys):
    source, mask = tmp_path / "image.nii", tmp_path / "mask.nii"
    write_volume(source, (image * 100).astype(np.uint16), voxel_um=VOXEL_UM)
    write_volume(mask, ((image > 150) * 255).astype(np.uint8), voxel_um=VOXEL_UM)
    files = [str(source), str(tmp_path / "out.npy")]
    files += ["--mask", str(mask), "--bias", str(tmp_path / "bias.npy"), "--json", str(tmp_path / "facts.json")]
    options = "--iterations 5 4 --shrink 1,2,2 --spline-um 6000 --tolerance 0 --backend cpu --threads 2"
    cores = available_threads()
    with pytest.raises(SystemExit) as end:
        main(["n4", *files, *options.split()])
    assert end.value.code == 0
    assert "iterations 5, 4; fitted in" in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["iterations"] == [5, 4]
    # 30, 40, 25 mm: 5, 7 and 4 control points 6 mm apart are 2, 4 and 1 spans, doubled once, but not beyond 4
    assert facts["control_points"] == [7, 7, 5]
    assert (facts["backend"], facts["shrink"], facts["threads"]) == ("cpu", [1, 2, 2], min(2, cores))
    small = prepare((image * 100).astype(np.uint16), image > 150, None, (1, 2, 2), "cpu", 1)
    levels, settings = ((5, 7, 4), (7, 7, 5)), fit_settings((5, 4), threshold=0)
    field = engine.fit(small, controls=levels, settings=settings, backend="cpu")
    assert np.array_equal(np.load(tmp_path / "bias.npy"), field.field())


@pytest.mark.parametrize("picks", [False, True])
def test_levels_from_a_distance_stop_at_four_spans_and_a_fine_distance_is_doubted(tmp_path, image, picks):
    write_volume(tmp_path / "image.nii", image[:6], voxel_um=VOXEL_UM)
    options = {"iterations": (1, 1, 1, 1), "ants": AntsHabits(pick_voxels=picks), "shrink": (1, 2, 3)}
    # 18, 40, 25 mm and 5 mm: 4, 8 and 5 control points, whether 40 x 50 voxels become 20 x 17 means or 20 x 16 picks
    with pytest.warns(N4flowWarning, match="the image: the bias field's knots are 8000 micrometres apart"):
        facts = correct_file(tmp_path / "image.nii", tmp_path / "fine.nii", spline_um=5000, **options)
    assert facts["control_points"] == [7, 8, 7]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = correct_file(tmp_path / "image.nii", tmp_path / "coarse.nii", spline_um=9000, **options)
        assert facts["control_points"] == [7, 7, 7]
        facts = correct_file(tmp_path / "image.nii", tmp_path / "itk.nii", control_points=4, **options)
        assert facts["control_points"] == [11, 11, 11]  # ITK doubles all levels


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--spline-um", "10"], "a spline distance of 10 micrometres is finer than the voxels"),
        (["--spline-um", "9000", "--control-points", "5"], "both say how fine the lattice is"),
        (["--shrink", "two"], "parameter shrink must be numbers"),
        (["--backend", "fast"], "parameter backend must be auto, cpu, gpu or itk, got 'fast'"),
        (["--mask", "MASK"], r"the mask .* has the shape \(9, 40, 50\), and the image .* has \(10, 40, 50\)"),
    ],
)
def test_refusals(tmp_path, image, capsys, options, sentence):
    source, mask = tmp_path / "image.nrrd", tmp_path / "mask.npy"
    write_volume(source, image, voxel_um=VOXEL_UM)
    np.save(mask, np.ones((9, 40, 50), np.uint8))
    given = [str(mask) if option == "MASK" else option for option in options]
    with pytest.raises(SystemExit) as end:
        main(["n4", str(source), str(tmp_path / "out.nrrd"), *given])
    assert end.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("n4flow: ")
    assert "\n" not in message
    assert re.search(sentence, message)
    assert not (tmp_path / "out.nrrd").exists()


def test_a_file_without_voxel_size_goes_to_npy_only(tmp_path, image):
    np.save(tmp_path / "image.npy", image)
    correct_file(tmp_path / "image.npy", tmp_path / "out.npy", iterations=(2,))
    with pytest.raises(InputError, match="has no voxel size"):
        correct_file(tmp_path / "image.npy", tmp_path / "out.nii", iterations=(2,))
    assert not (tmp_path / "out.nii").exists()


def test_nifti_whose_unit_is_unknown_keeps_its_header_and_is_in_millimetres_elsewhere(tmp_path):
    rng = np.random.default_rng(4)
    affine = np.array([[0, -2, 0, 9], [2, 0, 0, -5], [0, 0, 3, 1], [0, 0, 0, 1]], float)
    values = rng.uniform(100, 200, (24, 22, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "in.nii")
    for name in ("out.nii.gz", "out.nrrd"):
        with pytest.warns(N4flowWarning, match="millimetres are assumed"):
            correct_file(tmp_path / "in.nii", tmp_path / name, iterations=(3,))
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert np.allclose(written.affine, affine)
    assert written.header.get_xyzt_units()[0] == "unknown"
    assert sitk.ReadImage(tmp_path / "out.nrrd").GetSpacing() == (2, 2, 3)


@pytest.mark.parametrize(
    ("of_image", "role", "sentence"),
    [
        (
            lambda image: np.where(image == image.max(), 1e300, image),
            "image",
            r"image\.npy has values beyond 3\.4e\+38",
        ),
        (lambda image: image * 1e-300, "image", r"image\.npy has no values above 1\.2e-38, the smallest float32"),
        (lambda image: image * 1e-42, "image", r"image\.npy has no values above 1\.2e-38, the smallest float32"),
        (lambda image: (image > 0) * 1e300, "weights", r"weights\.npy has values beyond 3\.4e\+38"),
        (
            lambda image: np.where(image == image[0, 20, 4], 3.4e38, image * 1e36),
            "image",
            r"voxels of image\.npy are beyond 3\.4e\+38",
        ),
    ],
)
def test_what_float32_cannot_hold_is_refused_and_never_infinite(tmp_path, image, of_image, role, sentence):
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / f"{role}.npy", of_image(image.astype(np.float64)))
    options = {"weights": tmp_path / "weights.npy"} if role == "weights" else {}
    with pytest.raises(InputError, match=sentence), warnings.catch_warnings():
        warnings.simplefilter("ignore", N4flowWarning)
        correct_file(tmp_path / "image.npy", tmp_path / "out.npy", iterations=(30,), **options)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint32", "float64"])
def test_n4_says_that_float32_holds_fewer_digits(tmp_path, image, dtype):
    np.save(tmp_path / "image.npy", image.astype(dtype))
    with pytest.warns(N4flowWarning, match=f"{dtype} is computed as float32, which is exact for whole"):
        correct_file(tmp_path / "image.npy", tmp_path / "out.npy", iterations=(2,))


@pytest.mark.parametrize("lowest", [-(2**63), -5000])
def test_an_image_of_negative_integers_is_kept_with_a_sentence(tmp_path, lowest):
    values = np.linspace(lowest, lowest // 2, 6 * 20 * 24).astype(np.int64).reshape(6, 20, 24)
    np.save(tmp_path / "image.npy", values)
    with pytest.warns(N4flowWarning) as said:
        correct_file(tmp_path / "image.npy", tmp_path / "out.npy", iterations=(2,))
    words = " ".join(str(warning.message) for warning in said)
    assert "100% of the voxels of image.npy are not above 0 and lie outside the fit (100% are negative)" in words
    assert "no bias field was fitted (no positive finite voxel among" in words
    assert np.array_equal(np.load(tmp_path / "out.npy"), values.astype(np.float32))


def test_n4_says_what_share_of_a_ct_lies_outside_the_fit(tmp_path):
    hounsfield = np.random.default_rng(0).permutation(np.repeat([-1000, 0, 40], [540, 60, 400])).reshape(10, 10, 10)
    np.save(tmp_path / "image.npy", hounsfield.astype(np.int16))
    with pytest.warns(N4flowWarning) as said:
        correct_file(tmp_path / "image.npy", tmp_path / "out.npy", iterations=(2,))
    sentence = "60% of the voxels of image.npy are not above 0 and lie outside the fit (54% are negative)"
    assert any(sentence in str(warning.message) for warning in said)
