"""NIfTI, TIFF, NRRD, MetaImage and npy: shape, voxels and physical size, against the libraries of the formats."""

import errno
import gc
import gzip
import os
import pickle
import re
import resource
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from n4flow.errors import DiskFullError, InputError, N4flowWarning
from n4flow.io.formats import WRITTEN, name_without_suffix, read_as
from n4flow.io.nifti import NiftiReader
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume

SHAPE = (11, 17, 23)
OPTION = "give it with voxel_um (z y x, micrometres)"
BRAIN = Path(__file__).resolve().parents[4] / "shared" / "data" / "mouse_brain_50um.tif"


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("a/brain.ome.zarr", "brain"),
        ("t1.nii.gz", "t1"),
        ("x.y.tif", "x.y"),
        ("b.ome.tiff", "b"),
        ("c.zarr.zip", "c"),
        ("scan_v1.2", "scan_v1.2"),
        ("D.Ome.Zarr.ZIP", "D"),
        ("e.zip", "e.zip"),
        ("f.ome.nrrd", "f.ome"),
    ],
)
def test_a_sample_is_named_after_its_file(name, sample):
    assert name_without_suffix(name) == sample


@pytest.fixture
def voxels():
    return np.random.default_rng(2).integers(0, 250, SHAPE).astype("uint16")


def nifti(path, xyz, affine=None, unit="mm", slope=None, inter=None, kind=nibabel.Nifti1Image):
    image = kind(xyz, np.diag([0.05, 0.02, 0.1, 1]) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    if slope is not None:
        # nibabel chooses the scaling itself, so the fields are put into the file: bytes 112 and 116 of NIfTI-1.
        raw = bytearray(path.read_bytes())
        raw[112:120] = np.array([slope, inter], "<f4").tobytes()
        path.write_bytes(raw)
    return path


# ---- NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("unit", "factor"), [("mm", 1e3), ("micron", 1.0), ("meter", 1e6)])
def test_nifti_is_transposed_and_its_unit_converted(tmp_path, voxels, name, unit, factor):
    volume = open_volume(nifti(tmp_path / name, voxels.T, unit=unit))
    assert volume.shape == SHAPE
    assert volume.dtype == np.uint16
    # The header holds float32; 0.05 is meant, not 0.05000000074505806.
    assert volume.voxel_um == {"z": 0.1 * factor, "y": 0.02 * factor, "x": 0.05 * factor}
    assert np.array_equal(volume.read(slice(2, 9), slice(3, 5)), voxels[2:9, 3:5])
    assert np.array_equal(volume.data.compute(), voxels)
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(slice(None)), voxels)


def test_nifti_uncompressed_is_mapped_and_not_loaded(tmp_path, voxels):
    reader = NiftiReader(nifti(tmp_path / "a.nii", voxels.T))
    reader.read(slice(0, 1), slice(0, 1), slice(0, 1))
    assert isinstance(reader._handle, np.memmap)


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [
        (0.5, 10, lambda v: (v * 0.5 + 10).astype("float32")),
        (np.nan, np.nan, lambda v: v),
        (0, 7, lambda v: v),
        (1, 0, lambda v: v),
    ],
)
def test_nifti_scaling(tmp_path, voxels, slope, inter, expected):
    volume = open_volume(nifti(tmp_path / "a.nii", voxels.T, slope=slope, inter=inter))
    assert volume.dtype == expected(voxels).dtype
    assert np.array_equal(volume.read(slice(None)), expected(voxels))
    assert np.array_equal(volume.read(slice(None)).T, nibabel.load(tmp_path / "a.nii").get_fdata())


def test_nifti_big_endian(tmp_path, voxels):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_xyzt_units("mm")
    header.set_data_dtype(">u2")
    nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4), header), tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.dtype.isnative
    assert np.array_equal(volume.read(slice(None)), voxels)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_without_a_unit_is_in_millimetres_and_says_so(tmp_path, voxels, name):
    path = nifti(tmp_path / name, voxels.T, unit="unknown")
    with pytest.warns(N4flowWarning, match=f"{path}: its header names no unit of length, and millimetres are assumed"):
        volume = open_volume(path)
    assert volume.voxel_um == {"z": 100.0, "y": 20.0, "x": 50.0}
    assert open_volume(path, voxel_um=(3, 2, 1)).voxel_um == {"z": 3.0, "y": 2.0, "x": 1.0}


