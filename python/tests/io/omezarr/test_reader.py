"""Reading stores that others wrote: Zarr v2 and v3, axes, units, channels, zip files, and stores with faults."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr

from n4flow.errors import InputError
from n4flow.io.omezarr.shards import EMPTY, shard_fault
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume

SHAPE = (13, 29, 37)
BLOSC = {"compressors": zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle")}
OLD_BLOSC = {"compressors": numcodecs.Blosc("zstd", 3, numcodecs.Blosc.SHUFFLE)}
MICRO = "micrometer"


@pytest.fixture
def voxels():
    return np.random.default_rng(5).integers(1, 60000, SHAPE).astype("uint16")


def multiscale(axes="zyx", units=MICRO, scale=None, translation=None, **more):
    scale = scale or [{"z": 25.0, "y": 10.0, "x": 6.5}.get(axis, 1.0) for axis in axes]
    transforms = [{"type": "scale", "scale": scale}]
    if translation:
        transforms.append({"type": "translation", "translation": translation})
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described:
        if axis["type"] == "space" and units != "absent":
            axis["unit"] = units[axis["name"]] if isinstance(units, dict) else units
    return {"axes": described, "datasets": [{"path": "0", "coordinateTransformations": transforms}], **more}


def make(path, array, version="0.5", ome=None, **options):
    """Write a store with zarr-python, which shares no code with our writer."""
    v3 = version == "0.5"
    ome = ome or {"multiscales": [multiscale()]}
    group = zarr.create_group(
        path, zarr_format=3 if v3 else 2, attributes={"ome": {"version": "0.5", **ome}} if v3 else ome
    )
    if not v3:
        options.setdefault("chunk_key_encoding", {"name": "v2", "separator": "/"})
    stored = group.create_array("0", shape=array.shape, dtype=array.dtype, **{"chunks": (5, 8, 16), **options})
    stored[...] = array
    return path


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("0.4", {}),
        ("0.4", {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
        ("0.4", {"order": "F"}),
        ("0.4", {"fill_value": None}),
        ("0.4", {"compressors": None}),
        ("0.5", {}),
        ("0.5", {"shards": (10, 16, 32)}),
        ("0.5", {"shards": (10, 16, 32), "compressors": "auto"}),
        ("0.5", {"chunk_key_encoding": {"name": "default", "separator": "."}}),
        ("0.5", {"chunk_key_encoding": {"name": "v2", "separator": "/"}}),
        ("0.4", OLD_BLOSC),
        ("0.4", {**OLD_BLOSC, "chunk_key_encoding": {"name": "v2", "separator": "."}}),
        ("0.5", BLOSC),
        ("0.5", {**BLOSC, "shards": (10, 16, 32)}),
    ],
)
@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f4", "|u1", "<i2", ">f8"])
def test_every_encoding_gives_the_same_voxels(tmp_path, voxels, version, options, dtype):
    array = voxels.astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr remarks on dtypes that Zarr v3 does not name yet
        make(tmp_path / "s.zarr", array, version, **options)
    volume = open_volume(tmp_path / "s.zarr")
    assert volume.shape == SHAPE
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")
    assert volume.chunks == (5, 8, 16)
    assert volume.shards == options.get("shards")
    assert volume.voxel_um == {"z": 25.0, "y": 10.0, "x": 6.5}
    read = volume.read(slice(3, 12), slice(None, -2), slice(1, 30))
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert read.flags.writeable
    assert np.array_equal(read, array[3:12, :-2, 1:30])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).data.compute(), array)


@pytest.mark.parametrize(("version", "options"), [("0.4", {}), ("0.5", {}), ("0.5", BLOSC)])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx", "tzyx", "yxz", "xyz", "zyxc", "yx", "cyx"])
def test_axes_are_found_by_name(tmp_path, voxels, version, options, axes):
    array = voxels
    if "z" not in axes:
        array = voxels[0]
    channels = [array, array + 1] if "c" in axes else [array]
    stored = np.stack(channels) if "c" in axes else array
    stored = stored if "t" not in axes else stored[None]
    natural = [a for a in "tczyx" if a in axes]
    stored = stored.transpose([natural.index(a) for a in axes])
    chunks = tuple({"t": 1, "c": 2, "z": 5, "y": 8, "x": 16}[a] for a in axes)
    path = make(tmp_path / "s.zarr", stored, version, {"multiscales": [multiscale(axes)]}, chunks=chunks, **options)
    given = {"voxel_um": {"z": 9}} if "z" not in axes else {}
    if "c" in axes:
        with pytest.raises(InputError, match="has 2 channels; choose one with channel, 0 to 1"):
            open_volume(path, **given)
        with pytest.raises(InputError, match="got channel 2; choose 0 to 1"):
            open_volume(path, channel=2, **given)
        assert np.array_equal(open_volume(path, channel=1, **given).read(slice(None)), np.atleast_3d(array.T).T + 1)
    else:
        with pytest.raises(InputError, match="has one channel, got channel 1"):
            open_volume(path, channel=1, **given)
    volume = open_volume(path, channel=0, **given)
    assert volume.shape == (SHAPE if "z" in axes else (1, *SHAPE[1:]))
    assert volume.voxel_um["x"] == 6.5
    read = volume.read(slice(None), slice(2, 9), slice(5, None))
    assert np.array_equal(read, np.atleast_3d(array.T).T[:, 2:9, 5:])


def systems(axes, transforms, output="intrinsic"):
    """Return OME-Zarr 0.6 metadata: the axes are those of the coordinate system that the level leads to."""
    described = [{"name": axis, "type": "space", "unit": MICRO} for axis in axes]
    other = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "xyz"]
    level = {"input": "0", "output": output, "type": "sequence", "transformations": transforms}
    return {
        "version": "0.6",
        "multiscales": [
            {
                "coordinateSystems": [{"name": "world", "axes": other}, {"name": "intrinsic", "axes": described}],
                "datasets": [{"path": "0", "coordinateTransformations": [level]}],
                "coordinateTransformations": [
                    {"type": "scale", "scale": [7, 7, 7], "input": "intrinsic", "output": "world"}
                ],
            }
        ],
    }


@pytest.mark.parametrize("output", ["intrinsic", {"name": "intrinsic"}])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx"])
def test_coordinate_systems_of_ome_zarr_0_6(tmp_path, voxels, axes, output):
    order = ["zyx".index(axis) for axis in axes]
    size, place = {"z": 25.0, "y": 10.0, "x": 6.5}, {"z": 3.0, "y": 0.0, "x": -2.0}
    transforms = [
        {"type": "scale", "scale": [size[axis] for axis in axes]},
        {"type": "translation", "translation": [place[axis] for axis in axes]},
    ]
    stored = voxels.transpose(order)
    path = make(tmp_path / "s.zarr", stored, ome=systems(axes, transforms, output))
    volume = open_volume(path)
    assert (volume.voxel_um, volume.origin_um) == (size, place)
    assert np.array_equal(volume.read(slice(None)), voxels)
    assert np.array_equal(open_volume(path, voxel_um=(1, 1, 1)).read(slice(None)), voxels)


def test_coordinate_systems_that_would_be_guessed_are_refused(tmp_path, voxels):
    mapped = [{"type": "mapAxis", "mapAxis": [2, 1, 0]}]
    path = make(tmp_path / "a.zarr", voxels, ome=systems("zyx", mapped))
    with pytest.raises(InputError, match="has a level with a coordinate transformation mapAxis; expected scale"):
        open_volume(path, voxel_um=(1, 1, 1))
    path = make(tmp_path / "b.zarr", voxels, ome=systems("zyx", [], "array"))
    with pytest.raises(InputError, match="leads to the coordinate system array, and there are world, intrinsic"):
        open_volume(path, voxel_um=(1, 1, 1))
    path = make(tmp_path / "c.zarr", voxels, ome={**systems("zyx", []), "version": "0.7"})
    with pytest.raises(InputError, match="is of OME-Zarr version 0.7; 0.1 to 0.6 are read"):
        open_volume(path, voxel_um=(1, 1, 1))


def test_channels_by_label(tmp_path, voxels):
    ome = {"multiscales": [multiscale("czyx")], "omero": {"channels": [{"label": "auto"}, {"label": "signal"}]}}
    path = make(tmp_path / "s.zarr", np.stack([voxels, voxels // 2]), ome=ome, chunks=(1, 5, 8, 16))
    with pytest.raises(InputError, match=r"has 2 channels \(auto, signal\); choose one"):
        open_volume(path)
    volume = open_volume(path, channel="signal")
    assert volume.metadata["channels"] == ["auto", "signal"]
    assert np.array_equal(volume.read(slice(None)), voxels // 2)


def test_channel_may_be_any_whole_number(tmp_path, voxels):
    path = make(
        tmp_path / "s.zarr",
        np.stack([voxels, voxels + 1]),
        chunks=(1, 5, 8, 16),
        ome={"multiscales": [multiscale("czyx")]},
    )
    assert np.array_equal(open_volume(path, channel=np.int64(1)).read(slice(None)), voxels + 1)
    with pytest.raises(InputError, match="has 2 channels, got channel 0.5; choose 0 to 1"):
        open_volume(path, channel=0.5)


def test_time_series_is_refused(tmp_path, voxels):
    path = make(
        tmp_path / "s.zarr", np.stack([voxels] * 3), ome={"multiscales": [multiscale("tzyx")]}, chunks=(1, 5, 8, 16)
    )
    with pytest.raises(InputError, match="has 3 time points; expected one volume"):
        open_volume(path)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [(MICRO, 1), ("millimeter", 1e3), ("nanometer", 1e-3), ("meter", 1e6), ("angstrom", 1e-4), ("um", 1), ("µm", 1)],
)
def test_lengths_are_converted(tmp_path, voxels, unit, factor):
    scale, translation = [0.025 / factor * 1e3, 0.0041, 1.1], [0.5, 0.0, -7.0]
    path = make(tmp_path / "s.zarr", voxels, ome={"multiscales": [multiscale("zyx", unit, scale, translation)]})
    volume = open_volume(path)
    assert volume.voxel_um["z"] == 25.0
    assert volume.voxel_um["y"] == pytest.approx(0.0041 * factor, rel=1e-12)
    assert volume.origin_um == pytest.approx({"z": 0.5 * factor, "y": 0, "x": -7 * factor}, rel=1e-12)


def test_twins_in_millimetres_and_micrometres_have_one_digest(tmp_path, voxels):
    digests = set()
    for unit, scale in ((MICRO, [25.0, 4.1, 1.3]), ("millimeter", [0.025, 0.0041, 0.0013])):
        make(tmp_path / f"{unit}.zarr", voxels, ome={"multiscales": [multiscale("zyx", unit, scale)]})
        digests.add(open_volume(tmp_path / f"{unit}.zarr").digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("units", "reason"),
    [
        (None, "axis z has no unit; axis y has no unit; axis x has no unit"),
        ("absent", "axis z has no unit"),
        ("pixel", "axis z has the unit 'pixel'"),
        ({"z": None, "y": MICRO, "x": MICRO}, "no voxel size along z (axis z has no unit)"),
    ],
)
def test_unknown_units_need_the_option(tmp_path, voxels, units, reason):
    path = make(tmp_path / "s.zarr", voxels, "0.4", {"multiscales": [multiscale("zyx", units)]})
    with pytest.raises(InputError) as caught:
        open_volume(path)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("give it with voxel_um (z y x, micrometres)")
    assert open_volume(path, require_voxel_um=False).voxel_um is None
    assert open_volume(path, voxel_um=(3, 2, 1)).voxel_um == {"z": 3.0, "y": 2.0, "x": 1.0}


def test_transformations_of_the_whole_image_follow_those_of_the_level(tmp_path, voxels):
    image = multiscale("zyx", MICRO, [2.0, 1.0, 1.0], [1.0, 0.0, 3.0])
    image["coordinateTransformations"] = [
        {"type": "scale", "scale": [10.0, 5.0, 4.0]},
        {"type": "translation", "translation": [100.0, 0.0, 0.5]},
    ]
    volume = open_volume(make(tmp_path / "s.zarr", voxels, ome={"multiscales": [image]}))
    assert volume.voxel_um == {"z": 20.0, "y": 5.0, "x": 4.0}
    assert volume.origin_um == {"z": 110.0, "y": 0.0, "x": 12.5}


@pytest.mark.parametrize(
    "other",
    [
        {"type": "rotation", "rotation": [[1, 0, 0], [0, 0, 1], [0, 1, 0]]},
        {"type": "scale", "path": "factors"},
        {"type": "scale", "scale": [2, 2]},
    ],
)
def test_a_size_that_an_unknown_transformation_would_change_is_not_taken(tmp_path, voxels, other):
    described = multiscale()
    described["coordinateTransformations"] = [other]
    path = make(tmp_path / "s.zarr", voxels, ome={"multiscales": [described]})
    with pytest.raises(InputError, match="has no voxel size .a transformation is .*, expected scale and translation"):
        open_volume(path)
    assert np.array_equal(open_volume(path, voxel_um=(1, 1, 1)).read(slice(None)), voxels)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": 5},
        {"axes": [{"type": "space"}] * 3},
        {"datasets": [{}]},
        {"datasets": "0"},
        {"coordinateTransformations": {"type": "scale"}},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": ["a", "b", "c"]}]}]},
    ],
)
def test_metadata_of_another_form_are_an_error_and_no_traceback(tmp_path, voxels, change):
    path = make(tmp_path / "s.zarr", voxels, ome={"multiscales": [{**multiscale(), **change}]})
    with pytest.raises(InputError, match="is not described as the specification of OME-Zarr asks for"):
        open_volume(path)


@pytest.mark.parametrize("text", ["[]", "", "{bad"])
def test_metadata_that_are_no_json_object(tmp_path, voxels, text):
    path = make(tmp_path / "s.zarr", voxels)
    (path / "zarr.json").write_text(text)
    with pytest.raises(InputError, match="is not a readable Zarr store"):
        open_volume(path)


def test_metadata_that_are_null_count_as_absent(tmp_path, voxels):
    described = {**multiscale(), "coordinateTransformations": None}
    path = make(tmp_path / "s.zarr", voxels, ome={"multiscales": [described], "omero": None})
    assert open_volume(path).voxel_um == {"z": 25.0, "y": 10.0, "x": 6.5}


def test_old_images_without_transformations(tmp_path, voxels):
    ome = {"multiscales": [{"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}]}
    path = make(tmp_path / "s.zarr", voxels, "0.4", ome)
    with pytest.raises(InputError, match="has no voxel size; give it"):
        open_volume(path)
    assert np.array_equal(open_volume(path, voxel_um=(1, 2, 3)).read(slice(None)), voxels)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_array(tmp_path, voxels, zarr_format):
    zarr.create_array(tmp_path / "a.zarr", data=voxels, zarr_format=zarr_format)
    with pytest.raises(InputError, match="has no voxel size; give it with voxel_um"):
        open_volume(tmp_path / "a.zarr")
    volume = open_volume(tmp_path / "a.zarr", voxel_um=(3, 2, 1))
    assert volume.metadata["format"] == "zarr"
    assert np.array_equal(volume.read(slice(None)), voxels)
    with pytest.raises(InputError, match="without pyramid levels; level must be 0, got 1"):
        open_volume(tmp_path / "a.zarr", level=1, voxel_um=(3, 2, 1))


def test_plain_array_with_named_dimensions(tmp_path, voxels):
    zarr.create_array(tmp_path / "a.zarr", data=voxels.transpose(2, 0, 1), dimension_names=("x", "z", "y"))
    assert np.array_equal(open_volume(tmp_path / "a.zarr", voxel_um=(3, 2, 1)).read(slice(None)), voxels)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_dimension_names_of_plain_arrays(tmp_path, voxels, zarr_format):
    def named(*names):
        kept = {"dimension_names": names} if zarr_format == 3 else {"attributes": {"_ARRAY_DIMENSIONS": list(names)}}
        path = tmp_path / "-".join(map(str, names))
        zarr.create_array(path, data=voxels, zarr_format=zarr_format, **kept)
        return open_volume(path, voxel_um=(1, 1, 1)).read(slice(None))

    assert np.array_equal(named("X", "Y", "Z"), voxels.T)
    assert np.array_equal(named("dim_0", "dim_1", "dim_2"), voxels)
    with pytest.raises(InputError, match="has dimensions named time, y, x; expected z, y, x"):
        named("time", "y", "x")


def test_bioformats2raw_folder(tmp_path, voxels):
    path = tmp_path / "s.zarr"
    zarr.create_group(path, zarr_format=2, attributes={"bioformats2raw.layout": 3})
    make(path / "0", voxels, "0.4")
    assert np.array_equal(open_volume(path).read(slice(None)), voxels)
    make(path / "1", voxels, "0.4")
    with pytest.raises(InputError, match="it holds 0, 1; give the path of one image or array"):
        open_volume(path)


def zipped(path, target, *, root=""):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, root + str(file.relative_to(path)))
    return target


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("name", "root"), [("s.zarr.zip", ""), ("s.ozx", ""), ("s.zarr.zip", "folder/s.ome.zarr/")])
def test_zip_files(tmp_path, voxels, version, name, root):
    options = {"shards": (10, 16, 32)} if version == "0.5" else {}
    path = make(tmp_path / "s.zarr", voxels, version, **options)
    target = zipped(path, tmp_path / name, root=root)
    shutil.rmtree(path)
    volume = open_volume(target)
    assert volume.voxel_um["z"] == 25.0
    assert np.array_equal(volume.read(slice(2, 11), slice(5, 20)), voxels[2:11, 5:20])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).data.compute(), voxels)
    assert lost_chunks(target) == []


def test_zip_files_that_are_no_store(tmp_path, voxels):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(InputError, match="holds no Zarr metadata"):
        open_volume(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"no zip at all")
    with pytest.raises(InputError, match="is not a readable Zarr store"):
        open_volume(tmp_path / "b.zip")
    path = make(tmp_path / "s.zarr", voxels)
    key = missing_key(path)
    (path / key).unlink()
    with pytest.raises(InputError, match=f"lacks 1 files, or they are cut short: {key.removeprefix('0/')}"):
        open_volume(zipped(path, tmp_path / "c.zip"))


def test_a_damaged_member_of_a_zip_file_is_an_error(tmp_path, voxels):
    path = zipped(make(tmp_path / "s.zarr", voxels), tmp_path / "s.zip")
    with zipfile.ZipFile(path) as archive:
        member = next(entry for entry in archive.infolist() if entry.filename.endswith("0/c/0/0/0"))
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + 20] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match="s.zip is not readable .*planes 0 to 5.*: Bad CRC-32 for file '.*0/c/0/0/0'"):
        open_volume(path).read(slice(0, 5))


def lost_chunks(path):
    """Return the keys of files of level 0 that are absent, empty or cut short."""
    return open_volume(path, allow_missing_chunks=True).metadata.get("missing_chunks", [])


def missing_key(path):
    """Return the key of a file in the middle of level 0."""
    files = sorted(str(file.relative_to(path)) for file in (path / "0").rglob("*") if file.is_file())
    return [file for file in files if not file.endswith(("zarr.json", ".zarray", ".zattrs"))][7]


@pytest.mark.parametrize("fault", ["missing", "empty", "cut"])
@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("0.4", {}),
        ("0.4", OLD_BLOSC),
        ("0.4", {"compressors": None}),
        ("0.5", {}),
        ("0.5", BLOSC),
        ("0.5", {"compressors": None}),
        ("0.5", {"compressors": zarr.codecs.GzipCodec()}),
        ("0.5", {"compressors": [zarr.codecs.ZstdCodec(checksum=True)]}),
        ("0.5", {"shards": (5, 16, 16), **BLOSC}),
    ],
)
def test_faulty_files_are_listed_or_read_as_invalid(tmp_path, voxels, version, options, fault):
    path = make(tmp_path / "s.zarr", voxels, version, fill_value=9 if fault == "missing" else 0, **options)
    assert lost_chunks(path) == []
    key = missing_key(path)
    data = (path / key).read_bytes()
    if fault == "missing":
        (path / key).unlink()
    else:
        (path / key).write_bytes(data[: 0 if fault == "empty" else -9])
    if fault == "cut" and isinstance(options.get("compressors"), zarr.codecs.GzipCodec):
        # A chunk of gzip says nothing of its length, so this shows when it is decoded.
        with pytest.raises(InputError, match="s.zarr is not readable .*planes 0 to 13.*"):
            open_volume(path).read(slice(None))
        return
    assert lost_chunks(path) == [key.removeprefix("0/")]
    with pytest.raises(
        InputError, match=f"lacks 1 files, or they are cut short: {key.removeprefix('0/')}; copy the store"
    ):
        open_volume(path)
    volume = open_volume(path, allow_missing_chunks=True)
    assert volume.metadata["missing_chunks"] == [key.removeprefix("0/")]
    z, y, x = (int(part) for part in key.split("/")[-3:])
    file = options.get("shards", (5, 8, 16))
    expected = voxels.copy()
    box = tuple(slice(i * f, (i + 1) * f) for i, f in zip((z, y, x), file, strict=True))
    expected[box] = 9 if fault == "missing" else 0  # the fill value, or invalid
    assert volume.metadata["damaged_chunks"] == ([] if fault == "missing" else [key.removeprefix("0/")])
    assert volume.metadata["missing_planes"] == []
    assert np.array_equal(volume.read(slice(None)), expected)
    if fault == "missing":
        assert np.array_equal(zarr.open_array(path / "0", mode="r")[...], expected)
    assert np.array_equal(volume.read(slice(2, 9), slice(3, 20), slice(7, 33)), expected[2:9, 3:20, 7:33])


@pytest.mark.parametrize("axes", ["zyx", "cyxz", "yx"])
def test_planes_of_which_no_file_is_left_are_listed(tmp_path, axes):
    shape = {"z": 13, "y": 16, "x": 32, "c": 2}
    values = np.zeros([shape[axis] for axis in axes], "uint16")
    chunks = [{"z": 5, "y": 8, "x": 16, "c": 1}[axis] for axis in axes]
    stored = zarr.create_array(tmp_path / "s.zarr", shape=values.shape, chunks=chunks, dtype="uint16", fill_value=0)
    in_order = np.moveaxis(values, [axes.index(axis) for axis in "czyx" if axis in axes], range(values.ndim))
    if "c" in axes:
        in_order[0] = 1  # of the other channel all files are there
    if "z" in axes:
        in_order[..., :5, :8, :16] = in_order[..., 10:, 8:, 16:] = 7
    stored[...] = values
    (tmp_path / "s.zarr/zarr.json").write_text(
        json.dumps(json.loads((tmp_path / "s.zarr/zarr.json").read_bytes()) | {"dimension_names": list(axes)})
    )
    options = {"channel": 1 if "c" in axes else None, "require_voxel_um": False, "allow_missing_chunks": True}
    volume = open_volume(tmp_path / "s.zarr", **options)
    assert volume.metadata["missing_planes"] == ([[5, 10]] if "z" in axes else [[0, 1]])
    assert len(volume.metadata["missing_chunks"]) == (3 * 4 - 2 if "z" in axes else 4)


def test_a_store_without_a_fill_value_may_leave_nothing_out(tmp_path, voxels):
    path = make(tmp_path / "s.zarr", voxels, "0.4", fill_value=None)
    key = missing_key(path)
    (path / key).unlink()
    with pytest.raises(InputError, match=r"allow missing chunks \(allow_missing_chunks\): those that are cut short"):
        open_volume(path)
    assert open_volume(path, allow_missing_chunks=True).metadata["damaged_chunks"] == [key.removeprefix("0/")]


@pytest.mark.parametrize("options", [{}, {"shards": (5, 32, 48)}], ids=["chunks", "shards"])
def test_a_store_opened_for_some_planes_looks_at_their_files_alone(tmp_path, voxels, options, monkeypatch):
    path = make(tmp_path / "s.zarr", voxels, **BLOSC, **options)
    for key in ("0/c/0/0/0", "0/c/2/0/0"):
        (path / key).write_bytes(b"")
    seen = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda file, **more: (seen.append(file), stat(file, **more))[1])
    volume = open_volume(path, planes=(6, 10))
    assert {file.relative_to(path).parts[2] for file in seen if "c" in file.parts} == {"1"}
    assert np.array_equal(volume.read(slice(6, 10)), voxels[6:10])
    for planes in (slice(5, 10), slice(6, 11), slice(None)):  # the first are in a file that was looked at
        with pytest.raises(InputError, match="are read, and it was opened for 6 to 10"):
            volume.read(planes)
    for planes, lost, kept in (((4, 6), 4, 5), ((9, 11), 10, 9)):
        with pytest.raises(InputError, match="lacks 1 files"):
            open_volume(path, planes=planes)
        volume = open_volume(path, planes=planes, allow_missing_chunks=True)
        assert not volume.read(slice(lost, lost + 1), slice(0, 8), slice(0, 16)).any()
        assert np.array_equal(volume.read(slice(kept, kept + 1)), voxels[kept : kept + 1])
    for planes in ((-1, 4), (3, 3)):
        with pytest.raises(InputError, match=r"planes must be START:STOP from 0 on, got"):
            open_volume(path, planes=planes, allow_missing_chunks=True)
    with pytest.raises(InputError, match="s.zarr was opened for planes 9 to 11, and data is all of it"):
        volume.data.sum()


@pytest.mark.parametrize("how", ["bare", "behind zstd", "in shards", "behind zstd, in shards"])
def test_every_flipped_byte_of_chunks_with_a_checksum_is_refused_also_in_parts(tmp_path, how):
    voxels = np.random.default_rng(7).integers(1, 300, (3, 5, 6)).astype("uint16")
    checked = [zarr.codecs.ZstdCodec()] if "zstd" in how else []
    options = {"chunks": (2, 2, 4), "compressors": [*checked, zarr.codecs.Crc32cCodec()]}
    if "shards" in how:
        options["shards"] = (4, 4, 8)
    array = zarr.create_array(tmp_path / "a", shape=voxels.shape, dtype=voxels.dtype, **options)
    array[:] = voxels
    file = tmp_path / "a/c/1/1/0" if "shards" not in how else tmp_path / "a/c/0/1/0"  # at the border
    first = np.array([1, 1, 0]) * options["chunks"] if "shards" not in how else np.array([0, 4, 0])
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"(?i)checksum|crc|offset|index|size|invalid"):
            zarr.open_array(tmp_path / "a", mode="r")[:]
        with pytest.raises(InputError):
            # A box of one voxel of each chunk of the file, and no more.
            volume = open_volume(tmp_path / "a", voxel_um=(1, 1, 1))
            for step in np.ndindex(2, 2, 2):
                corner = first + np.array(step) * options["chunks"]
                if (corner < voxels.shape).all() and ("shards" in how or not any(step)):
                    volume.read(*(slice(int(n), int(n) + 1) for n in corner))


def test_a_chunk_of_no_length_and_a_length_of_no_chunk_are_damage(tmp_path, voxels):
    path = make(tmp_path / "s.zarr", voxels, chunks=(4, 8, 8), shards=(8, 16, 16))
    shard = next(file for file in (path / "0/c").rglob("*") if file.is_file())
    whole = shard.read_bytes()
    index = np.frombuffer(whole[-16 * 8 - 4 : -4], "<u8").reshape(-1, 2)
    for place, entry in ((0, [index[0, 0], 0]), (1, [EMPTY, 5])):
        changed = index.copy()
        changed[place] = entry
        raw = changed.tobytes()
        shard.write_bytes(whole[: -16 * 8 - 4] + raw + google_crc32c.value(raw).to_bytes(4, "little"))
        assert "a place and no length, or a length and no place" in shard_fault(shard, 8)
        with pytest.raises(InputError, match="cut short"):
            open_volume(path)


def test_a_grid_of_any_size_and_metadata_that_are_none_are_refused_at_once(tmp_path, voxels):
    path = make(tmp_path / "s.zarr", voxels, chunks=(4, 8, 8))
    metadata = (path / "0/zarr.json").read_text()
    for count, sentence in ((10**15, "more than a disk holds"), (10**8, "lacks .* files or more")):
        stated = json.loads(metadata)
        stated["shape"] = [count * 4, 8, 8]
        (path / "0/zarr.json").write_text(json.dumps(stated))
        with pytest.raises(InputError, match=sentence):
            open_volume(path)
    stated["shape"] = list(SHAPE)
    stated["chunk_grid"]["configuration"]["chunk_shape"] = [10**5, 10**5, 10**5]
    (path / "0/zarr.json").write_text(json.dumps(stated))
    with pytest.raises(InputError, match="cut short"):  # tensorstore would end the process
        open_volume(path)
    (path / "0/zarr.json").unlink()
    os.mkfifo(path / "0/zarr.json")
    with pytest.raises(InputError, match="is no regular file"):
        open_volume(path)


def test_a_folder_in_the_place_of_a_chunk_is_lost(tmp_path, voxels):
    path = make(tmp_path / "s.zarr", voxels, **BLOSC)
    (path / "0/c/1/0/0").unlink()
    (path / "0/c/1/0/0").mkdir()
    with pytest.raises(InputError, match="lacks 1 files, or they are cut short: c/1/0/0"):
        open_volume(path)
    assert not open_volume(path, allow_missing_chunks=True).read(slice(5, 10), slice(0, 8), slice(0, 16)).any()


@pytest.mark.parametrize("fault", ["missing", "empty", "short", "index"])
def test_a_shard_that_is_lost_after_opening_is_named(tmp_path, voxels, fault):
    path = make(tmp_path / "s.zarr", voxels, shards=(15, 32, 48), **BLOSC)
    volume = open_volume(path)
    assert np.array_equal(volume.read(slice(5, 13)), voxels[5:])
    shard = path / "0/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[-20] ^= 255  # the index does not match its checksum any more
    if fault == "missing":
        shard.unlink()
    else:
        shard.write_bytes({"empty": b"", "short": data[:99], "index": data}[fault])
    with pytest.raises(InputError, match="s.zarr is not readable .*planes 0 to 5.*c/0/0/0.*; copy it again"):
        volume.read(slice(0, 5))


def test_a_chunk_that_is_lost_after_opening_is_named(tmp_path, voxels):
    path = make(tmp_path / "s.zarr", voxels, fill_value=7)
    volume = open_volume(path)
    (path / "0/c/0/1/0").unlink()
    with pytest.raises(InputError, match="s.zarr is not readable .*planes 0 to 5.*c/0/1/0 is missing; copy"):
        volume.read(slice(0, 5))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_chunk_that_does_not_match_its_checksum_is_an_error(tmp_path, voxels, sharded):
    codecs = [zarr.codecs.BytesCodec(), zarr.codecs.Crc32cCodec()]
    if sharded:
        codecs = [zarr.codecs.ShardingCodec(chunk_shape=(5, 8, 16), codecs=codecs)]
    chunks = (15, 32, 48) if sharded else (5, 8, 16)
    store = zarr.create(store=tmp_path / "a.zarr", shape=SHAPE, chunks=chunks, dtype="u2", codecs=codecs)
    store[:] = voxels
    file = tmp_path / "a.zarr/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[40] ^= 255
    file.write_bytes(data)
    volume = open_volume(tmp_path / "a.zarr", require_voxel_um=False)
    with pytest.raises(InputError, match="a.zarr is not readable .*planes 0 to 5.*.*c/0/0/0.*Digest mismatch"):
        volume.read(slice(0, 5))
    assert np.array_equal(volume.read(slice(5, 13)), voxels[5:])


@pytest.mark.parametrize("place", [4, 12])
def test_a_damaged_chunk_of_a_shard_is_an_error(tmp_path, voxels, place):
    path = make(tmp_path / "s.zarr", voxels, shards=(15, 32, 48), **BLOSC)
    shard = path / "0/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[place : place + 4] = b"\xff\xff\xff\x7f"  # the stated length of the voxels, and of the chunk
    shard.write_bytes(data)
    volume = open_volume(path)
    with pytest.raises(InputError, match="s.zarr is not readable .*planes 0 to 5.*"):
        volume.read(slice(0, 5))
    assert np.array_equal(volume.read(slice(5, 13)), voxels[5:])


@pytest.mark.parametrize(("dtype", "fill"), [("u2", 7), ("f4", np.nan), ("f4", np.inf), (">f8", -0.5)])
def test_chunks_that_a_shard_leaves_out_hold_the_fill_value(tmp_path, voxels, dtype, fill):
    voxels = voxels.astype(dtype)
    voxels[:5, :8, :16] = fill
    voxels[10:] = fill
    path = make(tmp_path / "s.zarr", voxels, shards=(15, 32, 48), fill_value=fill, **BLOSC)
    index = np.frombuffer((path / "0/c/0/0/0").read_bytes()[-(3 * 4 * 3 * 16 + 4) : -4], "<u8").reshape(-1, 2)
    assert (index[:, 0] == EMPTY).sum() == 13
    assert np.array_equal(open_volume(path).read(slice(None)), voxels, equal_nan=dtype != "u2")


def test_a_store_written_anew_is_read_anew(tmp_path, voxels):
    for array in (voxels, voxels // 3):
        path = make(tmp_path / "s.zarr", array, shards=(15, 32, 48), **BLOSC)
        assert np.array_equal(open_volume(path).read(slice(None)), array)
        shutil.rmtree(path)


def test_missing_files_of_another_channel_do_not_matter(tmp_path, voxels):
    ome = {"multiscales": [multiscale("czyx")]}
    path = make(tmp_path / "s.zarr", np.stack([voxels, voxels]), ome=ome, chunks=(1, 13, 29, 37))
    (path / "0/c/1/0/0/0").unlink()
    assert np.array_equal(open_volume(path, channel=0).read(slice(None)), voxels)
    with pytest.raises(InputError, match="c/1/0/0/0"):
        open_volume(path, channel=1)


def test_pyramid_levels(tmp_path):
    array = np.random.default_rng(0).random((5, 270, 31)).astype("float32")
    write_volume(tmp_path / "s.zarr", array, voxel_um=(25, 10, 10))
    volume = open_volume(tmp_path / "s.zarr", level=1)
    assert volume.shape == (5, 135, 31)
    assert volume.voxel_um == {"z": 25.0, "y": 20.0, "x": 10.0}
    assert volume.origin_um == {"z": 0.0, "y": 5.0, "x": 0.0}
    with pytest.raises(InputError, match="has 2 pyramid levels, counted from 0, got level 2"):
        open_volume(tmp_path / "s.zarr", level=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: p.mkdir(), "is a folder without Zarr metadata or planes; it holds nothing; expected OME-Zarr"),
        (lambda p: zarr.create_group(p), "is a Zarr group without an OME-Zarr image; it holds nothing"),
        (lambda p: make(p, np.zeros((2, 3), "c8"), chunks=(2, 3)), "voxels of type complex64"),
        (lambda p: (p.mkdir(), (p / "zarr.json").write_text("{")), "is not a readable Zarr store"),
        (
            lambda p: make(p, np.zeros((2, 3, 4), "u1"), ome={"multiscales": [multiscale("zy")]}, chunks=(2, 3, 4)),
            r"has axes z, y and shape \(2, 3, 4\); expected z, y, x",
        ),
    ],
)
def test_what_is_no_volume_is_named(tmp_path, build, message):
    build(tmp_path / "s.zarr")
    with pytest.raises(InputError, match=message):
        open_volume(tmp_path / "s.zarr")


def test_metadata_that_name_a_level_that_is_not_there(tmp_path, voxels):
    path = make(tmp_path / "s.zarr", voxels)
    file = path / "zarr.json"
    attributes = json.loads(file.read_text())
    attributes["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "scale0/image"
    file.write_text(json.dumps(attributes))
    with pytest.raises(InputError, match="is not a readable Zarr store: .*scale0/image"):
        open_volume(path)


THREADS = """
import os, sys
from pathlib import Path
from n4flow.compute.threads import limit_threads
from n4flow.io.open import open_volume

