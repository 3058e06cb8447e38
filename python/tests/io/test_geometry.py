"""Where voxels lie, from format to format and between a mask and its image, as nibabel and SimpleITK read them."""

import warnings

import dask.array as da
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from n4flow.compute.arrays import as_mask
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError, N4flowWarning
from n4flow.io.formats import read_as
from n4flow.io.geometry import on_grid
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume
from n4flow.masks.tissue_source import open_mask
from n4flow.pipeline.render import render

SHAPE = (7, 9, 11)
ENDINGS = ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd"]
ANGLE = np.deg2rad(25)
TURNS = {
    "oblique": np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]),
    "permuted": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "mirrored": np.diag([-1, 1, -1]),
    "straight": np.eye(3),
}


def matrix(turn, sizes=(0.5, 2, 3), origin=(-12.5, 3.25, 40)):
    affine = np.eye(4)
    affine[:3, :3] = TURNS[turn] * sizes
    affine[:3, 3] = origin
    return affine


def saved(path, values, affine, unit="mm"):
    """Write (Z, Y, X) values by the format's own library; `affine` leads to (R, A, S) in millimetres."""
    if ".nii" in path.name:
        scaled = affine.copy()
        scaled[:3] *= 1e3 if unit == "micron" else 1
        image = nibabel.Nifti1Image(values.T, scaled)
        image.set_qform(scaled, 1)
        image.set_sform(scaled, 1)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, path)
        return path
    image, lps = sitk.GetImageFromArray(values), np.diag([-1, -1, 1, 1]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, path)
    return path


def centroid(path):
    """Return where the labelled corner lies in millimetres (R, A, S), by the format's own library."""
    if ".nii" in path.name:
        image = nibabel.load(path)
        inside = np.argwhere(np.asarray(image.dataobj) > 0).mean(0)
        unit = {"mm": 1, "micron": 1e-3}[image.header.get_xyzt_units()[0]]
        return unit * nibabel.affines.apply_affine(image.affine, inside)
    image = sitk.ReadImage(path)
    inside = np.argwhere(sitk.GetArrayFromImage(image) > 0).mean(0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(inside.tolist())) * (-1, -1, 1)


@pytest.mark.parametrize("turn", TURNS)
def test_a_labelled_corner_stays_where_it_is_in_every_pair_of_formats(tmp_path, turn):
    values = np.zeros(SHAPE, np.uint8)
    values[1:3, :2, 8:] = 1
    truth = nibabel.affines.apply_affine(matrix(turn), (9, 0.5, 1.5))
    for ending in ENDINGS:
        source = saved(tmp_path / f"in.{ending}", values, matrix(turn), "micron" if ending == "nii.gz" else "mm")
        assert np.allclose(centroid(source), truth, atol=1e-4)
        volume = open_volume(source)
        for other in ENDINGS:
            out = tmp_path / f"out.{other}"
            write_volume(out, volume.read(slice(None)), like=volume)
            # Headers of NIfTI hold float32.
            assert np.allclose(centroid(out), truth, atol=1e-4), (ending, other)
            if ".nii" in other:
                assert np.allclose(sitk_centroid(out), truth, atol=1e-3), (ending, other)