def test_nifti_size_of_zero_is_not_taken_for_one(tmp_path, voxels):
    path = nifti(tmp_path / "a.nii", voxels.T)
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.array(0, "<f4").tobytes()  # pixdim[1] of NIfTI-1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=f"has no voxel size along x; {re.escape(OPTION)}"):
        open_volume(path)
    assert open_volume(path, voxel_um={"x": 5}).voxel_um == {"z": 100.0, "y": 20.0, "x": 5.0}


def test_nifti_with_more_axes(tmp_path, voxels):
    several = np.stack([voxels.T, voxels.T + 1], axis=3)
    path = nifti(tmp_path / "a.nii", several)
    with pytest.raises(InputError, match="has 2 channels; choose one with channel, 0 to 1"):
        open_volume(path)
    assert np.array_equal(open_volume(path, channel=1).read(slice(None)), voxels + 1)
    path = nifti(tmp_path / "b.nii.gz", voxels.T[..., None, None])
    assert np.array_equal(open_volume(path).read(slice(1, 4)), voxels[1:4])
    path = nifti(tmp_path / "c.nii", several[:, :, :, None, :])  # vectors
    assert np.array_equal(open_volume(path, channel=1).read(slice(None)), voxels + 1)
    path = nifti(tmp_path / "d.nii", np.stack([several, several], axis=4))
    with pytest.raises(InputError, match="expected z, y, x"):
        open_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("keep", [0.6, 0.05, 0.0])
def test_nifti_cut_short(tmp_path, name, keep):
    path = nifti(tmp_path / name, np.random.default_rng(0).integers(0, 2**16, SHAPE[::-1]).astype("uint16"))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match="cut short|is not a? ?readable"):
        open_volume(path)


def test_nifti_of_several_gzip_members(tmp_path, voxels):
    # Block-compressed files are made of many members, and only the last one's length stands at the end.
    nifti(tmp_path / "a.nii", voxels.T)
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:999]) + gzip.compress(data[999:]))
    assert np.array_equal(open_volume(tmp_path / "b.nii.gz").read(slice(None)), voxels)


def oblique():
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.05, 0.02, 0.1]
    affine[:3, 3] = [-12.5, 3.25, 99]
    return affine.astype("float32").astype(float)