limit_threads(int(sys.argv[2]))
open_volume(sys.argv[1], voxel_um=(1, 1, 1)).read(slice(None))
names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
print(sum(name.startswith("ts_pool") for name in names))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the threads of a process there")
def test_tensorstore_takes_as_many_threads_as_are_asked_for(tmp_path):
    """So many that read files, so many that decode, and one or two that hand out work."""
    store = zarr.create_array(
        tmp_path / "gzip.zarr", shape=(64, 64, 64), chunks=(2, 8, 8), dtype="u2", compressors=zarr.codecs.GzipCodec()
    )
    store[:] = np.arange(64**3, dtype="u4").astype("u2").reshape(64, 64, 64)
    for count in (1, 2):
        code = [sys.executable, "-c", THREADS, str(tmp_path / "gzip.zarr"), str(count)]
        started = int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
        assert 1 <= started <= 2 * count + 2


BYTES, GZIP = zarr.codecs.BytesCodec(), zarr.codecs.GzipCodec()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # zarr remarks on codecs that Zarr v3 does not name
    LZ4 = zarr.codecs.numcodecs.LZ4()


def sharding(codecs, chunk=(5, 8, 8), **more):
    return zarr.codecs.ShardingCodec(chunk_shape=chunk, codecs=codecs, **more)