def test_a_render_keeps_where_a_volume_lies(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[1:3, :2, 8:] = 1
    truth = nibabel.affines.apply_affine(matrix("oblique"), (9, 0.5, 1.5))
    volume = open_volume(saved(tmp_path / "in.nii.gz", values, matrix("oblique"), "mm"))
    render(volume, Recipe(), tmp_path / "out.ome.zarr", dtype="input")
    kept = open_volume(tmp_path / "out.ome.zarr")
    write_volume(tmp_path / "out.nrrd", kept.read(slice(None)), like=kept)
    assert np.allclose(centroid(tmp_path / "out.nrrd"), truth, atol=1e-4)


def sitk_centroid(path):
    """Return what ITK makes of a NIfTI, which it takes to be in millimetres once read."""
    image = sitk.ReadImage(path)
    inside = np.argwhere(sitk.GetArrayFromImage(image) > 0).mean(0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(inside.tolist())) * (-1, -1, 1)


def test_a_volume_without_directions_lies_where_itk_puts_it_in_every_format(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[1:3, :2, 8:] = 1
    write_volume(tmp_path / "in.ome.zarr", values, like=Volume.from_array(values, (3000, 2000, 500), (7000, 0, -3000)))
    volume = open_volume(tmp_path / "in.ome.zarr")
    plain = sitk.GetImageFromArray(values)
    plain.SetSpacing((0.5, 2, 3))
    plain.SetOrigin((-3, 0, 7))
    sitk.WriteImage(plain, tmp_path / "itk.nii")
    for ending in ENDINGS:
        write_volume(tmp_path / f"out.{ending}", values, like=volume)
        assert np.allclose(centroid(tmp_path / f"out.{ending}"), centroid(tmp_path / "itk.nii"), atol=1e-5)
        assert open_volume(tmp_path / f"out.{ending}").origin_um == volume.origin_um


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("ending", ["nii", "nrrd"])
def test_directions_survive_by_way_of_ome_zarr_also_of_a_coarser_level(tmp_path, ending, version):
    values = np.random.default_rng(0).integers(0, 9, (3, 300, 40)).astype(np.uint8)
    volume = open_volume(saved(tmp_path / f"in.{ending}", values, matrix("oblique", (1, 1, 3))))
    write_volume(tmp_path / "m.ome.zarr", values, like=volume, ome_zarr_version=version)
    for level, factors in ((0, (1, 1, 1)), (1, (1, 2, 1))):
        between = open_volume(tmp_path / "m.ome.zarr", level=level)
        write_volume(tmp_path / "out.mha", between.read(slice(None)), like=between)
        out = sitk.ReadImage(tmp_path / "out.mha")
        # The first voxel is a block of so many, and its centre is the block's.
        centre = nibabel.affines.apply_affine(matrix("oblique", (1, 1, 3)), (np.array(factors) - 1) / 2)
        assert np.allclose(out.GetOrigin() * np.array([-1, -1, 1]), centre, atol=1e-5)
        assert np.allclose(out.GetSpacing(), np.array([1, 1, 3]) * factors, atol=1e-6)


def test_nifti_to_nifti_keeps_the_header_whatever_is_between(tmp_path):
    image = nibabel.Nifti1Image(np.ones((*SHAPE[::-1], 3), np.int16), matrix("oblique"))
    header = image.header
    header.set_qform(matrix("straight"), 1)
    header.set_dim_info(freq=1, phase=0, slice=2)
    header.set_xyzt_units("mm", "msec")
    header.set_intent("estimate", (), "beta")
    header["pixdim"][4], header["descrip"], header["cal_max"], header["cal_min"] = 2500, b"a scan", 900, 3
    header["slice_code"], header["slice_end"], header["toffset"], header["aux_file"] = 1, 6, 0.25, b"aux"
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))
    nibabel.save(image, tmp_path / "in.nii.gz")
    volume = open_volume(tmp_path / "in.nii.gz", channel=0)
    series = np.ones((3, *SHAPE), np.float32)
    write_volume(tmp_path / "out.nii", series, like=volume)
    write_volume(tmp_path / "m.ome.zarr", series[0], like=volume)
    write_volume(tmp_path / "again.nii.gz", series[0], like=open_volume(tmp_path / "m.ome.zarr"))
    given = nibabel.load(tmp_path / "in.nii.gz").header
    for name, shape in (("out.nii", (*SHAPE[::-1], 3)), ("again.nii.gz", SHAPE[::-1])):
        kept = nibabel.load(tmp_path / name).header
        assert kept.get_data_shape() == shape
        assert kept.extensions[0].get_content() == b"kept"
        changed = {key for key in given if given[key].tobytes() != kept[key].tobytes()}
        # The type and place of the voxels, which are not scaled; one volume has three axes and no time.
        alone = {"dim", "pixdim"} if name == "again.nii.gz" else set()
        assert changed <= {"datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter"} | alone