@pytest.mark.parametrize("between", [None, "m.ome.zarr", "m4.ome.zarr"])
def test_affine_survives_also_by_way_of_ome_zarr(tmp_path, voxels, between):
    image = nibabel.Nifti1Image(voxels.T, oblique())
    image.set_sform(oblique(), 4)
    image.set_qform(oblique(), 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    like = open_volume(tmp_path / "a.nii.gz")
    if between:
        version = "0.4" if "4" in between else "0.5"
        write_volume(tmp_path / between, voxels, like=like, ome_zarr_version=version)
        like = open_volume(tmp_path / between)
    write_volume(tmp_path / "b.nii.gz", voxels.astype("float32"), like=like)
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert np.array_equal(again.affine, oblique())
    assert (int(again.header["qform_code"]), int(again.header["sform_code"])) == (1, 4)
    assert again.header.get_xyzt_units()[0] == "mm"
    assert again.get_data_dtype() == np.float32
    assert np.array_equal(again.get_fdata(), voxels.T)
    # The turn is float32 in the header, which is all that the sizes can differ by.
    assert open_volume(tmp_path / "b.nii.gz").voxel_um == pytest.approx({"z": 100, "y": 20, "x": 50}, rel=1e-6)


@pytest.mark.parametrize("between", [None, "m.ome.zarr"])
def test_a_sform_into_another_space_survives_beside_the_qform(tmp_path, voxels, between):
    scanner, template = np.diag([0.05, 0.02, 0.1, 1]), np.diag([0.5, 0.2, 1.0, 1])
    scanner[:3, 3], template[:3, 3], template[0, 1] = (1, 2, 3), (-7, -8, -9), 0.1
    image = nibabel.Nifti1Image(voxels.T, scanner)
    image.set_qform(scanner, 1)
    image.set_sform(template, 4)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii")
    like = open_volume(tmp_path / "a.nii")
    assert like.voxel_um == {"z": 100.0, "y": 20.0, "x": 50.0}
    if between:
        write_volume(tmp_path / between, voxels, like=like)
        like = open_volume(tmp_path / between)
    write_volume(tmp_path / "b.nii", voxels, like=like)
    header = nibabel.load(tmp_path / "b.nii").header
    assert np.allclose(header.get_qform(), scanner, atol=1e-6)
    assert np.allclose(header.get_sform(), template, atol=1e-6)
    assert open_volume(tmp_path / "b.nii").voxel_um == like.voxel_um


def test_size_given_by_hand_corrects_the_affine(tmp_path, voxels):
    path = nifti(tmp_path / "a.nii", voxels.T, affine=oblique())
    like = open_volume(path, voxel_um=(200, 20, 50))
    write_volume(tmp_path / "b.nii", voxels, like=like)
    assert open_volume(tmp_path / "b.nii").voxel_um == pytest.approx({"z": 200, "y": 20, "x": 50}, rel=1e-6)
    affine = nibabel.load(tmp_path / "b.nii").affine
    assert np.allclose(affine[:3, :3], oblique()[:3, :3] * [1, 1, 2], rtol=1e-6)


def test_straight_affine_gives_an_origin_and_back(tmp_path, voxels):
    affine = np.diag([0.05, 0.02, 0.1, 1])
    affine[:3, 3] = [-98, 4.5, 72]
    path = nifti(tmp_path / "a.nii", voxels.T, affine=affine)
    assert open_volume(path).origin_um == {"x": -98e3, "y": 4.5e3, "z": 72e3}
    write_volume(tmp_path / "m.nrrd", voxels, like=open_volume(path))
    write_volume(tmp_path / "b.nii", voxels, like=open_volume(tmp_path / "m.nrrd"))
    assert np.allclose(nibabel.load(tmp_path / "b.nii").affine, affine, atol=1e-7)


def test_long_axis_becomes_nifti2(tmp_path):
    array = np.zeros((1, 2, 32768), "uint8")
    write_volume(tmp_path / "a.nii.gz", array, voxel_um=(1, 1, 1))
    assert isinstance(nibabel.load(tmp_path / "a.nii.gz"), nibabel.Nifti2Image)
    assert open_volume(tmp_path / "a.nii.gz").shape == (1, 2, 32768)


def test_brain_template_as_nifti(tmp_path):
    nilearn = pytest.importorskip("nilearn")
    path = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    with pytest.warns(N4flowWarning, match="names no unit of length"):
        volume = open_volume(path)
    assert volume.voxel_um == {"z": 1000.0, "y": 1000.0, "x": 1000.0}
    assert np.array_equal(volume.read(slice(80, 90)), np.asarray(nibabel.load(path).dataobj).T[80:90])


# ---- TIFF


def imagej(path, array, unit="um", **options):
    metadata = {"axes": "ZYX", "spacing": 3.0, **({"unit": unit} if unit else {})}
    tifffile.imwrite(path, array, imagej=True, resolution=(1 / 0.65, 1 / 0.5), metadata=metadata, **options)
    return path


@pytest.mark.parametrize(("unit", "factor"), [("um", 1), ("micron", 1), ("\\u00B5m", 1), ("mm", 1e3), ("nm", 1e-3)])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_imagej_stack(tmp_path, voxels, unit, factor, byteorder):
    volume = open_volume(imagej(tmp_path / "a.tif", voxels, unit, byteorder=byteorder))
    assert volume.shape == SHAPE
    assert volume.dtype == np.uint16
    # Resolution is a fraction of two 32-bit numbers.
    assert volume.voxel_um == pytest.approx({"z": 3 * factor, "y": 0.5 * factor, "x": 0.65 * factor}, rel=1e-6)
    assert np.array_equal(volume.read(slice(2, 9), slice(3, 5)), voxels[2:9, 3:5])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).data.compute(), voxels)


@pytest.mark.parametrize(("unit", "reason"), [("pixel", " (its unit is 'pixel')"), (None, " (it names no unit)")])
def test_imagej_stack_without_a_length(tmp_path, voxels, unit, reason):
    path = imagej(tmp_path / "a.tif", voxels, unit)
    with pytest.raises(InputError) as caught:
        open_volume(path)
    assert str(caught.value) == f"{path} has no voxel size{reason}; {OPTION}"


