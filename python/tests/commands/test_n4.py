"""`n4flow n4` as a user of ANTs types it, its other options, and what it refuses before it fits."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

import n4flow
from n4flow.commands import ants, main
from n4flow.errors import InputError
from n4flow.io.geometry import on_grid
from n4flow.io.nifti import NiftiReader
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume

SHAPE, VOXEL_MM = (10, 40, 50), (3.0, 1.0, 0.5)
FAST = ["--iterations", "2"]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A disc of two tissues under a field; at least 1, so that every voxel has a logarithm."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    tissue = np.where(y * y + x * x < 0.8, np.where(np.sin(9 * x) > 0, 200, 130), 20)
    return (tissue * np.exp(0.2 * x + 0.1 * z) * (1 + 0.02 * rng.standard_normal(SHAPE))).astype(np.float32)


@pytest.fixture
def files(tmp_path, image):
    """Return the paths of the image and of a mask; with labels.nii, of labels 0, 1 and 2, beside them, as NIfTI."""
    labels = np.where(image > 60, np.where(image > 150, 2, 1), 0).astype(np.uint8)
    paths = tmp_path / "image.nii", tmp_path / "mask.nii"
    for path, values in zip((*paths, tmp_path / "labels.nii"), (image, labels > 0, labels), strict=True):
        write_volume(path, values, voxel_um=[1e3 * mm for mm in VOXEL_MM])
    return paths


def ended(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["n4", *map(str, arguments)])
    return end.value.code


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj).T


def no_fit(*_arguments, **_options):
    pytest.fail("the image was fitted")


def as_ants(image, mask, shrink):
    """Return the image corrected as ANTs does it with -b [15] -c [6x5,0.0]: on an image padded to whole spans."""
    # 27, 39 and 24.5 mm between the outer voxels: 2, 3 and 2 spans of 15 mm, 3, 6 and 5.5 mm to add.
    before, after = (5, 3, 0), (6, 3, 1)
    padded, inside = (sitk.ConstantPad(sitk.GetImageFromArray(a), before, after, 0) for a in (image, mask))
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([6, 5])
    correction.SetConvergenceThreshold(0)
    correction.SetNumberOfControlPoints((5, 6, 5))
    correction.Execute(*(sitk.Shrink(a, shrink) for a in (padded, inside)))
    log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(padded))
    return image / np.exp(log_field[0:10, 3:43, 5:55])


# Along Z, 4 would leave 2 of 11 planes.
@pytest.mark.parametrize(("options", "shrink"), [("-s 1", (1, 1, 1)), ("", (4, 4, 2)), ("-s 3", (3, 3, 2))])
def test_a_line_for_ants_gives_what_ants_would(tmp_path, files, image, options, shrink):
    source, mask = files
    out, bias = tmp_path / "out.nii", tmp_path / "bias.nii"
    line = f"-d 3 -i {source} -x {mask} {options} -c [6x5, 0.0] -b [ 15 , 3 ] -r 0 -o [{out}, {bias}]"
    assert ended(*line.split()) == 0
    inside = voxels(mask) > 0
    expected = as_ants(image, inside.astype(np.uint8), shrink)
    written = voxels(out)
    # SimpleITK computes in float32 in another order; see docs/n4.md.
    assert np.allclose(written[inside], expected[inside], rtol=2e-4)
    assert np.array_equal(written[~inside], image[~inside])
    assert np.allclose((image / voxels(bias))[inside], written[inside], rtol=1e-5)


def test_without_an_option_the_defaults_are_ants(tmp_path, files, image, capsys):
    numbers = tmp_path / "facts.json"
    assert ended("-i", files[0], "-o", tmp_path / "out.nii", "--json", numbers, "-v") == 0
    facts = json.loads(numbers.read_text())
    assert (facts["shrink"], facts["mask"]) == ([2, 4, 4], "all")
    assert facts["iterations"] == [50, 50, 50, 50]  # the threshold is 0
    said = capsys.readouterr().out
    assert "level 4 of 4" in said
    assert f"  iteration 50: convergence {facts['measures'][0]:.6g}\n" in said
    assert ended("-i", files[0], "-x", files[1], "-o", tmp_path / "ranged.nii", "-c", "[3x3]") == 0
    written, inside = voxels(tmp_path / "ranged.nii"), voxels(files[1]) > 0
    assert written[inside].min() == pytest.approx(image[inside].min(), rel=1e-6)
    assert written[inside].max() == pytest.approx(image[inside].max(), rel=1e-6)
    assert np.array_equal(written[~inside], image[~inside])


def test_a_mesh_names_x_first(tmp_path, files):
    numbers = tmp_path / "facts.json"
    assert ended(files[0], tmp_path / "out.nii", "-b", "[1x2x3]", "-c", "[2]", "--json", numbers) == 0
    assert json.loads(numbers.read_text())["control_points"] == [6, 5, 4]


def test_a_plane_has_two_dimensions(tmp_path, image):
    write_volume(tmp_path / "plane.nii", image[:1], voxel_um=[1e3 * mm for mm in VOXEL_MM])
    facts = tmp_path / "facts.json"
    line = f"-d 2 -i {tmp_path / 'plane.nii'} -o {tmp_path / 'out.nii'} -s 1 -c [2] -b [15] --json {facts}"
    assert ended(*line.split()) == 0
    assert json.loads(facts.read_text())["control_points"] == [1, 6, 5]


@pytest.mark.parametrize(("lattice", "points"), [(("-b", "[15]"), [1, 6, 5]), (("--spline-um", "8000"), [1, 5, 4])])
def test_a_plane_needs_no_size_across_it(tmp_path, image, lattice, points):
    plane = nibabel.Nifti1Image(image[0].T, np.diag([*reversed(VOXEL_MM), 1]))
    plane.header.set_xyzt_units("mm")
    nibabel.save(plane, tmp_path / "plane.nii")
    out, bias, facts = (tmp_path / name for name in ("out.nii", "bias.nii", "facts.json"))
    line = f"-d 2 -i {tmp_path / 'plane.nii'} -o [{out},{bias}] -s 1 -c [2] --json {facts}"
    assert ended(*line.split(), *lattice) == 0
    assert json.loads(facts.read_text())["control_points"] == points
    assert np.allclose(voxels(out) * voxels(bias), image[:1], rtol=1e-5)
    assert np.array_equal(nibabel.load(out).affine, plane.affine)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["-d", "2"], "-d must be 3 for"),
        (["-d", "4"], "-d 4 fits a field along a fourth axis"),
        (["-b", "[200,2]"], "order 2, and n4flow has cubic ones alone"),
        (["-b", "[0]"], "the distance of knots must be above 0 mm, got 0"),
        (["-b", "[1000000]"], "give a smaller distance"),
        (["-b", "[2x2]"], "a number of spans for each of the 3 axes of the image, got 2x2"),
        (["-b", "[200"], "-b must be [MILLIMETRES] or spans along each axis, as in [200] or [1x1x1,3], got '[200'"),
        (["-b", "[20]", "--spline-um", "900"], "-b and --spline-um say the same"),
        (["-c", "[50x?]"], "as in [50x50x50x50,0.0], got '[50x?]'"),
        (["-c", "[9]", "--tolerance", "0.001"], "-c and --tolerance say the same"),
        (["-t", "[0.15,0.01,200,1]"], "-t must be [WIDTH,NOISE,BINS]"),
        (["-r", "1", "-x", "MASK", "--keep-level"], "-r 1 and --keep-level both set the level"),
        (["--mask-label", "1"], "mask-label 1 needs a mask"),
        (["--mask-label", "7", "-x", "LABELS"], "which has 1, 2; give one of its labels"),
        (["-x", "LABELS"], "labels.nii has the labels 1, 2; choose one with mask-label"),
        (["--fit-channel", "1"], "fit-channel must be a number from 0 to 0, mean or each, got 1"),
        (["--fit-channel", "0", "--channel", "0"], "channel and fit-channel exclude each other"),
        (["--volume", "0", "--channel", "0"], "leave --channel and --fit-channel out"),
        (["--volume", "last"], "--volume must be a number from 0 on, or all, got last"),
        (["-i", "other.nii"], "INPUT and -i both name a file"),
        (["-o", "other.nii"], "OUTPUT and -o both name a file"),
        (["--shrink", "1.5"], "shrink must be a whole number, or one for each axis, got 1.5"),
        (["-w", "NEGATIVE"], "weights must be finite and at least 0, got -1 to -1"),
    ],
)
def test_refusals(tmp_path, files, monkeypatch, capsys, given, sentence):
    monkeypatch.setattr("n4flow.n4_bias.files.fit_bias", no_fit)
    write_volume(tmp_path / "negative.nii", np.full(SHAPE, -1, np.float32), voxel_um=[1e3 * mm for mm in VOXEL_MM])
    names = {"MASK": str(files[1])}
    names |= {name.upper(): str(tmp_path / f"{name}.nii") for name in ("negative", "labels")}
    assert ended(files[0], tmp_path / "out.nii", *(names.get(text, text) for text in given)) == 2
    message = capsys.readouterr().err
    assert message.startswith("n4flow: ")
    assert message.count("\n") == 1
    assert sentence in message
    assert not (tmp_path / "out.nii").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["IMAGE", "IMAGE"], "are the same file"),
        (["IMAGE", "IMAGE", "--overwrite"], "are the same file"),
        (["IMAGE", "LINK", "--overwrite"], "are the same file"),
        (["IMAGE", "MASK", "--mask", "MASK", "--overwrite"], "are the same file"),
        (["IMAGE", "new.nii", "--bias", "new.nii"], "are the same file"),
        (["IMAGE", "new.nii", "--bias", "IMAGE", "--overwrite"], "are the same file"),
        (["IMAGE", "mask_corrected.nii", "--apply-to", "MASK"], "are the same file"),
        (["IMAGE", "store.zarr", "--mask", "store.zarr/mask.nii", "--overwrite"], "lie one in the other"),
        (["IMAGE", "new.nii", "--json", "IMAGE"], "and the file of --json"),
        (["IMAGE", "new.nii", "--json", "link.nii"], "and the file of --json"),
        (["IMAGE", "new.nii", "--json", "new.nii"], "are the same file"),
        (["-i", "IMAGE", "-o", "[new.nii,b.nii]", "--json", "b.nii"], "are the same file"),
        (["IMAGE", "new.nii", "--mask", "MASK", "--json", "MASK"], "are the same file"),
        (["IMAGE", "new.nii", "--json", "mask_corrected.nii", "--apply-to", "MASK"], "are the same file"),
        (["IMAGE", "new.mhd", "--json", "new.raw"], "share the file"),
        (["IMAGE", "store.zarr", "--json", "store.zarr/zarr.json"], "lie one in the other"),
        (["IMAGE", "old.nii"], "old.nii exists; choose another name, or replace it with --overwrite"),
        (["IMAGE", "new.nii", "--bias", "old.nii"], "old.nii exists"),
        (["IMAGE", "new.nii", "--apply-to", "old.nii"], "old_corrected.nii exists"),
        (["IMAGE", "new.doc"], "no ending that n4flow writes"),
        (["IMAGE", "old.nii/new.nii"], "old.nii is no folder"),
        (["IMAGE", "new.nii", "--bias", "old.nii/new.nii"], "old.nii is no folder"),
        (["IMAGE", "folder.nii", "--overwrite"], "is a folder and not a Zarr store"),
        (["IMAGE"], "OUTPUT and -o are missing"),
        (["-o", "new.nii"], "INPUT and -i are missing"),
    ],
)
def test_files_are_judged_before_the_fit(tmp_path, files, monkeypatch, capsys, given, sentence):
    monkeypatch.setattr("n4flow.n4_bias.files.fit_bias", no_fit)
    monkeypatch.chdir(tmp_path)
    for name in ("old.nii", "old_corrected.nii"):
        Path(name).write_bytes(files[0].read_bytes())
    Path("folder.nii").mkdir()
    Path("link.nii").symlink_to(files[0])
    before = files[0].read_bytes()
    names = {"IMAGE": files[0], "MASK": files[1], "LINK": "link.nii"}
    assert ended(*(names.get(text, text) for text in given)) == 2
    assert sentence in capsys.readouterr().err
    assert files[0].read_bytes() == before
    assert Path("old.nii").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["s.nhdr", "s.mhd"], "the input s.nhdr and the output s.mhd share the file s.raw"),
        (["s.nhdr", "s.mhd", "--overwrite"], "share the file s.raw"),
        (["s.nhdr", "new.nii", "--bias", "s.mhd", "--overwrite"], "share the file s.raw"),
        (["IMAGE", "s.mhd", "--mask", "s.nhdr", "--overwrite"], "share the file s.raw"),
        (["IMAGE", "new.mhd", "--bias", "other.mhd"], None),
        (["IMAGE", "s.mhd"], "s.raw, which s.mhd would be written with, exists; choose another name"),
    ],
)
def test_files_beside_a_header_are_judged_too(tmp_path, files, image, monkeypatch, capsys, given, sentence):
    monkeypatch.chdir(tmp_path)
    sitk.WriteImage(sitk.GetImageFromArray(image), "s.nhdr")  # with s.raw
    before = Path("s.raw").read_bytes()
    code = ended(*(str(files[0]) if text == "IMAGE" else text for text in given), *FAST)
    assert code == (0 if sentence is None else 2)
    assert sentence is None or sentence in capsys.readouterr().err
    assert Path("s.raw").read_bytes() == before


def test_overwrite_replaces_a_result(tmp_path, files):
    out = tmp_path / "out.nii"
    out.write_text("an older one")
    assert ended(files[0], out, *FAST, "--overwrite") == 0
    assert voxels(out).shape == SHAPE


def test_the_level_is_kept_and_the_field_fits_to_it(tmp_path, files, image):
    out, bias = tmp_path / "out.nii", tmp_path / "bias.nii"
    labels = tmp_path / "labels.nii"
    assert ended(files[0], out, "--mask", labels, "--mask-label", "2", *FAST, "--bias", bias, "--keep-level") == 0
    inside, written = voxels(labels) == 2, voxels(out)
    assert written[inside].mean(dtype=float) == pytest.approx(image[inside].mean(dtype=float), rel=1e-5)
    assert np.allclose(written * voxels(bias), image, rtol=1e-5)
    plain = n4flow.n4(image, inside, iters=(2,))
    assert np.allclose(written / written[inside].mean(), plain / plain[inside].mean(), rtol=1e-5)
    assert abs(plain[inside].mean() / image[inside].mean() - 1) > 1e-4  # there was a level to keep


def test_weights_reach_the_fit(tmp_path, files, image):
    weights = np.linspace(0, 1, SHAPE[2], dtype=np.float32) * np.ones(SHAPE, np.float32)
    write_volume(tmp_path / "weights.nii", weights, voxel_um=[1e3 * mm for mm in VOXEL_MM])
    assert ended(files[0], tmp_path / "out.nii", "-w", tmp_path / "weights.nii", *FAST) == 0
    assert np.array_equal(voxels(tmp_path / "out.nii"), n4flow.n4(image, iters=(2,), weights=weights))
    assert not np.array_equal(voxels(tmp_path / "out.nii"), n4flow.n4(image, iters=(2,)))


def test_integers_are_rounded_and_clipped_to_the_type_of_the_input(tmp_path, image, capsys):
    stored = np.clip(1.2 * image, 0, 255).astype(np.uint8)
    write_volume(tmp_path / "image.nrrd", stored, voxel_um=[1e3 * mm for mm in VOXEL_MM])
    assert ended(tmp_path / "image.nrrd", tmp_path / "out.nrrd", *FAST, "--dtype", "input") == 0
    written = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out.nrrd"))
    exact = n4flow.n4(stored, iters=(2,))
    assert written.dtype == np.uint8
    assert np.array_equal(written, np.clip(np.round(exact.astype(float)), 0, 255))
    clipped = np.count_nonzero(np.round(exact) > 255)
    assert clipped > 0
    assert f"; {clipped} voxels clipped to the range of uint8" in capsys.readouterr().out


def series(path, image):
    """Write three volumes, brighter from one to the next, as a 4-D NIfTI with 2.5 s between them."""
    nifti = nibabel.Nifti1Image(np.stack([image, 2 * image, 3 * image]).T, np.diag([-0.5, -1, 3, 1]))
    nifti.header.set_xyzt_units("mm", "sec")
    nifti.header.set_zooms((*reversed(VOXEL_MM), 2.5))
    nibabel.save(nifti, path)


def test_one_volume_of_a_series_or_all_by_one_field(tmp_path, image):
    series(tmp_path / "bold.nii", image)
    assert ended(tmp_path / "bold.nii", tmp_path / "one.nii", *FAST, "--volume", "1") == 0
    assert np.array_equal(voxels(tmp_path / "one.nii"), n4flow.n4(2 * image, iters=(2,)))
    assert ended(tmp_path / "bold.nii", tmp_path / "all.nii", *FAST, "--volume", "all") == 0
    field = n4flow.fit_bias(2 * image, iters=(2,))
    assert np.allclose(voxels(tmp_path / "all.nii")[2], field.apply(3 * image), rtol=1e-6)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".tif"])
@pytest.mark.parametrize(("fitted", "factor"), [("1", 2), ("mean", 2)])
def test_one_field_corrects_all_volumes(tmp_path, image, ending, fitted, factor):
    series(tmp_path / "bold.nii.gz", image)
    out = tmp_path / f"out{ending}"
    assert ended(tmp_path / "bold.nii.gz", out, "--fit-channel", fitted, *FAST) == 0
    field = n4flow.fit_bias(factor * image, iters=(2,))
    for number in range(3):
        written = open_volume(out, channel=number)
        assert np.allclose(written.read(slice(None)), field.apply((number + 1) * image), rtol=1e-5)
        assert list(written.voxel_um.values()) == [1e3 * mm for mm in VOXEL_MM]
    if ending == ".nii.gz":
        stored = nibabel.load(out)
        assert stored.header.get_zooms() == (*reversed(VOXEL_MM), 2.5)
        assert stored.header.get_xyzt_units() == ("mm", "sec")
    if ending == ".mha":
        assert sitk.ReadImage(out).GetNumberOfComponentsPerPixel() == 3


@pytest.mark.parametrize("asked", [["--channel", "all"], ["--fit-channel", "each", "-v", "1"]])
def test_each_volume_by_a_field_of_its_own(tmp_path, image, capsys, asked):
    volumes = np.stack([image, image[::-1] * 2, image[:, ::-1] * 3])
    write_volume(tmp_path / "c.nii", volumes, voxel_um=[1e3 * mm for mm in VOXEL_MM])
    made = [tmp_path / "out.ome.zarr", "--bias", tmp_path / "bias.nrrd", "--json", tmp_path / "facts.json"]
    assert ended(tmp_path / "c.nii", *made, *FAST, *asked) == 0
    corrected, field = (zarr.open_group(tmp_path / "out.ome.zarr")["0"][:], sitk_channels(tmp_path / "bias.nrrd"))
    for number, volume in enumerate(volumes):
        assert np.array_equal(corrected[number], n4flow.n4(volume, iters=(2,)))
    assert np.allclose(corrected * field, volumes, rtol=1e-5)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert [fit["iterations"] for fit in facts["channels"]] == [[2]] * 3
    said = capsys.readouterr().out
    assert "channel 2: iterations 2; fitted in" in said
    assert ("channel 1: level 1 of 1" in said) == ("-v" in asked)
    assert ended(tmp_path / "c.nii", tmp_path / "b.nii", *FAST, *asked, "--apply-to", tmp_path / "bias.nrrd") == 2
    assert "--apply-to needs one field, and each channel has its own" in capsys.readouterr().err


def sitk_channels(path):
    return np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(path)), -1, 0)


@pytest.mark.parametrize("fitted", ["1", "mean"])
def test_a_compressed_series_is_inflated_once(tmp_path, image, monkeypatch, fitted):
    series(tmp_path / "bold.nii.gz", image)
    loaded, load = [], NiftiReader._load
    monkeypatch.setattr(NiftiReader, "_load", lambda reader: loaded.append(reader) or load(reader))
    assert ended(tmp_path / "bold.nii.gz", tmp_path / "out.nii", "--fit-channel", fitted, *FAST) == 0
    assert len(loaded) == 1


def test_several_volumes_go_to_no_format_with_room_for_one(tmp_path, image, monkeypatch, capsys):
    monkeypatch.setattr("n4flow.n4_bias.files.fit_bias", no_fit)
    series(tmp_path / "bold.nii", image)
    assert ended(tmp_path / "bold.nii", tmp_path / "out.npy", "--fit-channel", "0") == 2
    assert "out.npy would hold 3 channels, and NumPy is written with one" in capsys.readouterr().err
    assert ended(tmp_path / "bold.nii", tmp_path / "out.nii") == 2
    assert (
        "has 3 channels; choose one with --channel, 0 to 2, or correct all by the field of --fit-channel"
        in capsys.readouterr().err
    )


def test_the_field_is_applied_to_other_files(tmp_path, files, image, capsys):
    series(tmp_path / "bold.nii.gz", image)
    write_volume(tmp_path / "t2.mha", (image / 2).astype(np.float32), voxel_um=[1e3 * mm for mm in VOXEL_MM])
    out = tmp_path / "results" / "t1.nii"
    assert ended(files[0], out, *FAST, "--apply-to", tmp_path / "t2.mha", tmp_path / "bold.nii.gz") == 0
    field = n4flow.fit_bias(image, iters=(2,))
    assert np.array_equal(voxels(out), field.apply(image))
    assert np.array_equal(voxels(out.with_name("t2_corrected.nii")), field.apply(image / 2))
    assert np.allclose(voxels(out.with_name("bold_corrected.nii"))[2], field.apply(3 * image), rtol=1e-6)
    assert "t2_corrected.nii: corrected by the same field" in capsys.readouterr().out


@pytest.mark.parametrize("fitted", [(), ("--fit-channel", "mean")])
def test_files_are_released_one_after_the_other(tmp_path, files, image, monkeypatch, fitted):
    write_volume(tmp_path / "t1.nii.gz", image, voxel_um=[1e3 * mm for mm in VOXEL_MM])
    for name in ("a", "b"):
        series(tmp_path / f"{name}.nii.gz", image)
    held: dict[str, list[Path]] = {}
    readers, load = [], NiftiReader._load

    def loaded(reader):
        readers.append(reader)
        return load(reader)

    def written(path, *_arguments, **_options):
        held[path.name] = [reader.path.name for reader in readers if reader._handle is not None]

    monkeypatch.setattr(NiftiReader, "_load", loaded)
    monkeypatch.setattr("n4flow.n4_bias.files.write_volume", written)
    applied = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    others = ["--mask", files[1], "--weights", files[0], "--apply-to", *applied]
    assert ended(tmp_path / "t1.nii.gz", tmp_path / "out.nii", *FAST, *fitted, *others) == 0
    assert {reader.path for reader in readers} == {tmp_path / "t1.nii.gz", *files, *applied}
    assert held == {"out.nii": [], "a_corrected.nii": [], "b_corrected.nii": []}


@pytest.mark.parametrize(
    ("shape", "shift", "sentence"),
    [((9, 40, 50), 0.0, "has the shape (9, 40, 50)"), (SHAPE, 2.0, "has the geometry")],
)
def test_other_grids_are_refused(tmp_path, files, monkeypatch, capsys, shape, shift, sentence):
    monkeypatch.setattr("n4flow.n4_bias.files.fit_bias", no_fit)
    affine = np.diag([*reversed(VOXEL_MM), 1])
    affine[1, 3] = shift
    other = nibabel.Nifti1Image(np.ones(shape, np.float32).T, affine)
    other.header.set_xyzt_units("mm")
    nibabel.save(other, tmp_path / "other.nii")
    for option, role in (("--apply-to", "the file to apply to"), ("--mask", "the mask"), ("--weights", "the weights")):
        assert ended(files[0], tmp_path / "out.nii", option, tmp_path / "other.nii") == 2
        message = capsys.readouterr().err
        assert f"{role} {tmp_path / 'other.nii'} {sentence}" in message
        assert f", and the image {files[0]} has" in message
        assert "resample it to that grid" in message


# The image has voxels of 0.5, 1 and 3 mm along x, y and z, to the left, back and top, and its first one at 0.
@pytest.mark.parametrize(
    ("sizes", "origin", "unit", "code", "differs"),
    [
        ((-0.5, 1, 3), (24.5, 0, 0), "mm", 1, "geometry"),
        ((0.5, 1, 3), (0, 0, 2), "mm", 1, "geometry"),
        ((0.5, 1, 2), (0, 0, 0), "mm", 1, "geometry"),
        ((0.5, 1, 2), (0, 0, 0), "mm", 0, "voxel size"),
        ((0.5, 1, 3), (0, 0, 0), "mm", 1, None),
        ((500, 1000, 3000), (0, 0, 0), "micron", 1, None),
        ((500, 1000, 3000), (0, 0, 1800), "micron", 1, "geometry"),
        ((-0.5, 1, 3), (24.5, 0, 0), "mm", 0, None),
    ],
)
def test_headers_of_the_same_grid_may_state_it_otherwise(tmp_path, files, sizes, origin, unit, code, differs):
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = origin
    affine = np.diag([-1, -1, 1, 1]) @ affine
    other = nibabel.Nifti1Image(np.ones(SHAPE, np.float32).T, affine)
    other.header.set_xyzt_units(unit)
    other.set_sform(affine, code)
    other.set_qform(affine, code)
    nibabel.save(other, tmp_path / "other.nii")
    volumes = [open_volume(path) for path in (tmp_path / "other.nii", files[0])]
    if differs is None:
        assert on_grid(*volumes, "the file", turn=False) is volumes[0]
    else:
        with pytest.raises(InputError, match=f"the file .* has the {differs} .*, and the image .* has"):
            on_grid(*volumes, "the file", turn=False)


def test_a_header_that_states_no_geometry_fits_any(tmp_path, image):
    stated = sitk.GetImageFromArray(image)
    stated.SetOrigin((1, 2, 3))
    sitk.WriteImage(stated, tmp_path / "stated.nrrd")
    bare = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}\nencoding: raw\n\n"
    (tmp_path / "bare.nrrd").write_bytes(bare.encode() + bytes(image.size))
    volumes = [open_volume(tmp_path / f"{name}.nrrd", require_voxel_um=False) for name in ("bare", "stated")]
    assert on_grid(*volumes, "the mask") is volumes[0]


@pytest.mark.parametrize(("option", "role"), [("--mask", "the mask"), ("--weights", "the weights")])
def test_mask_and_weights_have_one_channel(tmp_path, files, image, monkeypatch, capsys, option, role):
    monkeypatch.setattr("n4flow.n4_bias.files.fit_bias", no_fit)
    series(tmp_path / "bold.nii", image)
    assert ended(files[0], tmp_path / "out.nii", option, tmp_path / "bold.nii") == 2
    assert f"{role} must be a file of one channel, and {tmp_path / 'bold.nii'} has 3" in capsys.readouterr().err


def test_chunks_that_a_writer_left_out(tmp_path, image, capsys):
    values = image.copy()
    values[:, :8] = 0
    store = zarr.create_array(tmp_path / "in.zarr", shape=values.shape, chunks=(8, 8, 8), dtype=values.dtype)
    store[...] = values
    assert ended(tmp_path / "in.zarr", tmp_path / "out.npy", *FAST) == 2
    assert "allow missing chunks (allow_missing_chunks)" in capsys.readouterr().err
    assert ended(tmp_path / "in.zarr", tmp_path / "out.npy", "--allow-missing-chunks", *FAST) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), n4flow.n4(values, iters=(2,)))


def test_rescaling_without_a_mask_is_said(tmp_path, files, image, caplog):
    assert ended(files[0], tmp_path / "out.nii", "-r", *FAST) == 0
    assert "-r 1 changes nothing without a mask" in caplog.text
    assert np.array_equal(voxels(tmp_path / "out.nii"), n4flow.n4(image, iters=(2,)))


def test_help_and_documentation_hold_the_table(capsys):
    assert ended("--help") == 0
    said = "".join(capsys.readouterr().out.split())  # lines may break at any space or hyphen
    page = Path(__file__).parents[3].joinpath("docs/usage.md").read_text(encoding="utf-8")
    for option, meaning in ants.TABLE:
        assert f"| `{option}` | {meaning} |" in page
        assert f"{option}{meaning}".replace(" ", "") in said


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["-o", "[a.nii,", "b.nii]", "-x", "m"], ["-o", "[a.nii,b.nii]", "-x", "m"]),
        (["-o", "[a b.nii, c.nii]"], ["-o", "[a b.nii, c.nii]"]),
        (["-b", "[", "200", "]", "-v", "1"], ["-b", "[200]", "-v", "1"]),
        (["-c", "[50", "-i", "a.nii"], ["-c", "[50", "-i", "a.nii"]),
        (["-v", "-r", "0"], ["-v", "1", "-r", "0"]),
        (["a.nii", "--apply-to", "b", "c", "-s", "2"], ["a.nii", "--apply-to", "b", "--apply-to", "c", "-s", "2"]),
        (["x[1].nii", "y"], ["x[1].nii", "y"]),
    ],
)
def test_arguments_that_a_shell_has_split_are_joined(given, joined):
    assert ants.normalized(given) == joined


def test_spellings_of_ants():
    assert ants.output_files("[ a.nii , b.nii ]") == ("a.nii", "b.nii")
    assert ants.convergence("[50x50x30, 1e-6]") == ((50, 50, 30), 1e-6)
    assert ants.convergence("20x10") == ((20, 10), 0.0)
    assert ants.mesh("200") == ants.Mesh(200.0, None)
    assert ants.mesh("[1x1x2,3]") == ants.Mesh(None, (1, 1, 2))
    assert ants.sharpening("[0.3]") == (0.3, 0.01, 200)
    with pytest.raises(InputError, match="-v must be 0 or 1, got 'yes'"):
        ants.switch("yes", "-v")
    with pytest.raises(InputError, match=r"-o must be OUT or \[OUT,BIAS\]"):
        ants.output_files("[a,b,c]")
