"""Opening, reading, hashing and writing volumes, whatever their format."""

import hashlib
import json
import os

import dask.array as da
import numpy as np
import pytest
import zarr

from n4flow.errors import DiskFullError, InputError
from n4flow.io import writers
from n4flow.io.formats import WRITTEN, written_as
from n4flow.io.omezarr.store import validate_store
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume

SHAPE = (11, 17, 23)
VOXEL = {"z": 25.0, "y": 10.0, "x": 6.5}


@pytest.fixture
def voxels():
    return np.random.default_rng(4).normal(500, 100, SHAPE).astype("float32")


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", ">u2"])
def test_every_format_keeps_voxels_and_size(tmp_path, voxels, ending, dtype):
    array = (voxels / 10).astype(dtype)
    path = tmp_path / f"my brain é{ending}"
    write_volume(path, array, voxel_um=VOXEL)
    volume = open_volume(path, voxel_um=VOXEL if ending == ".npy" else None)
    assert volume.voxel_um == VOXEL
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")
    assert volume.shape == SHAPE
    assert np.array_equal(volume.read(slice(None)), array)
    assert np.array_equal(volume.data[3:7, ::2].compute(), array[3:7, ::2])
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_digest_is_that_of_the_voxels_in_every_format(tmp_path, voxels):
    head = json.dumps({"dtype": "float32", "shape": SHAPE, "voxel_um": VOXEL}, sort_keys=True).encode()
    expected = hashlib.sha256(head)
    for plane in voxels.astype("<f4"):
        expected.update(hashlib.sha256(plane.tobytes()).digest())
    found = {open_digest(tmp_path, voxels, ending) for ending in WRITTEN}
    found.add(Volume.from_array(voxels, VOXEL).digest())
    found.add(Volume.from_array(voxels.astype(">f4"), VOXEL).digest())
    zarr.create_array(tmp_path / "other.zarr", data=voxels, chunks=(2, 5, 7), zarr_format=2)
    found.add(open_volume(tmp_path / "other.zarr", voxel_um=VOXEL).digest())
    assert found == {expected.hexdigest()}


def open_digest(tmp_path, voxels, ending):
    write_volume(tmp_path / f"a{ending}", voxels, voxel_um=VOXEL)
    return open_volume(tmp_path / f"a{ending}", voxel_um=VOXEL if ending == ".npy" else None).digest()


def test_digest_sees_voxels_type_shape_and_size(voxels):
    other = voxels.copy()
    other[5, 3, 2] = np.nextafter(other[5, 3, 2], np.float32(0))
    digests = [
        Volume.from_array(voxels, VOXEL),
        Volume.from_array(other, VOXEL),
        Volume.from_array(voxels.astype("float64"), VOXEL),
        Volume.from_array(voxels.reshape(11, 23, 17), VOXEL),
        Volume.from_array(voxels, {**VOXEL, "x": 6.6}),
    ]
    assert len({volume.digest() for volume in digests}) == 5


def test_read_gives_an_array_of_its_own(tmp_path, voxels):
    volume = Volume.from_array(voxels, VOXEL)
    block = volume.read(slice(-3, None), slice(2, 100), slice(5, 5))
    assert block.shape == (3, 15, 0)
    block = volume.read(slice(2, 4))
    block[...] = 0
    assert voxels[2:4].all()
    write_volume(tmp_path / "a.nii", voxels, voxel_um=VOXEL)
    mapped = open_volume(tmp_path / "a.nii").read(slice(2, 4))
    mapped[...] = 0
    assert np.array_equal(open_volume(tmp_path / "a.nii").read(slice(None)), voxels)
    with pytest.raises(InputError, match="without steps"):
        volume.read(slice(None, None, 2))