TENSORSTORE_REFUSES = {
    "v2 filters": {"filters": [numcodecs.Delta(dtype="<u2")], "compressor": numcodecs.Zlib()},
    "v2 lz4": {"compressor": numcodecs.LZ4()},
    "v2 lzma": {"compressor": numcodecs.LZMA()},
    "v3 numcodecs": {"codecs": [BYTES, LZ4]},
    "v3 numcodecs in a shard": {"codecs": [sharding([BYTES, LZ4])]},
    "v3 shards compressed": {"codecs": [sharding([BYTES]), GZIP]},
}
TENSORSTORE_READS = {
    "v2 gzip": {"compressor": numcodecs.GZip()},
    "v2 zlib": {"compressor": numcodecs.Zlib()},
    "v2 bz2": {"compressor": numcodecs.BZ2()},
    "v2 zstd": {"compressor": numcodecs.Zstd()},
    "v2 blosc": {"compressor": numcodecs.Blosc()},
    "v3 chain": {
        "codecs": [
            zarr.codecs.TransposeCodec(order=(2, 0, 1)),
            zarr.codecs.BytesCodec(endian="big"),
            GZIP,
            zarr.codecs.ZstdCodec(),
            zarr.codecs.Crc32cCodec(),
        ]
    },
    "v3 index first": {"codecs": [sharding([BYTES], index_location="start")]},
    "v3 shards transposed": {"codecs": [zarr.codecs.TransposeCodec(order=(2, 0, 1)), sharding([BYTES], (2, 2, 2))]},
    "v3 shards in shards": {"codecs": [sharding([sharding([BYTES, GZIP])], (5, 16, 16))]},
}


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning", "ignore:Numcodecs codecs:UserWarning")
@pytest.mark.parametrize(("name", "options"), [*TENSORSTORE_REFUSES.items(), *TENSORSTORE_READS.items()])
def test_every_codec_is_read_by_tensorstore_where_it_can(tmp_path, voxels, name, options):
    store = zarr.create(
        store=tmp_path / "a.zarr", shape=SHAPE, chunks=(10, 16, 32), dtype="<u2", zarr_format=int(name[1]), **options
    )
    voxels[:5] = 0  # shards leave out chunks of the fill value
    store[:] = voxels
    volume = open_volume(tmp_path / "a.zarr", require_voxel_um=False, allow_missing_chunks=True)
    assert volume.reader._chunks.by_tensorstore == (name in TENSORSTORE_READS)
    assert np.array_equal(volume.read(slice(3, 12), slice(None, -2), slice(1, 30)), voxels[3:12, :-2, 1:30])
    into = np.empty(SHAPE, "u2")
    assert np.array_equal(volume.read(slice(None), out=into), voxels)