def test_imagej_stack_without_spacing_asks_for_z(tmp_path, voxels):
    metadata = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", voxels, imagej=True, resolution=(2, 4), metadata=metadata)
    with pytest.raises(InputError, match="has no voxel size along z; give it"):
        open_volume(tmp_path / "a.tif")
    volume = open_volume(tmp_path / "a.tif", voxel_um={"z": 7})
    assert volume.voxel_um == {"z": 7.0, "y": 0.25, "x": 0.5}


def test_imagej_stack_of_one_page_has_its_whole_shape(tmp_path, voxels):
    # Above 4 GB ImageJ writes one page, and the other planes behind it: the same structure, small.
    path = tmp_path / "a.tif"
    imagej(path, voxels, truncate=True)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    volume = open_volume(path)
    assert volume.shape == SHAPE
    assert np.array_equal(volume.read(slice(None)), voxels)


def test_hyperstack_channels(tmp_path, voxels):
    metadata = {"axes": "ZCYX", "spacing": 1.0, "unit": "um"}
    tifffile.imwrite(
        tmp_path / "a.tif", np.stack([voxels, voxels + 1], 1), imagej=True, resolution=(1, 1), metadata=metadata
    )
    with pytest.raises(InputError, match="has 2 channels; choose one"):
        open_volume(tmp_path / "a.tif")
    assert np.array_equal(open_volume(tmp_path / "a.tif", channel=1).read(slice(4, 9)), voxels[4:9] + 1)


def ome(path, array, axes="ZYX", **options):
    metadata = {"axes": axes, **{f"PhysicalSize{a}": s for a, s in zip("ZYX", (0.004, 2.0, 1.5), strict=True)}}
    metadata |= {"PhysicalSizeZUnit": "mm", "PhysicalSizeYUnit": "µm", "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "tile": (16, 16)},
        {"tile": (16, 32)},
        {"bigtiff": True},
        {"byteorder": ">", "compression": "zlib"},
    ],
)
def test_ome_tiff(tmp_path, voxels, options):
    volume = open_volume(ome(tmp_path / "a.ome.tif", voxels, **options))
    assert volume.voxel_um == {"z": 4.0, "y": 2.0, "x": 0.0015}
    assert volume.shape == SHAPE
    assert volume.dtype == np.uint16
    assert np.array_equal(volume.read(slice(2, 9), slice(3, 5), slice(6, 20)), voxels[2:9, 3:5, 6:20])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).data.compute(), voxels)


def test_ome_tiff_channels(tmp_path, voxels):
    path = ome(tmp_path / "a.ome.tif", np.stack([voxels, voxels + 1]), "CZYX", compression="zlib")
    assert np.array_equal(open_volume(path, channel=1).read(slice(4, 9)), voxels[4:9] + 1)


@pytest.mark.parametrize("unit", ["\u00c5", "\u212b"])  # the letter, and the sign that looks like it
def test_ome_tiff_in_angstrom(tmp_path, voxels, unit):
    sizes = {f"PhysicalSize{axis}{part}": value for axis in "ZYX" for part, value in (("", 2e4), ("Unit", unit))}
    metadata = {"axes": "ZYX", **sizes}
    tifffile.imwrite(tmp_path / "a.ome.tif", voxels, ome=True, photometric="minisblack", metadata=metadata)
    assert open_volume(tmp_path / "a.ome.tif").voxel_um == {"z": 2.0, "y": 2.0, "x": 2.0}


@pytest.mark.parametrize("options", [{"ome": True}, {"bigtiff": True}])
def test_tiff_with_a_pyramid_is_read_at_full_resolution(tmp_path, options):
    array = np.random.default_rng(3).integers(0, 2**16, (5, 64, 48)).astype("uint16")
    shared = {"photometric": "minisblack", "tile": (16, 16)}
    with tifffile.TiffWriter(tmp_path / "a.tif", **options) as tif:
        tif.write(array, subifds=2, metadata={"axes": "ZYX"} if "ome" in options else None, **shared)
        for step in (2, 4):
            tif.write(array[:, ::step, ::step], subfiletype=1, metadata=None, **shared)
    volume = open_volume(tmp_path / "a.tif", voxel_um=(1, 1, 1))
    assert np.array_equal(volume.read(slice(1, 4), slice(7, 60)), array[1:4, 7:60])