def test_data_is_lazy_and_in_whole_chunks(tmp_path):
    array = np.random.default_rng(0).random((40, 140, 300)).astype("float32")
    write_volume(tmp_path / "a.ome.zarr", array, voxel_um=VOXEL)
    volume = open_volume(tmp_path / "a.ome.zarr")
    assert isinstance(volume.data, da.Array)
    assert volume.data.dtype == np.float32
    assert volume.data.chunks == ((40,), (140,), (300,))
    for cut in np.s_[3], np.s_[::-1], np.s_[::-7, 5, 2:9:4], np.s_[-2, -1], np.s_[5:5], np.s_[:, [1, 5, 3]]:
        assert np.array_equal(volume.data[cut].compute(), array[cut])
    assert np.allclose(volume.data.mean(axis=(1, 2)).compute(), array.mean(axis=(1, 2)), rtol=1e-5)
    # A block of a large volume is a whole number of chunks, of about 64 MB.
    zarr.create_array(tmp_path / "b.zarr", shape=(999, 4000, 4000), chunks=(10, 128, 128), dtype="u2")
    large = open_volume(tmp_path / "b.zarr", voxel_um=VOXEL, allow_missing_chunks=True)
    sizes = [axis[0] for axis in large.data.chunks]
    assert all(size % chunk == 0 or size == n for size, chunk, n in zip(sizes, large.chunks, large.shape, strict=True))
    assert 2**24 <= np.prod(sizes) * 2 <= 2**27


def test_origin_is_kept(tmp_path, voxels):
    like = Volume.from_array(voxels, VOXEL, (1.5, -20, 3000))
    for ending in (".ome.zarr", ".nii.gz", ".nrrd", ".mha"):
        write_volume(tmp_path / f"a{ending}", voxels, like=like)
        volume = open_volume(tmp_path / f"a{ending}")
        assert volume.origin_um == pytest.approx({"z": 1.5, "y": -20, "x": 3000}, rel=1e-6)
        assert volume.voxel_um == VOXEL


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_mask_becomes_labels(tmp_path, voxels, version):
    write_volume(tmp_path / "mask.zarr", voxels > 500, voxel_um=VOXEL, ome_zarr_version=version)
    attributes = dict(zarr.open_group(tmp_path / "mask.zarr", mode="r").attrs)
    assert "image-label" in attributes.get("ome", attributes)
    volume = open_volume(tmp_path / "mask.zarr")
    assert volume.dtype == np.uint8
    assert volume.metadata["ome_zarr_version"] == version
    assert np.array_equal(volume.read(slice(None)), voxels > 500)
    validate_store(tmp_path / "mask.zarr")


def test_image_has_a_display_window(tmp_path, voxels):
    voxels[0, 0] = np.nan
    write_volume(tmp_path / "brain.ome.zarr", voxels, voxel_um=VOXEL)
    omero = zarr.open_group(tmp_path / "brain.ome.zarr", mode="r").attrs["ome"]["omero"]
    window = omero["channels"][0]["window"]
    assert omero["channels"][0]["label"] == "brain"
    exact = voxels.astype(np.float64)  # NumPy's percentile of float32 rounds differently from release to release
    assert window["start"] == pytest.approx(np.nanpercentile(exact, 0.1))
    assert window["end"] == pytest.approx(np.nanpercentile(exact, 99.9))
    assert (window["min"], window["max"]) == (np.nanmin(voxels), np.nanmax(voxels))


def test_window_of_a_constant_image_lies_within_its_range(tmp_path):
    write_volume(tmp_path / "a.ome.zarr", np.full(SHAPE, 7, "uint8"), voxel_um=VOXEL)
    window = dict(zarr.open_group(tmp_path / "a.ome.zarr").attrs)["ome"]["omero"]["channels"][0]["window"]
    assert window["min"] <= window["start"] < window["end"] <= window["max"]


@pytest.mark.parametrize("ending", [*WRITTEN, *map(str.upper, WRITTEN)])
def test_a_format_names_all_files_that_it_writes(tmp_path, voxels, ending):
    path = tmp_path / f"a.b{ending}"
    write_volume(path, voxels, voxel_um=VOXEL)
    named = written_as(path).files_written(path)
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in named)
    assert np.array_equal(open_volume(path, voxel_um=VOXEL).read(slice(None)), voxels)