def test_vectors_keep_their_axis_and_one_component_is_no_vector(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(*SHAPE[::-1], 1, 3)).astype(np.float32)
    image = nibabel.Nifti1Image(vectors, matrix("straight"))
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "in.nii")
    volumes = [open_volume(tmp_path / "in.nii", channel=axis) for axis in range(3)]
    write_volume(tmp_path / "out.nii", np.stack([v.read(slice(None)) for v in volumes]), like=volumes[0])
    again = nibabel.load(tmp_path / "out.nii")
    assert np.array_equal(np.asarray(again.dataobj), vectors)
    assert again.header.get_intent()[0] == "vector"
    write_volume(tmp_path / "one.nii", volumes[1].read(slice(None)), like=volumes[1])
    one = nibabel.load(tmp_path / "one.nii")
    assert np.array_equal(np.asarray(one.dataobj), vectors[..., 0, 1])
    assert one.header.get_intent()[0] == "none"


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
def test_own_fields_of_itk_formats_are_kept(tmp_path, ending):
    image = sitk.GetImageFromArray(np.ones(SHAPE, np.uint8))
    image.SetMetaData("scanner", "a b c")
    sitk.WriteImage(image, tmp_path / f"in.{ending}")
    write_volume(tmp_path / f"out.{ending}", np.ones(SHAPE, np.float32), like=open_volume(tmp_path / f"in.{ending}"))
    again = sitk.ReadImage(tmp_path / f"out.{ending}")
    assert again.GetMetaData("scanner") == "a b c"
    assert again.GetPixelID() == sitk.sitkFloat32


# ---- A mask and its image


def pair(tmp_path, ending, order, flips, shift=0.0):
    """Write an oblique image, and a mask of it whose array has axes in another order and directions."""
    inside = np.random.default_rng(1).random(SHAPE) > 0.5
    affine = matrix("oblique")
    saved(tmp_path / "image.nii", inside.astype(np.uint8), affine)
    stored = inside.T.transpose(order)
    turned = np.eye(4)
    turned[:3, :3] = np.eye(3)[:, list(order)]  # from a voxel of the mask to one of the image
    for axis in flips:
        stored = np.flip(stored, axis)
        turned[:3, 3] += turned[:3, axis] * (stored.shape[axis] - 1)
        turned[:3, axis] *= -1
    turned[0, 3] += shift
    saved(tmp_path / f"mask.{ending}", np.ascontiguousarray(stored.T).astype(np.uint8), affine @ turned)
    return open_volume(tmp_path / "image.nii"), tmp_path / f"mask.{ending}", inside