def test_ome_tiff_of_a_file_for_each_plane(tmp_path):
    array = np.random.default_rng(3).integers(0, 2**16, (4, 40, 30)).astype("uint16")
    array[0] = 0  # its file is much shorter than the others
    files = [f"z{z}.ome.tif" for z in range(4)]
    data = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(files)
    )
    size = "".join(f'Size{axis}="{n}" ' for axis, n in zip("XYZCT", (30, 40, 4, 1, 1), strict=True))
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {size} PhysicalSizeX="2">{data}</Pixels>'
    for z, name in enumerate(files):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{z}">'
            f'<Image ID="Image:0">{pixels}</Image></OME>'
        )
        tifffile.imwrite(tmp_path / name, array[z], description=xml, metadata=None, compression="zlib")
    volume = open_volume(tmp_path / files[0], voxel_um={"z": 1, "y": 1})
    assert volume.voxel_um == {"z": 1.0, "y": 1.0, "x": 2.0}
    assert np.array_equal(volume.read(slice(None)), array)
    whole = (tmp_path / files[2]).read_bytes()
    (tmp_path / files[2]).write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(InputError, match=r"z2.ome.tif is cut short"):
        open_volume(tmp_path / files[0], voxel_um=(1, 1, 1))
    (tmp_path / files[2]).unlink()
    with pytest.raises(InputError, match=r"z0.ome.tif is one of several files, of which \S*z2.ome.tif is missing"):
        open_volume(tmp_path / files[0], voxel_um=(1, 1, 1))


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
@pytest.mark.parametrize(
    ("tag", "code", "lacking"),
    [
        (259, 5, "compression LZW requires the package"),
        (259, 50000, "compression ZSTD requires the package"),
        (259, 65535, "compression .* requires the package"),
        (317, 3, "predictor FLOATINGPOINT requires the package"),
        (317, 34892, "predictor HORIZONTALX2 requires the package"),
        (317, 34894, "predictor FLOATINGPOINTX2 requires the package"),
        (258, 12, "12 bits a voxel require the package"),
    ],
)
def test_tiff_whose_codec_is_not_installed(tmp_path, voxels, tag, code, lacking):
    if code == 50000 and find_spec("compression") is not None:
        pytest.skip("Python has Zstandard")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, voxels, compression="zlib", predictor=2, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for page in tif.pages:
            page.tags[tag].overwrite(code, dtype="H")
    with pytest.raises(InputError, match=rf"a.tif cannot be decoded: its {lacking} imagecodecs; install it, or save"):
        open_volume(path, voxel_um=(1, 1, 1))


def test_tiff_without_an_image(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"\xff" * 100)
    with pytest.raises(InputError, match="is not a readable TIFF file: it holds no image"):
        open_volume(tmp_path / "a.tif", voxel_um=(1, 1, 1))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True}, {"byteorder": ">"}])
def test_plain_pages_are_a_stack(tmp_path, voxels, options):
    pages = {key: options.pop(key) for key in ("compression",) if key in options}
    with tifffile.TiffWriter(tmp_path / "a.tif", **options) as tif:
        for plane in voxels:
            tif.write(
                plane, photometric="minisblack", metadata=None, resolution=(72, 72), resolutionunit="INCH", **pages
            )
    # A resolution for print is not the size of a voxel.
    with pytest.raises(InputError, match="only OME-TIFF and ImageJ files state one"):
        open_volume(tmp_path / "a.tif")
    volume = open_volume(tmp_path / "a.tif", voxel_um=(1, 2, 3))
    assert volume.shape == SHAPE
    assert np.array_equal(volume.read(slice(None)), voxels)


def test_several_images_in_a_file(tmp_path, voxels):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(voxels, photometric="minisblack")
        tif.write(voxels[:, ::2, ::2], photometric="minisblack")
    with pytest.raises(InputError, match=r"holds 2 images \(0: QYX \(11, 17, 23\), 1: QYX \(11, 9, 12\)\)"):
        open_volume(tmp_path / "a.tif", voxel_um=(1, 1, 1))


