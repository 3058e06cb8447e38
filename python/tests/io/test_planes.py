"""A folder of planes: against the arrays that tifffile, Pillow and SimpleITK wrote."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from n4flow.errors import InputError, N4flowWarning
from n4flow.io import plane_names
from n4flow.io.open import files_read, open_volume
from n4flow.io.planes import PlanesReader

SHAPE = (12, 21, 17)
UM = (10, 5, 5)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2**16, SHAPE).astype(np.uint16)


def by_tifffile(path: Path, plane: np.ndarray) -> None:
    tifffile.imwrite(path, plane, metadata=None)


def deflated(path: Path, plane: np.ndarray) -> None:
    tifffile.imwrite(path, plane, compression="zlib", predictor=True, metadata=None)


def big_endian(path: Path, plane: np.ndarray) -> None:
    tifffile.imwrite(path, plane, byteorder=">", metadata=None)


def lzw(path: Path, plane: np.ndarray) -> None:
    Image.fromarray(plane).save(path, compression="tiff_lzw")


def by_pillow(path: Path, plane: np.ndarray) -> None:
    Image.fromarray(plane).save(path, **({"irreversible": False} if path.suffix == ".jp2" else {}))


def written(folder: Path, planes, name="img_{}.tif", write=by_tifffile, first=1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(planes, start=first):
        write(folder / name.format(number), plane)
    return folder


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("img_{}.tif", by_tifffile),
        ("img_{}.tiff", big_endian),
        ("img_{}.TIF", deflated),
        ("img_{}.tif", lzw),
        ("img_{}.png", by_pillow),
        ("img_{}.jp2", by_pillow),
    ],
)
def test_planes_are_read_in_the_order_of_their_numbers(tmp_path, voxels, name, write):
    """Names without leading zeros: img_10 comes after img_9."""
    folder = written(tmp_path / "brain", voxels, name, write)
    (folder / "notes.txt").write_text("other files are no planes")
    (folder / ".hidden.tif").write_text("")
    volume = open_volume(folder, voxel_um=UM)
    assert (volume.shape, volume.dtype) == (SHAPE, np.uint16)
    assert np.array_equal(volume.read(slice(None)), voxels)
    assert np.array_equal(volume.read(slice(3, 11), slice(2, 20), slice(5, 6)), voxels[3:11, 2:20, 5:6])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(slice(4, 5)), voxels[4:5])
    assert np.array_equal(open_volume(folder / f"*{Path(name).suffix}", voxel_um=UM).read(slice(None)), voxels)
    some = open_volume(folder, voxel_um=UM, planes=(2, 5))
    assert np.array_equal(some.read(slice(2, 5)), voxels[2:5])
    with pytest.raises(InputError, match="opened for 2 to 5"):
        some.read(slice(5, 6))


def test_channels_are_samples_or_named(tmp_path, voxels):
    other = voxels[::-1]
    rgb = np.stack([voxels, other, voxels // 2], axis=-1)
    written(tmp_path / "rgb", rgb, write=lambda path, plane: tifffile.imwrite(path, plane, photometric="rgb"))
    as_png = written(
        tmp_path / "png", rgb, "a{}.png", lambda path, p: sitk.WriteImage(sitk.GetImageFromArray(p, True), str(path))
    )
    for folder in (tmp_path / "rgb", as_png):
        with pytest.raises(InputError, match="has 3 channels; choose one with channel, 0 to 2"):
            open_volume(folder, voxel_um=UM)
        assert np.array_equal(open_volume(folder, channel=1, voxel_um=UM).read(slice(None)), other)
    written(tmp_path / "named", voxels, "s{}_C00.tif")
    written(tmp_path / "named", other, "s{}_C01.tif")
    with pytest.raises(InputError, match=r"has 2 channels \(C00, C01\); choose one"):
        open_volume(tmp_path / "named", voxel_um=UM)
    for channel in (1, "C01"):
        volume = open_volume(tmp_path / "named", channel=channel, voxel_um=UM)
        assert np.array_equal(volume.read(slice(None)), other)
        assert volume.reader.channels == 2
    assert np.array_equal(open_volume(tmp_path / "named" / "*_C00.tif", voxel_um=UM).read(slice(None)), voxels)


def test_the_files_state_the_size_in_plane(tmp_path, voxels):
    def write(path, plane):
        tifffile.imwrite(path, plane, imagej=True, resolution=(2, 4), metadata={"unit": "um"})

    folder = written(tmp_path / "a", voxels, write=write)
    with pytest.raises(InputError, match="has no voxel size along z; give it"):
        open_volume(folder)
    assert open_volume(folder, voxel_um={"z": 30}).voxel_um == {"z": 30.0, "y": 0.25, "x": 0.5}


def test_a_gap_in_the_numbering_is_listed_or_allowed(tmp_path, voxels):
    folder = written(tmp_path / "a", voxels, "img_{:04d}.tif")
    for number in (4, 5, 9):
        (folder / f"img_{number:04d}.tif").unlink()
    (folder / "img_0011.tif").write_bytes((folder / "img_0011.tif").read_bytes()[:200])
    with pytest.raises(InputError, match=r"lacks 4 of 12 planes: img_0004.tif, .*img_0009.tif, img_0011.tif \(cut sho"):
        open_volume(folder, voxel_um=UM)
    volume = open_volume(folder, voxel_um=UM, allow_missing_planes=True)
    expected = voxels.copy()
    expected[[3, 4, 8, 10]] = 0
    assert np.array_equal(volume.read(slice(None)), expected)
    assert volume.metadata["missing_planes"] == [[3, 4], [4, 5], [8, 9], [10, 11]]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["z0000.tif", "z0050.tif", "z0150.tif", "z0200.tif"], ["z0100.tif"]),
        (["s1_p1.tif", "s1_p2.tif", "s2_p1.tif", "s2_p3.tif"], ["s2_p2.tif"]),
        (["a_1_t55.tif", "a_2_t71.tif", "a_4_t93.tif"], ["a_3_t71.tif"]),
        (["s1_001.tif", "s1_002.tif", "s2_003.tif", "s2_005.tif"], ["s2_004.tif"]),
    ],
)
def test_numberings(tmp_path, names, missing):
    for name in names:
        by_tifffile(tmp_path / name, np.ones((4, 5), np.uint8))
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path, voxel_um=UM)
    assert f"planes: {', '.join(missing)}; put them there" in str(caught.value)


def test_names_that_do_not_count_are_said(tmp_path):
    for name in ("t1234.tif", "t1271.tif", "t99000.tif"):
        by_tifffile(tmp_path / name, np.ones((4, 5), np.uint8))
    with pytest.warns(N4flowWarning, match="do not count its planes"):
        assert open_volume(tmp_path, voxel_um=UM).shape == (3, 4, 5)


def test_planes_that_differ_are_refused(tmp_path, voxels):
    folder = written(tmp_path / "a", voxels)
    by_tifffile(folder / "img_7.tif", voxels[6, :20])
    with pytest.raises(InputError, match=r"11 are like img_1.tif \(21, 17\) uint16, and others img_7.tif \(20, 17\)"):
        open_volume(folder, voxel_um=UM)
    by_tifffile(folder / "img_7.tif", voxels[6].astype(np.uint8))
    with pytest.raises(InputError, match=r"others img_7.tif \(21, 17\) uint8"):
        open_volume(folder, voxel_um=UM)
    tifffile.imwrite(folder / "img_7.tif", voxels[:3], photometric="minisblack")
    with pytest.raises(InputError, match=r"img_7.tif holds 3 images"):
        open_volume(folder, voxel_um=UM)
    by_tifffile(folder / "img_7.tif", voxels[6])
    by_pillow(folder / "img_8.png", voxels[6])
    with pytest.raises(InputError, match=r"several kinds: .png, TIFF; choose one with a pattern"):
        open_volume(folder, voxel_um=UM)
    assert open_volume(folder / "*.tif", voxel_um=UM).shape == SHAPE


def test_folders_are_sections(tmp_path, voxels):
    for number, cut in enumerate((slice(0, 3), slice(3, 8), slice(8, 10), slice(10, 12)), start=9):
        written(tmp_path / "brain" / f"section_{number}", voxels[cut])
    volume = open_volume(tmp_path / "brain", voxel_um=UM)
    assert np.array_equal(volume.read(slice(None)), voxels)
    assert volume.metadata["sections"] == [
        ("section_9", 0, 3),
        ("section_10", 3, 8),
        ("section_11", 8, 10),
        ("section_12", 10, 12),
    ]
    assert open_volume(tmp_path / "brain" / "section_1?", voxel_um=UM).shape == (9, *SHAPE[1:])
    assert open_volume(tmp_path / "brain" / "*" / "*_2.tif", voxel_um=UM).shape == (4, *SHAPE[1:])
    os.rename(tmp_path / "brain" / "section_10", tmp_path / "lost")
    with pytest.raises(InputError, match="lacks the folder section_10, and others have 2 to 3 planes"):
        open_volume(tmp_path / "brain", voxel_um=UM, allow_missing_planes=True)
    (tmp_path / "brain" / "section_10").mkdir()
    with pytest.raises(InputError, match="section_10 holds no planes"):
        open_volume(tmp_path / "brain", voxel_um=UM)


def test_a_section_that_is_missing_has_as_many_planes_as_the_others(tmp_path, voxels):
    for number in (1, 2, 4):
        written(tmp_path / f"s{number}", voxels[3 * number - 3 : 3 * number])
    with pytest.raises(InputError, match="lacks 3 of 12 planes: s3/1, s3/2, s3/3; put them"):
        open_volume(tmp_path, voxel_um=UM)
    volume = open_volume(tmp_path, voxel_um=UM, allow_missing_planes=True)
    expected = voxels.copy()
    expected[6:9] = 0
    assert np.array_equal(volume.read(slice(None)), expected)
    assert volume.metadata["sections"][2] == ("s3", 6, 9)


def test_one_plane_of_several_is_said(tmp_path, voxels):
    folder = written(tmp_path / "a", voxels, "img_{:04d}.tif")
    with pytest.warns(N4flowWarning, match=rf"11 files beside it .* as img_0002.tif; give the folder, {folder}"):
        assert open_volume(folder / "img_0001.tif", voxel_um=UM).shape == (1, *SHAPE[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3, 13):
            (folder / f"img_{number:04d}.tif").unlink()
        assert open_volume(folder / "img_0001.tif", voxel_um=UM).shape == (1, *SHAPE[1:])


def test_what_is_read_of_a_path(tmp_path, voxels):
    folder = written(tmp_path / "a", voxels[:2])
    assert files_read(folder) == [folder]
    assert files_read(folder / "*.tif") == PlanesReader.data_files(folder) == [folder / f"img_{n}.tif" for n in (1, 2)]
    with pytest.raises(InputError, match="holds no planes"):
        open_volume(folder / "b*.tif")
    assert open_volume(folder / "img_1.tif", voxel_um=UM).shape[0] == 1


def test_a_task_lists_the_planes_once(tmp_path, monkeypatch):
    """Hundreds of tasks each open the folder for their slab."""
    for number in range(4):
        tifffile.imwrite(tmp_path / f"p{number}.tif", np.zeros((5, 6), np.uint8), metadata=None)
    listed, find = [], plane_names.find_planes
    monkeypatch.setattr("n4flow.io.planes.find_planes", lambda path: listed.append(path) or find(path))
    open_volume(tmp_path, voxel_um=(1, 1, 1), planes=(1, 2))
    assert listed == [tmp_path]


def test_a_png_that_states_more_than_it_holds_is_refused_before_its_voxels_are_made(tmp_path):
    plane = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for z in range(2):
        by_pillow(tmp_path / f"p_{z}.png", plane)
    for file in tmp_path.iterdir():
        raw = bytearray(file.read_bytes())
        raw[16:24] = struct.pack(">2I", 100_000, 100_000)  # width and height of the header, before its checksum
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
        file.write_bytes(raw)
    with pytest.raises(InputError, match=r"p_\d\.png is cut short: its header asks for 1250000000 bytes"):
        open_volume(tmp_path)


def test_a_folder_that_is_called_as_a_plane_is_no_plane(tmp_path, voxels):
    folder = written(tmp_path / "planes", voxels)
    (folder / "img_13.tif").mkdir()
    with pytest.raises(InputError, match=r"img_13\.tif"):
        open_volume(folder)