@pytest.mark.parametrize("ending", ["nii", "mha"])
@pytest.mark.parametrize(
    ("order", "flips", "said"),
    [
        ((0, 1, 2), (0,), "z, y, -x"),
        ((1, 0, 2), (), "z, x, y"),
        ((2, 0, 1), (0, 2), "-x, -z, y"),
        ((0, 1, 2), (0, 1, 2), "-z, -y, -x"),
    ],
)
def test_a_mask_is_turned_onto_its_image(tmp_path, ending, order, flips, said):
    volume, path, inside = pair(tmp_path, ending, order, flips)
    with pytest.warns(N4flowWarning, match=f"z, y, x of the image are its {said}$"):
        mask = open_mask(path, volume, planes=(2, 5))
    assert mask.shape == volume.shape
    assert np.array_equal(mask.read(slice(None)), inside)
    box = slice(2, 5), slice(1, 9), slice(4, 6)
    assert np.array_equal(mask.read(*box), inside[box])
    # ITK resamples by the headers alone.
    image, given = (sitk.ReadImage(file) for file in (tmp_path / "image.nii", path))
    resampled = sitk.Resample(given, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert np.array_equal(sitk.GetArrayFromImage(resampled), inside)
    with pytest.raises(InputError, match="has the geometry"):
        on_grid(open_volume(path), volume, "the file", turn=False)


@pytest.mark.parametrize("ending", ["nii", "mha"])
def test_a_mask_elsewhere_is_refused_with_both_places_and_rounding_is_not(tmp_path, ending):
    volume, path, inside = pair(tmp_path, ending, (0, 1, 2), (), 0.01)
    assert np.array_equal(open_mask(path, volume).read(slice(None)), inside)
    for shift in (0.5, 80):
        volume, path, _inside = pair(tmp_path, ending, (0, 1, 2), (), shift)
        at = " ".join(f"{v:.6g}" for v in (matrix("oblique") @ (shift, 0, 0, 1))[:3])
        there = (
            r"\(7, 9, 11\) voxels of 3 2 0.5 mm \(z y x\), z to S, y to \(-0.4226 0.9063 0\), x to \(0.9063 0.4226 0\)"
        )
        sentence = (
            f"the mask .* has the geometry {there}, the first one at {at} mm .*, and the image .* -12.5 3.25 40 mm"
        )
        with pytest.raises(InputError, match=sentence):
            open_mask(path, volume)


def test_a_turned_ome_zarr_mask_is_read_by_other_planes(tmp_path):
    volume, path, inside = pair(tmp_path, "nii", (0, 1, 2), (2,))
    mask = open_volume(path)
    write_volume(tmp_path / "mask.ome.zarr", mask.read(slice(None)), like=mask)
    with pytest.warns(N4flowWarning, match="-z, y, x"):
        mask = open_mask(tmp_path / "mask.ome.zarr", volume, planes=(5, 7))
    assert np.array_equal(mask.read(slice(5, 7)), inside[5:7])


def test_files_without_directions_are_compared_by_what_they_state_and_it_is_said(tmp_path, caplog):
    volume, _path, inside = pair(tmp_path, "nii", (0, 1, 2), ())
    np.save(tmp_path / "mask.npy", inside)
    write_volume(tmp_path / "mask.tif", inside, voxel_um=(3000, 2000, 500))
    write_volume(tmp_path / "other.tif", inside, voxel_um=(3000, 2000, 501))
    with caplog.at_level("INFO", "n4flow"):
        assert np.array_equal(open_mask(tmp_path / "mask.npy", volume).read(slice(None)), inside)
        assert np.array_equal(open_mask(tmp_path / "mask.tif", volume).read(slice(None)), inside)
    assert f"compared with the image by shape alone: {tmp_path / 'mask.npy'} states no directions" in caplog.text
    assert "compared with the image by shape and voxel size alone" in caplog.text
    with pytest.raises(InputError, match=r"has the voxel size \(3000.0, 2000.0, 501.0\)"):
        open_mask(tmp_path / "other.tif", volume)


# ---- What a mask means


@pytest.mark.parametrize("name", ["mask.npy", "mask.nii.gz"])
def test_a_resampled_mask_is_cut_at_half_in_blocks_and_as_a_whole(tmp_path, name):
    volume, _path, _inside = pair(tmp_path, "nii", (0, 1, 2), ())
    image, coarse = sitk.ReadImage(tmp_path / "image.nii"), sitk.Image(5, 4, 4, sitk.sitkUInt8)
    coarse[1:4, 1:3, 1:3] = 1
    coarse.SetOrigin(image.GetOrigin())
    coarse.SetDirection(image.GetDirection())
    coarse.SetSpacing((1.2, 5, 6))
    soft = sitk.GetArrayFromImage(sitk.Resample(coarse, image, sitk.Transform(), sitk.sitkLinear, 0, sitk.sitkFloat32))
    expected = soft >= 0.5
    assert 0 < expected.sum() < (soft > 0).sum()
    write_volume(tmp_path / name, soft + np.float32(1e-15), like=volume)
    mask = open_mask(tmp_path / name, volume)
    with pytest.warns(N4flowWarning, match="has values between 0 and 1, as a resampled mask has, and is cut at 0.5"):
        blocks = [mask.read(slice(z, z + 2)) for z in range(0, 7, 2)]
    assert np.array_equal(np.concatenate(blocks), expected)
    with pytest.warns(N4flowWarning, match="is cut at 0.5"):
        assert np.array_equal(as_mask(soft, SHAPE), expected)
    with pytest.warns(N4flowWarning, match="is cut at 0.5"):
        assert np.array_equal(as_mask(da.from_array(soft, chunks=3), SHAPE).compute(), expected)


@pytest.mark.parametrize("values", [(0, 255), (0, -1), (0.0, 0.25), (0.0, 1.0), (1e-15, 1.0), (np.nan, 1.0), (0, 7)])
def test_a_mask_of_two_values_is_taken_as_it_is(values):
    inside = np.random.default_rng(0).random(SHAPE) > 0.5
    assert np.array_equal(as_mask(np.where(inside, values[1], values[0]), SHAPE), inside)


def test_labels_need_a_choice_and_other_numbers_are_no_mask(tmp_path):
    volume, _path, inside = pair(tmp_path, "nii", (0, 1, 2), ())
    labels = np.random.default_rng(0).integers(0, 4, SHAPE)
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(InputError, match="has the labels 1, 2, 3; choose one with mask-label"):
        open_mask(tmp_path / "labels.npy", volume).read(slice(0, 2))
    assert np.array_equal(open_mask(tmp_path / "labels.npy", volume, label=2).read(slice(0, 2)), labels[:2] == 2)
    with pytest.raises(InputError, match=r"mask has the labels 1, 2, 3, 4, \.\.\., 500"):
        as_mask(np.arange(501.0).reshape(3, 1, 167), (3, 1, 167))
    with pytest.raises(InputError, match=r"has values from 0.5 to 3.5; expected two values, or values from 0 to 1"):
        as_mask(inside * 3 + 0.5, SHAPE)


# ---- Files of other tools


def test_a_rotation_that_rounding_made_too_long_is_read_as_itk_reads_it(tmp_path):
    image = nibabel.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), matrix("straight"))
    image.set_qform(matrix("straight"), 1)
    image.set_sform(None, 0)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "in.nii")
    raw = bytearray((tmp_path / "in.nii").read_bytes())
    for c, unusual in ((0.6000006, False), (0.9, True)):  # 1 - b^2 - c^2 is -7e-7, and there is no rotation
        raw[256:264] = np.array([0.8, c], "<f4").tobytes()
        (tmp_path / "in.nii").write_bytes(raw)
        with pytest.raises(ValueError, match="w2 should be positive"):
            nibabel.load(tmp_path / "in.nii")
        if unusual:
            with pytest.raises(InputError, match="is not a readable volume \\(NIfTI\\): w2 should be positive"):
                open_volume(tmp_path / "in.nii")
        else:
            read, stated = open_volume(tmp_path / "in.nii").reader.affine_um, sitk.ReadImage(tmp_path / "in.nii")
            directions = np.reshape(stated.GetDirection(), (3, 3)) * stated.GetSpacing() * [[-1], [-1], [1]]
            assert np.allclose(read[:3, :3] / 1e3, directions, atol=1e-5)