@pytest.mark.parametrize("kind", ["imagej", "ome", "ome-zlib", "pages", "shaped"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01])
def test_tiff_cut_short(tmp_path, kind, keep):
    array = np.random.default_rng(1).integers(0, 2**16, (9, 31, 33)).astype("uint16")
    path = tmp_path / "a.tif"
    if kind == "imagej":
        imagej(path, array)
    elif kind == "pages":
        with tifffile.TiffWriter(path) as tif:
            for plane in array:
                tif.write(plane, photometric="minisblack", metadata=None)
    elif kind == "shaped":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        ome(path, array, **({"compression": "zlib"} if kind == "ome-zlib" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match="cut short|is not a? ?readable"):
        open_volume(path, voxel_um=(1, 1, 1)).read(slice(None))


@pytest.mark.parametrize("tag", ["StripOffsets", "StripByteCounts"])
@pytest.mark.parametrize("change", ["zero", "removed"])
def test_a_tiff_without_one_of_its_strips_is_refused_and_not_read_as_zeros(tmp_path, voxels, tag, change):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, voxels, compression="zlib", rowsperstrip=2, photometric="minisblack")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        place = tif.pages[1].tags[tag]
        strips, width = len(tif.pages[1].dataoffsets), place.valuebytecount // len(tif.pages[1].dataoffsets)
    if change == "zero":
        data[place.valueoffset : place.valueoffset + width] = bytes(width)
    else:
        data[place.offset + 4 : place.offset + 8] = (strips - 1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"page 1 lacks some of its {strips} strips or tiles|incompatible keyframe"):
        open_volume(path, voxel_um=(1, 1, 1))


@pytest.mark.skipif(not BRAIN.exists(), reason="the mouse brain is not part of the repository")
def test_real_ome_tiff():
    volume = open_volume(BRAIN)
    assert volume.shape == (270, 193, 271)
    assert volume.voxel_um == {"z": 50.0, "y": 50.0, "x": 50.0}
    with tifffile.TiffFile(BRAIN) as tif:
        assert np.array_equal(volume.read(slice(100, 103)), np.stack([tif.pages[z].asarray() for z in range(100, 103)]))


# ---- NRRD and MetaImage


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_itk_formats(tmp_path, voxels, name, compress):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.05, 0.02, 0.1))
    image.SetOrigin((-1.5, 2, 7))
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compress)
    volume = open_volume(tmp_path / name)
    assert volume.shape == SHAPE
    assert volume.dtype == np.uint16
    assert volume.voxel_um == {"z": 100.0, "y": 20.0, "x": 50.0}
    assert volume.origin_um == {"z": 7000.0, "y": 2000.0, "x": -1500.0}
    assert np.array_equal(volume.read(slice(2, 9), slice(3, 5)), voxels[2:9, 3:5])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).data.compute(), voxels)


@pytest.mark.parametrize(
    ("name", "stated", "files"),
    [
        ("a.mhd", "s [x]1.raw", ["s [x]1.raw"]),
        ("a.mhd", "LIST\nz1.raw\nz2.raw\n", ["z1.raw", "z2.raw"]),
        ("a.mhd", "z%d.raw 1 2 1", ["z1.raw", "z2.raw"]),
        ("a.mha", "LOCAL", []),
        ("a.nhdr", "s [x]1.raw", ["s [x]1.raw"]),
        ("a.nhdr", "LIST\nz1.raw\nz2.raw", ["z1.raw", "z2.raw"]),
        ("a.nhdr", "z%d.raw 1 2 1", ["z1.raw", "z2.raw"]),
    ],
)
def test_headers_name_the_files_of_their_voxels(tmp_path, name, stated, files):
    """SimpleITK reads the volume from the files that are named, so the headers are valid."""
    planes = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4)
    metaimage = "NDims = 3\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\nDimSize = 4 5 2\nElementDataFile = "
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 5 2\nencoding: raw\ndata file: "
    header = f"{nrrd}{stated}\n" if name.endswith("hdr") else metaimage + stated
    (tmp_path / name).write_bytes(header.encode() + (b"\n" + planes.tobytes() if stated == "LOCAL" else b""))
    for file, part in zip(files, np.split(planes, len(files) or 1), strict=bool(files)):
        (tmp_path / file).write_bytes(part.tobytes())
    path = tmp_path / name
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), planes)
    assert sorted(read_as(path).files_read(path)) == sorted([path, *(tmp_path / file for file in files)])


