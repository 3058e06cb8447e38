"""Compressed voxels are read to the end of their checksums; Python's gzip module and SimpleITK are the reference."""

import gzip
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from n4flow.errors import InputError
from n4flow.io.inflate import inflated, inflated_part
from n4flow.io.open import open_volume

DATA = np.random.default_rng(3).integers(0, 40, 90_000).astype("uint8").tobytes()


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(DATA), gzip.compress(DATA[:70_000]) + gzip.compress(DATA[70_000:]), gzip.compress(DATA) + bytes(99)],
    ids=["one member", "two members", "padded"],
)
def test_gzip_as_the_gzip_module_reads_it(tmp_path, monkeypatch, packed):
    monkeypatch.setattr("n4flow.io.inflate.PIECE", 1000)  # many pieces, and members that end within one
    (tmp_path / "a").write_bytes(packed)
    assert b"".join(inflated(tmp_path / "a", len(DATA))) == gzip.decompress(packed) == DATA
    assert inflated_part(tmp_path / "a", 352, 4000).tobytes() == DATA[352:4352]


def test_zlib_behind_a_header(tmp_path):
    (tmp_path / "a").write_bytes(b"header" + zlib.compress(DATA) + b"more")
    assert b"".join(inflated(tmp_path / "a", len(DATA), 6)) == DATA


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_every_flipped_byte_of_compressed_voxels_is_noticed(tmp_path, name):
    voxels = np.random.default_rng(5).integers(0, 9, (3, 4, 5)).astype("uint16")
    path = tmp_path / name
    if name == "a.nii.gz":
        nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), path)
        start = 10
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)
        start = path.read_bytes().index(b"LOCAL\n" if name == "a.mha" else b"\n\n") + (6 if name == "a.mha" else 12)
    whole = path.read_bytes()
    for place in range(start, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read = open_volume(path, voxel_um=(1, 1, 1)).read(slice(None))
        except InputError:
            continue
        # Bits of deflate's last byte that mean nothing may change; voxels may not.
        np.testing.assert_array_equal(read, voxels)
    for length in (start + 5, len(whole) - 9, len(whole) - 5, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut short|damaged|not readable|not a readable"):
            open_volume(path, voxel_um=(1, 1, 1)).read(slice(None))


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("true", [None, b"True", b"1"])
def test_compressed_metaimage_is_read_whatever_size_its_header_states(tmp_path, name, components, true):
    """ITK returns memory that it did not write to where the size is too small; the true size is its own."""
    shape = (3, 4, 5, components)[: 3 + (components > 1)]
    voxels = np.random.default_rng(5).integers(0, 900, shape).astype("uint16")
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=components > 1), str(tmp_path / name), useCompression=True)
    header = (tmp_path / name).read_bytes()
    if true:  # big endian
        header = header.replace(b"CompressedData = True", b"CompressedData = " + true)
        header = header.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = " + true)
        (tmp_path / name).write_bytes(header)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
    assert np.array_equal(expected, voxels) is not bool(true)
    field = next(line for line in header.splitlines() if line.startswith(b"CompressedDataSize")) + b"\n"
    for stated in (field, b"", b"CompressedDataSize = 3\n", b"CompressedDataSize = 3\x009\n"):
        (tmp_path / name).write_bytes(header.replace(field, stated))
        volume = open_volume(tmp_path / name, channel=0, voxel_um=(1, 1, 1))
        np.testing.assert_array_equal(volume.read(slice(None)), expected[..., 0] if components > 1 else expected)


def test_compressed_metaimage_in_several_files_is_refused(tmp_path):
    voxels = np.zeros((2, 4, 5), "uint8")
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mhd"), useCompression=True)
    header = (tmp_path / "a.mhd").read_text().replace("= a.zraw", "= LIST\na.zraw\na.zraw")
    (tmp_path / "a.mhd").write_text(header)
    with pytest.raises(InputError, match="has compressed voxels in 2 files, expected one; write it again"):
        open_volume(tmp_path / "a.mhd")


def test_a_header_that_asks_for_more_than_there_is(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype("float32")
    header.set_data_shape((16384, 16384, 8))
    header["magic"], header["vox_offset"] = b"n+1\0", 352
    packed = gzip.compress(header.binaryblock + bytes(4))
    asked = 352 + 4 * 16384 * 16384 * 8
    (tmp_path / "a.nii.gz").write_bytes(packed[:-4] + struct.pack("<I", asked % 2**32))  # as if it were all there
    with pytest.raises(InputError, match=r"asks for 8589934944 bytes, which \d+ bytes of deflate cannot hold"):
        open_volume(tmp_path / "a.nii.gz", voxel_um=(1, 1, 1))


def test_content_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr("n4flow.io.inflate.BEHIND", 10**5)
    (tmp_path / "a").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(InputError, match="goes on for more than"):
        list(inflated(tmp_path / "a", 1000))