@pytest.mark.parametrize("opened", ["hdr", "img"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Spm99AnalyzeImage, nibabel.AnalyzeImage])
def test_pairs_of_header_and_voxels(tmp_path, kind, opened):
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16)
    image = kind(values.T, np.diag([0.5, 2, 3, 1]))
    if kind is nibabel.Nifti1Pair:
        image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.img")
    path = tmp_path / f"a.{opened}"
    volume = open_volume(path)
    assert np.array_equal(volume.read(slice(None)), values)
    assert volume.voxel_um == {"z": 3000.0, "y": 2000.0, "x": 500.0}
    assert (volume.reader.affine_um is not None) == (kind is nibabel.Nifti1Pair)  # Analyze states no directions
    assert sorted(read_as(path).files_read(path)) == [tmp_path / "a.hdr", tmp_path / "a.img"]
    write_volume(tmp_path / "b.nii", values, like=volume)
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "b.nii").dataobj), values.T)
    (tmp_path / f"a.{'img' if opened == 'hdr' else 'hdr'}").unlink()
    with pytest.raises(InputError, match="is not a readable"):
        open_volume(path)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_mgh(tmp_path, name):
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nibabel.save(nibabel.MGHImage(values.T, matrix("oblique").astype(np.float32)), tmp_path / name)
    volume = open_volume(tmp_path / name)
    assert np.array_equal(volume.read(slice(2, 4)), values[2:4])
    assert volume.voxel_um == {"z": 3000.0, "y": 2000.0, "x": 500.0}
    write_volume(tmp_path / "b.nrrd", (values > 1).astype(np.uint8), like=volume)
    inside = np.argwhere(values.T > 1).mean(0)
    assert np.allclose(
        centroid(tmp_path / "b.nrrd"), nibabel.affines.apply_affine(matrix("oblique"), inside), atol=1e-4
    )


def test_a_voxel_size_given_by_hand_is_that_of_the_mask_too_and_of_no_other_volume(tmp_path):
    values = np.ones((4, 12, 14), np.uint8)
    write_volume(tmp_path / "image.ome.zarr", values, voxel_um=(20, 5, 5))
    write_volume(tmp_path / "mask.ome.zarr", values, voxel_um=(20, 6, 6))
    by_hand = open_volume(tmp_path / "image.ome.zarr", voxel_um=(30, 7, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", N4flowWarning)
        assert open_mask(tmp_path / "mask.ome.zarr", by_hand).voxel_um == {"z": 30, "y": 7, "x": 7}
        with pytest.raises(InputError, match="voxel"):
            open_mask(tmp_path / "mask.ome.zarr", open_volume(tmp_path / "image.ome.zarr"))