@pytest.mark.parametrize("sharded", [False, True])
def test_stored_bytes_may_have_another_order_than_the_array(tmp_path, voxels, sharded):
    """Zarr v3 states the byte order in a codec, not in the type."""
    codecs = [zarr.codecs.BytesCodec(endian="big"), zarr.codecs.BloscCodec(typesize=2)]
    if sharded:
        codecs = [zarr.codecs.ShardingCodec(chunk_shape=(4, 8, 8), codecs=codecs)]
    store = zarr.create(store=tmp_path / "a.zarr", shape=SHAPE, chunks=(8, 16, 16), dtype="u2", codecs=codecs)
    store[:] = voxels
    volume = open_volume(tmp_path / "a.zarr", require_voxel_um=False)
    np.testing.assert_array_equal(volume.read(slice(None)), voxels)


def test_an_index_of_another_byte_order_is_no_damage(tmp_path, voxels):
    inner = [zarr.codecs.BytesCodec(), zarr.codecs.BloscCodec()]
    index = [zarr.codecs.BytesCodec(endian="big"), zarr.codecs.Crc32cCodec()]
    sharding = zarr.codecs.ShardingCodec(chunk_shape=(5, 8, 8), codecs=inner, index_codecs=index)
    path = make(tmp_path / "s.zarr", voxels, chunks=(5, 16, 16), serializer=sharding, compressors=None)
    assert np.array_equal(open_volume(path).read(slice(None)), voxels)