def test_an_existing_file_or_store_is_replaced_in_one_piece(tmp_path, voxels, monkeypatch):
    for name in ("a.nii", "a.mhd", "a.ome.zarr"):
        write_volume(tmp_path / name, voxels, voxel_um=VOXEL)
        write_volume(tmp_path / name, voxels + 1, voxel_um=VOXEL)
        assert np.array_equal(open_volume(tmp_path / name).read(slice(None)), voxels + 1)

        def full(*_arguments, **_options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writers.os, "replace", full)
        with pytest.raises(DiskFullError, match="no space or quota left"):
            write_volume(tmp_path / name, voxels, voxel_um=VOXEL)
        monkeypatch.undo()
        assert np.array_equal(open_volume(tmp_path / name).read(slice(None)), voxels + 1)
    assert sorted(os.listdir(tmp_path)) == ["a.mhd", "a.nii", "a.ome.zarr", "a.raw"]
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is a folder and not a Zarr store"):
        write_volume(tmp_path / "b.zarr", voxels, voxel_um=VOXEL)
    assert (tmp_path / "b.zarr/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "array", "options", "message"),
    [
        (
            "a.png",
            np.zeros((2, 3, 4)),
            {},
            "has no ending that n4flow writes; expected one of .ome.zarr, .zarr, .nii",
        ),
        (
            "a.nii",
            np.zeros((3, 4)),
            {},
            r"a volume \(Z, Y, X\) is needed to write a.nii, got an array of shape \(3, 4\)",
        ),
        ("a.nii", np.zeros((2, 3, 4), "c8"), {}, "cannot be written as complex64 to a.nii; cast them"),
        ("a.nii", np.zeros((2, 3, 4), "i8"), {}, "cannot be written as int64 to a.nii; cast them"),
        ("a.nii", np.zeros((2, 3, 4)), {"voxel_um": None}, "a.nii needs a voxel size; give it with voxel_um"),
        ("a.zarr", np.zeros((2, 3, 4)), {"ome_zarr_version": "0.6"}, "version must be one of 0.5, 0.4"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, array, options, message):
    with pytest.raises(InputError, match=message):
        write_volume(tmp_path / name, array, **{"voxel_um": (1, 1, 1), **options})
    assert not os.listdir(tmp_path)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"nothing.nii does not exist; check the path"):
        open_volume(tmp_path / "nothing.nii")
    with pytest.raises(InputError, match=r"ftp:/host/brain.ome.zarr is an address \(ftp\) that is not read"):
        open_volume("ftp://host/brain.ome.zarr")
    with pytest.raises(InputError, match=r"https://host/brain.nii is a file \(NIfTI\) at an address"):
        open_volume("https://host/brain.nii")
    (tmp_path / "link.nii").symlink_to("gone.nii")
    with pytest.raises(InputError, match=r"link.nii is a link to gone.nii, which does not exist"):
        open_volume(tmp_path / "link.nii")
    (tmp_path / "a.svg").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.svg is not a volume that n4flow reads; expected OME-Zarr"):
        open_volume(tmp_path / "a.svg")
    with pytest.raises(InputError, match=r"without Zarr metadata or planes; it holds a.svg, link.nii; expected"):
        open_volume(tmp_path)
    for name in ("a.nii", "a.nii.gz", "a.tif", "a.npy", "a.nrrd", "a.png", "a.jp2"):
        (tmp_path / name).write_bytes(b"not what it says")
        with pytest.raises(InputError, match=f"{name} .*(readable|cut short)"):
            open_volume(tmp_path / name)


@pytest.mark.parametrize("given", [(1, 2), (1, 2, 0), (1, 2, -3), (1, 2, float("nan")), {"z": 1, "q": 2}, {"z": 0}])
def test_voxel_sizes_that_make_no_sense(tmp_path, voxels, given):
    np.save(tmp_path / "a.npy", voxels)
    with pytest.raises(InputError, match="voxel_um needs|positive micrometres"):
        open_volume(tmp_path / "a.npy", voxel_um=given)


def test_level_only_where_there_is_a_pyramid(tmp_path, voxels):
    np.save(tmp_path / "a.npy", voxels)
    with pytest.raises(InputError, match="read from OME-Zarr alone, not from .*; level must be 0, got 1"):
        open_volume(tmp_path / "a.npy", level=1, voxel_um=(1, 1, 1))


def test_input_is_never_changed(tmp_path, voxels):
    write_volume(tmp_path / "a.ome.zarr", voxels, voxel_um=VOXEL)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()}
    for file in before:
        file.chmod(0o444)
    volume = open_volume(tmp_path / "a.ome.zarr")
    volume.read(slice(None))
    volume.digest()
    assert before == {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()
    }
