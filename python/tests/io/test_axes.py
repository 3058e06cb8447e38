"""Axes that a user names, and OME-TIFF of several files: against the arrays that tifffile, zarr and NumPy wrote."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from n4flow.errors import InputError
from n4flow.io.open import files_read, open_volume

UM = (10, 5, 5)
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 2**16, (12, 21, 17)).astype(np.uint16)


@pytest.mark.parametrize(
    ("stored", "options", "answer", "axes"),
    [
        ("CYX", {"ome": True}, "has 12 channels .*; choose one with channel, 0 to 11; or give axes zyx", "zyx"),
        ("TYX", {"ome": True}, "has 12 time points; .* or give axes zyx if they are planes", "zyx"),
        ("TYX", {"imagej": True}, "has 12 time points; .* or give axes zyx if they are planes", "zyx"),
        ("YXS", {"planarconfig": "contig"}, "has 12 channels; choose one .*; or give axes yxz", "yxz"),
        ("SYX", {"planarconfig": "separate"}, "has 12 channels; choose one .*; or give axes zyx", "zyx"),
    ],
)
def test_tiff_whose_planes_are_channels_times_or_samples(tmp_path, voxels, stored, options, answer, axes):
    array = np.moveaxis(voxels, 0, 2) if stored == "YXS" else voxels
    metadata = {"axes": stored} if "planarconfig" not in options else None
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata=metadata, **options)
    with pytest.raises(InputError, match=answer):
        open_volume(tmp_path / "a.tif", voxel_um=UM)
    volume = open_volume(tmp_path / "a.tif", axes=axes, voxel_um=UM)
    assert np.array_equal(volume.read(slice(None)), voxels)
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(slice(3, 5), slice(2, 9)), voxels[3:5, 2:9])
    with pytest.raises(InputError, match=r"axes zy do not fit .* shape \(.*\); give one letter"):
        open_volume(tmp_path / "a.tif", axes="zy", voxel_um=UM)


def test_axes_of_arrays_without_right_names(tmp_path, voxels):
    two = np.stack([voxels, voxels[::-1]], axis=1)[None]  # z, c, y, x after an axis of length 1
    np.save(tmp_path / "a.npy", two)
    zarr.create_array(tmp_path / "a.zarr", data=two, chunks=(1, 3, 1, 21, 17))
    for path in (tmp_path / "a.npy", tmp_path / "a.zarr"):
        for axes in ("zcyx", "tzcyx"):
            volume = open_volume(path, axes=axes, channel=1, voxel_um=UM)
            assert np.array_equal(volume.read(slice(None)), voxels[::-1])
            assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(slice(2, 3)), voxels[::-1][2:3])
            assert volume.reader.channels == 2
        with pytest.raises(InputError, match="has 2 channels; choose one with channel, 0 to 1$"):
            open_volume(path, axes="zcyx", voxel_um=UM)
    np.save(tmp_path / "b.npy", voxels.transpose(2, 1, 0))
    assert np.array_equal(open_volume(tmp_path / "b.npy", axes="xyz", voxel_um=UM).read(slice(None)), voxels)


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_of_axes_x_y_z_is_read_right_and_renamed_with_its_sizes(tmp_path, voxels, version):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    group.create_array("0", data=voxels.T, chunks=(5, 5, 5))
    scale = [{"type": "scale", "scale": [1.0, 2.0, 3.0]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "xyz"]
    ome = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}
    group.attrs.update({"ome": {"version": "0.5", **ome}} if version == 3 else ome)
    for given in (None, (3, 2, 1)):
        volume = open_volume(tmp_path / "a.zarr", voxel_um=given)
        assert np.array_equal(volume.read(slice(None)), voxels)
        assert volume.voxel_um == {"z": 3.0, "y": 2.0, "x": 1.0}
    renamed = open_volume(tmp_path / "a.zarr", axes="zyx")
    assert np.array_equal(renamed.read(slice(None)), voxels.T)
    assert renamed.voxel_um == {"z": 1.0, "y": 2.0, "x": 3.0}


def test_axes_are_for_formats_of_bare_arrays(tmp_path, voxels):
    from n4flow.io.writers import write_volume

    write_volume(tmp_path / "a.nii", voxels, voxel_um=UM)
    with pytest.raises(InputError, match="which is NIfTI; they can to OME-Zarr, TIFF, NumPy, so leave axes out"):
        open_volume(tmp_path / "a.nii", axes="zyx")


def ome_xml(names: list[str], shape: tuple[int, ...], root: str = "") -> str:
    """Return OME-XML of a stack with one plane in each file."""
    data = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    size = f'SizeX="{shape[2]}" SizeY="{shape[1]}" SizeZ="{shape[0]}" SizeC="1" SizeT="1"'
    lengths = 'PhysicalSizeX="5" PhysicalSizeY="5" PhysicalSizeZ="10"'
    return (
        f'<OME xmlns="{OME}" {root}><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'{size} {lengths}><Channel ID="Channel:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
    )


def binary_only(name: str, number: int) -> str:
    where = f'MetadataFile="{name}" UUID="urn:uuid:all"'
    return f'<OME xmlns="{OME}" UUID="urn:uuid:{number}"><BinaryOnly {where}/></OME>'


@pytest.fixture(params=["companion", "first", "all"])
def members(request, tmp_path, voxels) -> list[Path]:
    """OME-TIFF of several files: with a companion file, with the metadata in the first file, or in each of them."""
    names, folder = [f"b_{z}.ome.tif" for z in range(len(voxels))], tmp_path / "set"
    folder.mkdir()
    if request.param == "companion":
        (folder / "b.companion.ome").write_text(ome_xml(names, voxels.shape, 'UUID="urn:uuid:all"'))
        texts = [binary_only("b.companion.ome", z) for z in range(len(names))]
    elif request.param == "first":
        texts = [ome_xml(names, voxels.shape, 'UUID="urn:uuid:0"')]
        texts += [binary_only(names[0], z) for z in range(1, len(names))]
    else:
        texts = [ome_xml(names, voxels.shape, f'UUID="urn:uuid:{z}"') for z in range(len(names))]
    for name, text, plane in zip(names, texts, voxels, strict=True):
        tifffile.imwrite(folder / name, plane, description=text, metadata=None)
    return sorted(folder.iterdir())


def test_ome_tiff_of_several_files_is_opened_by_any_of_them_and_by_their_folder(tmp_path, members, voxels):
    folder = members[0].parent
    (tmp_path / "link.ome.tif").symlink_to(members[3])
    for path in (*members, folder, tmp_path / "link.ome.tif"):
        volume = open_volume(path)
        assert np.array_equal(volume.read(slice(None)), voxels), path
        assert volume.voxel_um == {"z": 10.0, "y": 5.0, "x": 5.0}
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(slice(4, 6)), voxels[4:6])
    for path in (members[0], members[5]):
        assert set(files_read(path)) == set(members)
    members[7].rename(tmp_path / "lost")
    for path in (members[0], members[3], folder):
        with pytest.raises(InputError, match=f"is one of several files, of which {members[7]} is missing; put it"):
            open_volume(path)


def test_a_member_whose_companion_file_is_missing_is_refused(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "b.ome.tif", voxels[0], description=binary_only("b.companion.ome", 0), metadata=None)
    with pytest.raises(InputError, match=r"b.ome.tif is one of several files, of which \S*b.companion.ome is missing"):
        open_volume(tmp_path / "b.ome.tif", voxel_um=UM)


def test_one_file_that_was_renamed_is_no_set(tmp_path, voxels):
    tifffile.imwrite(
        tmp_path / "new.ome.tif",
        voxels[:1],
        description=ome_xml(["old.ome.tif"], (1, 21, 17), 'UUID="urn:uuid:0"'),
        metadata=None,
    )
    volume = open_volume(tmp_path / "new.ome.tif")
    assert np.array_equal(volume.read(slice(None)), voxels[:1])
    assert files_read(tmp_path / "new.ome.tif") == [tmp_path / "new.ome.tif"]