def test_itk_channels_and_directions(tmp_path, voxels):
    image = sitk.GetImageFromArray(np.stack([voxels, voxels + 1], -1), isVector=True)
    image.SetSpacing((0.05, 0.02, 0.1))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    image.SetOrigin((-1.5, 2, 7))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(InputError, match="has 2 channels; choose one"):
        open_volume(tmp_path / "a.mha")
    volume = open_volume(tmp_path / "a.mha", channel=1)
    assert np.array_equal(volume.read(slice(None)), voxels + 1)
    write_volume(tmp_path / "b.nrrd", voxels, like=volume)
    again = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    assert again.GetDirection() == image.GetDirection()
    assert again.GetOrigin() == image.GetOrigin()
    assert again.GetSpacing() == pytest.approx(image.GetSpacing())


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nrrd", "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n\n"),
        ("a.mha", "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"),
    ],
)
def test_itk_header_without_spacing(tmp_path, name, header):
    (tmp_path / name).write_bytes(header.encode() + bytes(range(24)))
    with pytest.raises(InputError, match="its header states no spacing"):
        open_volume(tmp_path / name)
    volume = open_volume(tmp_path / name, voxel_um=(1, 2, 3))
    assert np.array_equal(volume.read(slice(None)), np.arange(24).reshape(4, 3, 2))


def nrrd(path, fields, sizes="2 3 4"):
    count = np.prod([int(n) for n in sizes.split()])
    head = ["NRRD0005", "type: uint8", f"dimension: {len(sizes.split())}", f"sizes: {sizes}", *fields, "encoding: raw"]
    path.write_bytes("\n".join([*head, "", ""]).encode() + bytes(range(count)))
    return path


UPRIGHT = ["space dimension: 3", "space directions: (2,0,0) (0,3,0) (0,0,4)", "space origin: (10,20,30)"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([*UPRIGHT, 'space units: "um" "um" "um"'], (4, 3, 2)),
        ([*UPRIGHT, "units:=um"], (4e3, 3e3, 2e3)),  # a field of the writer's own
        (["spacings: 2 3 0.004", 'units: "um" "um" "mm"'], (4, 3, 2)),
        (["spacings: 2 3 4", 'units: "" "" ""'], (4e3, 3e3, 2e3)),
    ],
)
def test_nrrd_units(tmp_path, fields, expected):
    volume = open_volume(nrrd(tmp_path / "a.nrrd", fields))
    assert volume.voxel_um == dict(zip("zyx", expected, strict=True))


def test_nrrd_units_of_an_array_with_components(tmp_path):
    fields = ["kinds: vector domain domain domain", "spacings: nan 2 3 4", 'units: "" "um" "um" "um"']
    volume = open_volume(nrrd(tmp_path / "a.nrrd", fields, "2 2 3 4"), channel=1)
    assert volume.voxel_um == {"z": 4.0, "y": 3.0, "x": 2.0}
    assert np.array_equal(volume.read(slice(None)).ravel(), np.arange(1, 48, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["spacings: 2 3 4", 'units: "pixel" "pixel" "pixel"'], "axis z has the unit 'pixel'"),
        ([*UPRIGHT, 'space units: "voxel" "voxel" "voxel"'], "axis x has the unit 'voxel'"),
        ([*UPRIGHT, 'space units: "um" "um" "mm"'], "its space units differ: um, um, mm"),
        (["spacings: 2 3 nan"], "no voxel size along z"),
        (["spacings: 2 3 -4"], "no voxel size along z"),
    ],
)
def test_nrrd_sizes_that_are_not_known(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        open_volume(nrrd(tmp_path / "a.nrrd", fields))


@pytest.mark.parametrize("between", ["m.nrrd", "m.mha", "m.nii", "m.ome.zarr"])
def test_nrrd_origin_in_another_unit_than_millimetres(tmp_path, between):
    volume = open_volume(nrrd(tmp_path / "a.nrrd", [*UPRIGHT, 'space units: "um" "um" "um"']))
    assert volume.origin_um == {"z": 30.0, "y": 20.0, "x": 10.0}
    write_volume(tmp_path / between, volume.read(slice(None)), like=volume)
    write_volume(tmp_path / "b.nrrd", volume.read(slice(None)), like=open_volume(tmp_path / between))
    assert open_volume(tmp_path / "b.nrrd").origin_um == pytest.approx(volume.origin_um)


def test_metaimage_size_of_zero(tmp_path):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementSpacing = 1 1 0\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + bytes(24))
    with pytest.raises(InputError, match=f"has no voxel size along z; {re.escape(OPTION)}"):
        open_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_itk_cut_short(tmp_path, voxels, name):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-500])
    with pytest.raises(InputError, match="is cut short"):
        open_volume(tmp_path / name, voxel_um=(1, 1, 1)).read(slice(None))
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a? ?readable"):
        open_volume(tmp_path / name, voxel_um=(1, 1, 1))


