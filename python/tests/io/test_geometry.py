"""Where voxels lie, from format to format and between a mask and its image, as nibabel and SimpleITK read them."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from n4flow.errors import InputError, N4flowWarning
from n4flow.io.geometry import on_grid
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume

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


def sitk_centroid(path):
    """Return what ITK makes of a NIfTI, which it takes to be in millimetres once read."""
    image = sitk.ReadImage(path)
    inside = np.argwhere(sitk.GetArrayFromImage(image) > 0).mean(0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(inside.tolist())) * (-1, -1, 1)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("ending", ["nii", "nrrd"])
def test_directions_survive_by_way_of_ome_zarr_also_of_a_coarser_level(tmp_path, ending, version):
    values = np.random.default_rng(0).integers(0, 9, (8, 96, 72)).astype(np.uint8)
    volume = open_volume(saved(tmp_path / f"in.{ending}", values, matrix("oblique", (1, 1, 3))))
    write_volume(tmp_path / "m.ome.zarr", values, like=volume, ome_zarr_version=version)
    for level, factors in ((0, (1, 1, 1)), (1, (2, 2, 1))):
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
        changed = {key for key in given if not np.array_equal(given[key], kept[key], equal_nan=True)}
        # The type and place of the voxels; a float32 result is not scaled, and one volume has three axes.
        assert changed <= {"datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "dim"}


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