@pytest.mark.parametrize(("offset", "size"), [(2**64 - 2, 1000), (20, 2**64 - 10)])
def test_an_index_whose_ends_wrap_around_is_refused(tmp_path, offset, size):
    index = np.array([offset, size], "<u8").tobytes()
    checksum = google_crc32c.value(index)
    (tmp_path / "shard").write_bytes(bytes(4096) + index + checksum.to_bytes(4, "little"))
    assert shard_fault(tmp_path / "shard", 1) == "names chunks beyond its end"


def test_a_volume_that_was_read_is_read_in_a_forked_process_too(tmp_path, voxels):
    """Without tensorstore, whose threads do not exist there."""
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(4, 16, 16), **BLOSC)
    code = (
        "import os, sys; from n4flow.compute.threads import limit_threads; from n4flow.io.open import open_volume\n"
        f"limit_threads(2); volume = open_volume({str(tmp_path / 'v.zarr')!r}, voxel_um=(1, 1, 1))\n"
        "sums = [volume.read(slice(0, 13)).sum()]\n"
        "if (child := os.fork()) == 0: os._exit(int(volume.read(slice(0, 13)).sum() != sums[0]))\n"
        "print(sums[0], os.waitpid(child, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(voxels.sum()), "0"]


def test_a_plain_array_of_two_to_five_axes_is_tczyx_and_of_six_none(tmp_path):
    values = np.arange(60, dtype="u1").reshape(3, 4, 5)
    for leading in ((), (1,), (1, 1)):
        zarr.create_array(tmp_path / f"a{len(leading)}", data=values.reshape(*leading, 3, 4, 5))
        assert np.array_equal(open_volume(tmp_path / f"a{len(leading)}", voxel_um=(1, 1, 1)).read(slice(None)), values)
    zarr.create_array(tmp_path / "a3", data=values.reshape(1, 1, 1, 3, 4, 5))
    with pytest.raises(InputError, match=r"has shape \(1, 1, 1, 3, 4, 5\); expected a volume"):
        open_volume(tmp_path / "a3", voxel_um=(1, 1, 1))