@pytest.mark.parametrize(
    ("name", "field", "fault"),
    [
        ("a.mha", "NDims = 65536", "has 65536 axes, expected 1 to 10"),
        ("a.mha", "NDims = -1", "has -1 axes, expected 1 to 10"),
        ("a.mha", "ElementDataFile = a%d.raw 1 2 0", "or by a step that is not above 0"),
        ("a.nrrd", "spacings: " + "1 " * 1000, "has a field of 2010 bytes, expected 512 at most"),
        ("a.nrrd", "data file: a%999999d.raw 1 2 1", "numbers its files with more than 99 digits, .*"),
        ("a.nrrd", "# " + "x" * 2**20, "is longer than 1048576 bytes"),
    ],
)
def test_a_header_that_ends_the_process_in_itk_is_refused(tmp_path, voxels, name, field, fault):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name))
    head, encoding, rest = (
        (tmp_path / name).read_bytes().partition(b"encoding" if name == "a.nrrd" else b"CompressedData ")
    )
    (tmp_path / name).write_bytes(head + field.encode() + b"\n" + encoding + rest)
    with pytest.raises(InputError, match=f"has a header that cannot be read: it .*{fault}; write it again"):
        open_volume(tmp_path / name, voxel_um=(1, 1, 1))


def test_a_long_field_of_the_writer_is_no_fault(tmp_path, voxels):
    image = sitk.GetImageFromArray(voxels)
    image.SetMetaData("history", "x" * 3000)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert np.array_equal(open_volume(tmp_path / "a.nrrd", voxel_um=(1, 1, 1)).read(slice(None)), voxels)


@pytest.mark.parametrize("name", ["a.npy", "a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.tif", "a.zarr.zip"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is no regular file, but a pipe"):
        open_volume(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is no regular file"):
        open_volume(tmp_path / name)


# ---- npy


def test_npy(tmp_path, voxels):
    np.save(tmp_path / "a.npy", voxels.astype(">u2"))
    volume = open_volume(tmp_path / "a.npy", voxel_um=(1, 2, 3))
    assert volume.dtype.isnative
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(slice(1, 5)), voxels[1:5])
    np.save(tmp_path / "b.npy", voxels[0])
    assert open_volume(tmp_path / "b.npy", voxel_um=(1, 2, 3)).shape == (1, *SHAPE[1:])
    np.save(tmp_path / "c.npy", voxels[None])
    with pytest.raises(InputError, match=r"has shape \(1, 11, 17, 23\); expected a volume"):
        open_volume(tmp_path / "c.npy", voxel_um=(1, 2, 3))
    np.save(tmp_path / "d.npy", np.zeros(SHAPE, "c8"))
    with pytest.raises(InputError, match="voxels of type complex64"):
        open_volume(tmp_path / "d.npy", voxel_um=(1, 2, 3))
    data = (tmp_path / "a.npy").read_bytes()
    for keep in (60, 3000):
        (tmp_path / "e.npy").write_bytes(data[:keep])
        with pytest.raises(InputError, match="is not a readable volume"):
            open_volume(tmp_path / "e.npy", voxel_um=(1, 2, 3))
    np.savez(tmp_path / "f.npz", voxels)
    (tmp_path / "f.npz").rename(tmp_path / "f.npy")
    with pytest.raises(InputError, match="is not a readable volume"):
        open_volume(tmp_path / "f.npy", voxel_um=(1, 2, 3))


@pytest.mark.parametrize("ending", [ending for ending in WRITTEN if ending not in (".ome.tiff", ".tiff")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_a_file_can_grow_no_more_the_reason_is_room_and_nothing_is_left(tmp_path, ending):
    # as on a full disk; SimpleITK, tifffile and numpy.save do not say what the system told them
    noise = np.random.default_rng(0).integers(0, 2**16, (5, 90, 80), np.uint16)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011  its number or its class say what it is
            write_volume(tmp_path / f"a{ending}", noise, voxel_um=(5, 1, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(caught.value, DiskFullError) or caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    del caught
    gc.collect()  # nibabel leaves a file that it could not write to Python to close
