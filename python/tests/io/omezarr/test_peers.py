"""Our stores opened by the OME-Zarr libraries of others, where those are installed."""

import numpy as np
import pytest
import zarr

from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume

SHAPE = (19, 301, 267)


@pytest.fixture(params=["0.4", "0.5"])
def store(request, tmp_path):
    array = np.random.default_rng(9).normal(1000, 100, SHAPE).astype("float32")
    write_volume(tmp_path / "s.ome.zarr", array, voxel_um=(25, 10, 10), ome_zarr_version=request.param)
    return tmp_path / "s.ome.zarr", array, request.param


def test_ngff_zarr(store):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    pytest.importorskip("jsonschema")
    path, array, version = store
    image = ngff_zarr.from_ngff_zarr(path, validate=True, version=version)  # against the JSON schema of the version
    assert np.array_equal(image.images[0].data.compute(), array)
    half = image.images[1]
    assert half.scale == {"z": 25.0, "y": 20.0, "x": 20.0}
    assert half.translation == {"z": 0.0, "y": 5.0, "x": 5.0}
    assert set(half.axes_units.values()) == {"micrometer"}


def test_ome_zarr_py(store):
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url

    path, array, _version = store
    node = next(iter(reader.Reader(parse_url(path))()))
    assert [level.shape for level in node.data] == [SHAPE, (19, 151, 134)]
    assert np.array_equal(node.data[0].compute(), array)
    assert node.metadata["contrast_limits"][0] == pytest.approx(np.percentile(array, (0.1, 99.9)).tolist(), rel=1e-3)


def test_channels_in_ome_zarr_py(tmp_path):
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url

    array = np.random.default_rng(9).normal(1000, 100, (3, 5, 40, 50)).astype("float32")
    write_volume(tmp_path / "s.ome.zarr", array, voxel_um=(25, 10, 10))
    node = next(iter(reader.Reader(parse_url(tmp_path / "s.ome.zarr"))()))
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "z", "y", "x"]
    assert node.metadata["channel_names"] == ["0", "1", "2"]
    assert len(node.metadata["contrast_limits"]) == 3
    assert np.array_equal(node.data[0].compute(), array)


@pytest.mark.parametrize("version", ["04", "05"])  # It writes older ones no longer.
def test_what_ome_zarr_py_writes(tmp_path, version):
    writer = pytest.importorskip("ome_zarr.writer")
    from ome_zarr import format as formats

    version = getattr(formats, f"FormatV{version}")()
    array = np.random.default_rng(9).integers(0, 4000, (1, 2, 5, 40, 50)).astype("uint16")
    writer.write_image(array, str(tmp_path / "s.zarr"), axes="tczyx", fmt=version, scale_factors=[2])
    arrays = dict(zarr.open_group(tmp_path / "s.zarr", mode="r").arrays())
    assert len(arrays) == 2
    for level, name in enumerate(sorted(arrays)):
        volume = open_volume(tmp_path / "s.zarr", channel=1, level=level, voxel_um=(25, 10, 10))
        assert np.array_equal(volume.read(slice(None)), arrays[name][0, 1])
    assert volume.metadata["ome_zarr_version"] == version.version
