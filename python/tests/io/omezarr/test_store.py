"""The OME-Zarr writer: layout, voxels of every level, files, validation. Read back by other libraries."""

import errno
import hashlib
import json
import math
import struct
import time
import tracemalloc

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr

from n4flow.errors import DiskFullError, InputError, N4flowError
from n4flow.io.omezarr import planning, shards
from n4flow.io.omezarr.layout import expected_shards
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.omezarr.shards import Encoder
from n4flow.io.omezarr.slab_writer import SlabWriter
from n4flow.io.omezarr.store import Shown, create_store, validate_store, write_omero
from n4flow.io.writers import write_volume

SHAPE = (38, 301, 267)  # three different sizes that no chunk divides
VOXEL = {"z": 25.0, "y": 10.0, "x": 10.0}


def smooth_noise(shape=SHAPE, dtype="float32"):
    rng = np.random.default_rng(7)
    return (1000 + 300 * rng.standard_normal(shape)).astype(dtype)


def write_store(path, array, *, threads=2, planes=None, kind="image", dtype=None, **options):
    layout = plan_layout(array.shape, dtype or array.dtype, options.pop("voxel_um", VOXEL), kind=kind, **options)
    create_store(path, layout)
    for start in range(0, len(array), layout.slab_planes):
        stop = min(start + layout.slab_planes, len(array))
        with SlabWriter(path, layout, start, stop, threads=threads) as writer:
            for z in range(start, stop, planes or stop - start):
                writer.write(array[z : min(z + (planes or stop), stop)], z)
    return layout


def tensorstore_read(path, version):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3" if version == "0.5" else "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec).result().read().result()


def block_mean(array, factors):
    """Mean over blocks as NumPy has it: pad with NaN, then the mean of what is a number."""
    pads = [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)]
    padded = np.pad(np.where(np.isfinite(array), array, np.nan).astype(float), pads, constant_values=np.nan)
    split = [m for n, f in zip(padded.shape, factors, strict=True) for m in (n // f, f)]
    return np.nanmean(padded.reshape(split), axis=(1, 3, 5))


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
def test_levels_are_block_means_and_other_libraries_agree(tmp_path, version, dtype):
    array = np.clip(smooth_noise(), 0, 1e4).astype(dtype)
    layout = write_store(tmp_path / "s.zarr", array, version=version, planes=5, slab_planes=8)
    assert len(layout.levels) == 2
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert np.array_equal(group["0"][:], array)
    for level in layout.levels:
        stored = tensorstore_read(tmp_path / "s.zarr" / level.path, version)
        assert stored.dtype == dtype
        assert stored.shape == level.shape
        assert np.array_equal(stored, group[level.path][:])
        expected = block_mean(array, level.factors)
        # Half a unit of rounding for integers; one rounding to float32 otherwise.
        tolerance = {"float32": 1e-7 * 2000}.get(dtype, 0.5 + 1e-3)
        assert np.abs(stored - expected).max() <= tolerance
    validate_store(tmp_path / "s.zarr")


def test_deeper_integer_levels_are_rounded_once(tmp_path):
    # Rounding at every level would move the mean of these by up to a quarter at level 2 already.
    array = np.random.default_rng(1).integers(0, 2, (6, 1030, 513)).astype("uint8") * 3
    layout = write_store(tmp_path / "s.zarr", array)
    level = layout.levels[2]
    assert level.factors == (1, 4, 4)
    mean = block_mean(array, (1, 2, 2)).astype("float32")
    expected = np.rint(block_mean(mean, (1, 2, 2)).astype("float32"))
    assert np.array_equal(zarr.open_array(tmp_path / "s.zarr/2")[:], expected)


def test_files_depend_neither_on_threads_nor_on_blocks(tmp_path):
    array = smooth_noise()
    digests = set()
    for number, (threads, planes) in enumerate([(1, 1), (3, 7), (2, 38)]):
        path = tmp_path / f"{number}.zarr"
        layout = write_store(path, array, threads=threads, planes=planes, slab_planes=16)
        files = [path / key for key in expected_shards(layout, 0, SHAPE[0])]
        digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
        names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
        assert names - {f"{level.path}/zarr.json" for level in layout.levels} - {"zarr.json"} == set(
            expected_shards(layout, 0, SHAPE[0])
        )
    assert len(digests) == 1


def test_tiles_in_any_order_give_the_same_voxels(tmp_path):
    array = smooth_noise()
    layout = plan_layout(SHAPE, "float32", VOXEL)
    create_store(tmp_path / "s.zarr", layout)
    with SlabWriter(tmp_path / "s.zarr", layout, 0, SHAPE[0]) as writer:
        for y in (200, 0):
            for x in (0, 190):
                for z in (19, 0):
                    tile = array[z : z + 19, y : y + (200 if y == 0 else 101), x : x + (190 if x == 0 else 77)]
                    writer.write(tile, z, y, x)
    write_store(tmp_path / "t.zarr", array)
    for level in ("0", "1"):
        stored = zarr.open_array(tmp_path / "s.zarr" / level)[:]
        assert np.array_equal(stored, zarr.open_array(tmp_path / "t.zarr" / level)[:])


def test_slab_cut_changes_no_level(tmp_path):
    array = smooth_noise((70, 131, 277))
    stored = []
    for number, slab in enumerate([None, 2, 16]):
        layout = write_store(tmp_path / f"{number}.zarr", array, slab_planes=slab, voxel_um=(10, 10, 10))
        assert layout.levels[-1].factors == (2, 2, 2)
        stored.append([zarr.open_array(tmp_path / f"{number}.zarr" / level.path)[:] for level in layout.levels])
    for other in stored[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(stored[0], other, strict=True))


def test_means_leave_out_what_is_not_finite(tmp_path):
    array = smooth_noise((3, 258, 260))
    array[0, :2, :2] = np.nan
    array[1, 4, 4], array[1, 4, 5] = np.inf, -np.inf
    write_store(tmp_path / "s.zarr", array)
    stored = zarr.open_array(tmp_path / "s.zarr/1")[:]
    assert np.isnan(stored[0, 0, 0])
    assert stored[1, 2, 2] == np.float32(array[1, 5, 4:6].astype(float).mean())
    assert np.isnan(stored).sum() == 1
    assert np.array_equal(zarr.open_array(tmp_path / "s.zarr/0")[:], array, equal_nan=True)


def test_cast_rounds_half_to_even_saturates_and_counts(tmp_path):
    array = np.zeros((1, 3, 5), "float32")
    array[0, 0] = [0.5, 1.5, 2.5, -0.5, 254.5]
    array[0, 1] = [-1, 255.4, 255.6, 1e9, np.nan]
    array[0, 2] = [np.inf, -np.inf, 7, -0.49, 3.49]
    layout = plan_layout(array.shape, "uint8", VOXEL)
    create_store(tmp_path / "s.zarr", layout)
    with SlabWriter(tmp_path / "s.zarr", layout, 0, 1) as writer:
        writer.write(array, 0)
    expected = [[0, 2, 2, 0, 254], [0, 255, 255, 255, 0], [255, 0, 7, 0, 3]]
    assert zarr.open_array(tmp_path / "s.zarr/0")[0].tolist() == expected
    assert (writer.saturated, writer.undefined) == (5, 1)


@pytest.mark.parametrize("source", ["int32", ">u2", "float16", "float64", "bool"])
def test_cast_from_other_types(tmp_path, source):
    array = np.arange(3 * 5 * 7).reshape(3, 5, 7).astype(source)
    layout = plan_layout(array.shape, "uint8", VOXEL)
    create_store(tmp_path / "s.zarr", layout)
    with SlabWriter(tmp_path / "s.zarr", layout, 0, 3) as writer:
        writer.write(array, 0)
    assert np.array_equal(zarr.open_array(tmp_path / "s.zarr/0")[:], array.astype("uint8"))


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_labels_are_the_voxel_nearest_to_the_centre_at_every_level(tmp_path, version):
    array = np.random.default_rng(3).integers(0, 2, (66, 131, 1029)).astype("uint8")
    layout = write_store(
        tmp_path / "s.zarr", array, kind="labels", voxel_um=(10, 10, 10), slab_planes=4, planes=3, version=version
    )
    assert layout.levels[-1].factors == (2, 4, 8)
    for number, level in enumerate(layout.levels):
        picks = []
        for axis, (factor, size, samples) in enumerate(zip(level.factors, array.shape, level.shape, strict=True)):
            pick = np.minimum(factor * np.arange(samples) + factor // 2, size - 1)
            # The centre that the translation and scale state is at most half a voxel of level 0 away.
            centre = (layout.translation_um(number)[axis] + layout.scale_um(number)[axis] * np.arange(samples)) / 10
            assert np.abs(pick - centre)[:-1].max() <= 0.5
            picks.append(pick)
        assert np.array_equal(zarr.open_array(tmp_path / "s.zarr" / level.path)[:], array[np.ix_(*picks)])
    validate_store(tmp_path / "s.zarr")


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_point_source_and_extent_agree_across_levels(tmp_path, version):
    centre, voxel, origin = np.array([900.3, 1570.7, 6301.9]), (25.0, 10.0, 12.5), (-40.0, 7.5, 1000.0)
    shape = (67, 261, 1031)
    axes = [o + v * np.arange(n) for o, v, n in zip(origin, voxel, shape, strict=True)]
    widths = (80.0, 80.0, 120.0)  # several voxels at every level, so that sampling does not shift the centroid
    profiles = [np.exp(-0.5 * ((a - c) / w) ** 2) for a, c, w in zip(axes, centre, widths, strict=True)]
    array = np.einsum("i,j,k->ijk", *profiles).astype("float32")
    layout = plan_layout(shape, "float32", voxel, origin, version=version)
    create_store(tmp_path / "s.zarr", layout)
    with SlabWriter(tmp_path / "s.zarr", layout, 0, shape[0]) as writer:
        writer.write(array, 0)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    ome = group.attrs.get("ome", group.attrs)
    found = []
    for dataset in ome["multiscales"][0]["datasets"]:
        values = group[dataset["path"]][:].astype(float)
        scale, translation = (t[t["type"]] for t in dataset["coordinateTransformations"])
        grids = [t + s * np.arange(n) for t, s, n in zip(translation, scale, values.shape, strict=True)]
        sums = [values.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
        found.append([(g * s).sum() / s.sum() for g, s in zip(grids, sums, strict=True)])
        first = np.array(translation) - np.array(scale) / 2
        last = first + np.array(scale) * values.shape
        edge = np.array(origin) - np.array(voxel) / 2
        assert np.allclose(first, edge, atol=1e-9)
        # A level reaches over the far edge by less than one of its voxels, where the size is no multiple.
        over = last - (edge + np.array(voxel) * shape)
        assert np.all((over > -1e-9) & (over < scale))
    assert len(found) == 4
    assert np.abs((np.array(found) - centre) / voxel).max() < 0.05


def test_store_tells_how_it_was_made(tmp_path):
    write_store(tmp_path / "brain.ome.zarr", smooth_noise((5, 40, 33)))
    write_omero(tmp_path / "brain.ome.zarr", "brain", [Shown("corrected", (10, 900), (-3.5, 2500))])
    ome = json.loads((tmp_path / "brain.ome.zarr/zarr.json").read_text())["attributes"]["ome"]
    multiscale = ome["multiscales"][0]
    assert ome["version"] == "0.5"
    assert multiscale["name"] == "brain"
    assert [axis["unit"] for axis in multiscale["axes"]] == ["micrometer"] * 3
    assert multiscale["type"] == "mean"
    assert "finite" in multiscale["metadata"]["description"]
    assert multiscale["metadata"]["version"]
    channel = ome["omero"]["channels"][0]
    assert channel["window"] == {"min": -3.5, "max": 2500.0, "start": 10.0, "end": 900.0}
    assert channel["label"] == "corrected"
    assert channel["active"] is True
    assert ome["omero"]["rdefs"] == {"defaultT": 0, "defaultZ": 2, "model": "greyscale"}
    validate_store(tmp_path / "brain.ome.zarr")
    with pytest.raises(InputError, match="finite intensities"):
        write_omero(tmp_path / "brain.ome.zarr", "x", [Shown("x", (0, float("nan")), (0, 1))])


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_channels_are_stores_of_one_in_files_of_their_own(tmp_path, version):
    """Voxels as zarr-python reads them, and bytes as those of a store of the channel alone."""
    array = np.stack(
        [smooth_noise((9, 301, 267)), smooth_noise((9, 301, 267)) / 3, np.full((9, 301, 267), np.nan, "f4")]
    )
    path, alone = tmp_path / "c.ome.zarr", tmp_path / "one.ome.zarr"
    write_volume(path, array, voxel_um=VOXEL, ome_zarr_version=version)
    write_volume(alone, array[1], voxel_um=VOXEL, ome_zarr_version=version)
    group, one = (zarr.open_group(store, mode="r") for store in (path, alone))
    ome = dict(group.attrs).get("ome", dict(group.attrs))
    multiscale = ome["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    assert multiscale["axes"][0] == {"name": "c", "type": "channel"}
    assert [t["scale"] for t in (d["coordinateTransformations"][0] for d in multiscale["datasets"])] == [
        [1.0, 25.0, 10.0, 10.0],
        [1.0, 25.0, 20.0, 20.0],
    ]
    assert np.array_equal(group["0"][:], array, equal_nan=True)
    assert np.array_equal(group["1"][1], one["1"][:])
    assert group["0"].chunks == (1, *one["0"].chunks)
    for level in "01":
        folder = path / level / ("c/1" if version == "0.5" else "1")
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        own = alone / level / ("c" if version == "0.5" else "")
        assert files
        assert all((folder / name).read_bytes() == (own / name).read_bytes() for name in files)
    assert [channel["color"] for channel in ome["omero"]["channels"]] == ["FF0000", "00FF00", "0000FF"]
    validate_store(path)
    (next(p for p in (path / "1").rglob("*/0") if p.is_file() and "1" in p.relative_to(path / "1").parts)).unlink()
    validate_store(path, 0)
    with pytest.raises(N4flowError, match="1 faulty files"):
        validate_store(path, 1)


def test_anisotropic_axes_wait_for_each_other():
    layout = plan_layout((300, 4000, 5000), "float32", (25, 3, 3))
    assert [level.factors for level in layout.levels] == [
        (1, 1, 1),
        (1, 2, 2),
        (1, 4, 4),
        (1, 8, 8),
        (2, 16, 16),
        (4, 32, 32),
    ][: len(layout.levels)]
    assert max(layout.levels[-1].shape[1:]) <= 256
    # An axis with few samples is never halved; a coarse in-plane axis waits as Z does.
    few = plan_layout((40, 50, 3000), "uint8", (1, 1, 1))
    assert few.levels[-1].shape == (40, 50, 188)
    assert plan_layout((9, 256, 256), "uint8", (1, 1, 1)).levels[1:] == ()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("voxel", [(50, 3, 3), (2, 10, 10)])
@pytest.mark.parametrize("slab", [None, 1, 37])
@pytest.mark.parametrize("shape", [(7, 33, 45), (101, 333, 701), (530, 4001, 2003), (2000, 9973, 11003)])
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_every_slab_is_whole_files_at_every_level(version, shape, slab, voxel, dtype):
    layout = plan_layout(shape, dtype, voxel, slab_planes=slab, version=version)
    assert layout.slab_planes >= (slab or 1)
    for level in layout.levels:
        assert layout.slab_planes % level.factors[0] == 0
        assert layout.slab_planes // level.factors[0] % level.files[0] == 0 or layout.slab_planes >= shape[0]
        assert all(f % c == 0 for f, c in zip(level.files, level.chunks, strict=True))
    if shape[0] < 600:
        keys = expected_shards(layout, 0, shape[0])
        assert len(keys) == len(set(keys))
        parts = range(0, shape[0], layout.slab_planes)
        split = [key for z in parts for key in expected_shards(layout, z, min(shape[0], z + layout.slab_planes))]
        assert sorted(split) == sorted(keys)


@pytest.mark.parametrize(
    "shape",
    [
        (800, 2000, 2000),
        (4096, 2048, 2048),
        (2000, 9973, 11003),
        (12000, 6001, 6007),
        (510, 763, 19706),  # its slabs are deepened
    ],
)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_few_and_large_files(shape, dtype):
    layout = plan_layout(shape, dtype, (10, 10, 10))
    gigabytes = math.prod(shape) * np.dtype(dtype).itemsize / 1e9
    assert len(expected_shards(layout, 0, shape[0])) + len(layout.levels) + 1 <= 2 * gigabytes + 100
    shard = math.prod(layout.levels[0].shards) * np.dtype(dtype).itemsize
    assert 2**28 * 0.9 <= shard <= 2**30
    assert layout.levels[0].chunks[0] * math.prod(shape[1:]) * np.dtype(dtype).itemsize <= 2**32


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_large_volume_has_as_many_slabs_as_a_cluster_has_work_for(dtype):
    """32 where they are of 256 MiB to 8 GiB; a smaller volume has fewer, a larger one more."""
    slabs = [-(-n // plan_layout((n, 2048, 2048), dtype, (10, 10, 10)).slab_planes) for n in (512, 4096, 8192, 2**17)]
    assert slabs[0] < slabs[1] == slabs[2] == 32 < slabs[3]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["image", "labels"])
def test_any_shape_voxel_and_cut(tmp_path, monkeypatch, seed, kind):
    """Small limits make many levels, shards and slabs of small volumes; each voxel of each level is compared."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(planning, "SHARD_BYTES", 20000)
    monkeypatch.setattr(planning, "LAST_PLANE", 12)
    monkeypatch.setattr(planning, "LEAST_SAMPLES", 4)
    aim = tuple(int(2**n) for n in rng.integers(1, 5, 3))
    monkeypatch.setattr(planning, "_chunk_aim", lambda *_arguments: aim)
    shape, version = tuple(int(n) for n in rng.integers(1, 70, 3)), ["0.5", "0.4"][seed % 3 == 2]
    array = rng.integers(0, 200, shape).astype(["uint8", "float32"][seed % 2])
    voxel = tuple(np.exp(rng.uniform(0, 2, 3)))
    options = {
        "voxel_um": voxel,
        "version": version,
        "kind": kind,
        "slab_planes": [None, int(rng.integers(1, 40))][seed % 2],
    }
    layout = write_store(tmp_path / "s.zarr", array, planes=int(rng.integers(1, 9)), **options)
    validate_store(tmp_path / "s.zarr")
    mean, factors = array.astype(float), (1, 1, 1)
    for level in layout.levels:
        axes = zip(level.factors, level.shape, shape, strict=True)
        picks = [np.minimum(f * np.arange(m) + f // 2, n - 1) for f, m, n in axes]
        steps = [f // before for f, before in zip(level.factors, factors, strict=True)]
        mean, factors = block_mean(mean, steps).astype("float32").astype(float), level.factors
        means = np.rint(mean).astype(array.dtype) if array.dtype == np.uint8 else mean
        stored = zarr.open_array(tmp_path / "s.zarr" / level.path, mode="r")[:]
        assert np.array_equal(stored, means if kind == "image" else array[np.ix_(*picks)])


def test_own_chunks_and_shards_are_kept(tmp_path):
    array = smooth_noise((50, 270, 133))
    layout = write_store(tmp_path / "s.zarr", array, chunks=(5, 32, 20), shards=(10, 96, 40), slab_planes=11)
    assert layout.slab_planes == 20
    stored = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert stored["0"].chunks == (5, 32, 20)
    assert stored["0"].shards == (10, 96, 40)
    assert np.array_equal(tensorstore_read(tmp_path / "s.zarr/0", "0.5"), array)
    assert np.allclose(stored["1"][:], block_mean(array, (1, 2, 2)), rtol=1e-7)
    validate_store(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "0.3"}, "version must be one of 0.5, 0.4, got '0.3'"),
        ({"version": "0.4", "shards": (1, 2, 3)}, "0.4 has no shards"),
        ({"kind": "mesh"}, "kind must be image or labels"),
        ({"chunks": (8, 33, 32)}, "chunks along y must be even.*give 34"),
        ({"chunks": (8, 32, 32), "shards": (8, 33, 32)}, r"shards along y must be a multiple of the chunk \(32\)"),
        ({"chunks": (8, 0, 32)}, "chunks needs three whole numbers"),
        ({"slab_planes": 0}, "slab_planes must be at least 1"),
        ({"voxel_um": (1, 1)}, "voxel_um needs three numbers in micrometres"),
        ({"voxel_um": {"z": 1, "y": 1, "X": 1}}, "voxel_um needs three numbers"),
        ({"voxel_um": (0, 1, 1)}, "must be positive micrometres"),
        ({"dtype": "complex64"}, "cannot be written as complex64; choose one of uint8"),
        ({"shape": (300, 300)}, "three axes"),
    ],
)
def test_layouts_that_no_store_can_have(options, message):
    given = {"shape": (20, 300, 300), "dtype": "float32", "voxel_um": (1, 1, 1), **options}
    with pytest.raises(InputError, match=message):
        plan_layout(given.pop("shape"), given.pop("dtype"), given.pop("voxel_um"), **given)


def test_slab_errors_leave_no_unfinished_file(tmp_path):
    array = smooth_noise((40, 60, 70))
    layout = plan_layout(array.shape, "float32", VOXEL, slab_planes=16)
    path = tmp_path / "s.zarr"
    create_store(path, layout)
    with pytest.raises(InputError, match="exists already"):
        create_store(path, layout)
    with pytest.raises(InputError, match="planes 0 to 10 are not whole slabs of 16 planes of a volume of 40"):
        SlabWriter(path, layout, 0, 10)
    writer = SlabWriter(path, layout, 0, 16)
    writer.write(array[:9], 0)
    with pytest.raises(InputError, match=r"block of shape \(9, 60, 70\) at \(9, 0, 0\) reaches out of planes 0 to 16"):
        writer.write(array[9:18], 9)
    writer = SlabWriter(path, layout, 0, 16)
    writer.write(array[:9], 0)
    with pytest.raises(N4flowError, match="not every voxel of planes 0 to 16"):
        writer.close()
    writer = SlabWriter(path, layout, 0, 16)
    writer.write(array[:9], 0)
    with pytest.raises(N4flowError, match="written twice"):
        writer.write(array[5:14], 5)
    assert not list(path.rglob("*.partial"))
    with pytest.raises(N4flowError, match=r"has 3 faulty files: c/0/0/0 is missing, c/1/0/0 is missing"):
        validate_store(path)


def test_a_chunk_that_is_complete_is_written_once(tmp_path):
    array = smooth_noise((16, 60, 70))
    layout = plan_layout(array.shape, "float32", VOXEL, chunks=(8, 32, 70))
    create_store(tmp_path / "s.zarr", layout)
    with (
        pytest.raises(N4flowError, match=r"voxels of chunk \(0, 0, 0\) were written twice"),
        SlabWriter(tmp_path / "s.zarr", layout, 0, 16) as writer,
    ):
        writer.write(array[:, :32], 0)  # the file that these chunks go to is not complete
        writer.write(array[:, :32], 0)
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))


def test_full_disk_has_its_own_error(tmp_path, monkeypatch):
    array = smooth_noise((4, 60, 70))
    layout = plan_layout(array.shape, "float32", VOXEL)
    create_store(tmp_path / "s.zarr", layout)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "replace", full)
    with (
        pytest.raises(DiskFullError, match="no space or quota left while writing"),
        SlabWriter(tmp_path / "s.zarr", layout, 0, 4) as writer,
    ):
        writer.write(array, 0)
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))


def test_memory_does_not_grow_with_z(tmp_path):
    peaks = []
    block = np.random.default_rng(0).integers(0, 255, (32, 260, 270)).astype("uint8")
    for planes in (256, 1024):
        layout = plan_layout((planes, 260, 270), "uint8", (1, 1, 1))
        path = tmp_path / f"{planes}.zarr"
        create_store(path, layout)
        writer = SlabWriter(path, layout, 0, planes, threads=1)
        writer.write(block, 0)  # compiles
        tracemalloc.start()
        for z in range(32, planes, 32):
            writer.write(block, z)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        writer.close()
    # Of a plane only its checksums are kept; how many chunks wait at the peak is a matter of luck.
    chunks = 8 * 32 * 128 * 128
    assert peaks[1] - peaks[0] < chunks < (1024 - 256) * 260 * 270 / 10


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "index"])
def test_validation_finds_faulty_files(tmp_path, version, fault):
    path = tmp_path / "s.zarr"
    layout = write_store(path, smooth_noise((20, 40, 300)), version=version)
    validate_store(path)
    key = expected_shards(layout, 0, 20)[-1]
    data = (path / key).read_bytes()
    if fault == "missing":
        (path / key).unlink()
    elif fault == "empty":
        (path / key).write_bytes(b"")
    elif fault == "cut":
        (path / key).write_bytes(data[:-7])
    else:
        (path / key).write_bytes(data[:12] + struct.pack("<I", 5) + data[16:] if version == "0.4" else data[7:])
    with pytest.raises(N4flowError, match=key.removeprefix("1/")):
        validate_store(path)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ome: ome["multiscales"][0]["axes"].reverse(), "has axes x, y, z|not valid OME-Zarr"),
        (lambda ome: ome["multiscales"][0]["axes"][0].pop("name"), "not valid OME-Zarr"),
        (lambda ome: ome["multiscales"][0].pop("datasets"), "not valid OME-Zarr"),
        (
            lambda ome: ome["multiscales"][0]["datasets"][1]["coordinateTransformations"].pop(1),
            "translation .* shifts it against level 0",
        ),
        (
            lambda ome: ome["multiscales"][0]["datasets"][1]["coordinateTransformations"][0].update(scale=[25, 20, 30]),
            "do not fit level 0",
        ),
        (lambda ome: ome.update(omero={"channels": [{"label": "no window"}]}), "not valid OME-Zarr"),
        (
            lambda ome: ome["multiscales"][0]["datasets"][1].update(path="9"),
            "not valid OME-Zarr: it names 9, which is no array with axes z, y, x",
        ),
    ],
)
def test_validation_finds_wrong_metadata(tmp_path, version, change, message):
    path = tmp_path / "s.zarr"
    write_store(path, smooth_noise((4, 40, 300)), version=version)
    file = path / ("zarr.json" if version == "0.5" else ".zattrs")
    attributes = json.loads(file.read_text())
    change(attributes["attributes"]["ome"] if version == "0.5" else attributes)
    file.write_text(json.dumps(attributes))
    with pytest.raises(N4flowError, match=message):
        validate_store(path)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a Zarr group"):
        validate_store(tmp_path)
    zarr.create_group(tmp_path / "g.zarr")
    with pytest.raises(InputError, match="no OME-Zarr multiscales"):
        validate_store(tmp_path / "g.zarr")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_codec_writes_the_bytes_of_numcodecs(dtype):
    codec = Encoder()
    rng = np.random.default_rng(0)
    for shape in ((4, 16, 16), (2, 5, 7), (8, 64, 64), (1, 1, 1)):  # buffers are used again, also too small ones
        values = rng.normal(100, 20, shape).astype(dtype)
        payload = codec.encode(values)
        assert bytes(payload) == numcodecs.Blosc("lz4", 5, numcodecs.Blosc.BITSHUFFLE).encode(values)
        codec.release(payload)


def test_chunks_of_one_value_and_almost_one(tmp_path):
    values = np.zeros((4, 64, 96), np.float32)
    values[:, :32, 32:64] = 5
    values[:, :32, 64:] = np.nan
    values[0, 33, 0] = -0.0
    values[2, 50, 50] = 3
    layout = plan_layout(values.shape, "float32", (1, 1, 1), chunks=(4, 32, 32), slab_planes=4)
    create_store(tmp_path / "s.zarr", layout)
    with SlabWriter(tmp_path / "s.zarr", layout, 0, 4) as writer:
        writer.write(values, 0)
    stored = zarr.open_array(tmp_path / "s.zarr" / "0", mode="r")[:]
    assert np.array_equal(stored.view("u4"), values.view("u4"))  # also which zero it is
    for (z, y, x), checksum in ((map(int, key.split("/")), c) for key, c in writer.checksums["0"].items()):
        part = values[4 * z : 4 * z + 4, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32]
        assert checksum == google_crc32c.value(part.tobytes())


def test_blocks_that_end_within_chunks_need_not_be_waited_for(tmp_path):
    """The second block goes on with a chunk that a thread is still busy with."""
    array = smooth_noise((8, 64, 64), "uint16")
    layout = plan_layout(array.shape, array.dtype, VOXEL, chunks=(8, 64, 64))
    create_store(tmp_path / "a.zarr", layout)

    def slowly(part, at):
        if at[1] == 0:
            time.sleep(0.05)
        yield part

    with SlabWriter(tmp_path / "a.zarr", layout, 0, layout.slab_planes, threads=2) as writer:
        for y in (0, 32):
            writer.write(array[:, y : y + 32], 0, y, through=slowly, wait=False)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr")["0"][:], array)


def test_a_fault_that_shows_on_closing_leaves_nothing_behind(tmp_path):
    array = smooth_noise((8, 64, 64), "uint16")
    layout = plan_layout(array.shape, array.dtype, VOXEL, chunks=(8, 16, 16))
    create_store(tmp_path / "a.zarr", layout)

    def failing(part, at):
        if at[1:] == (48, 48):
            msg = "the last chunk"
            raise ValueError(msg)
        yield part

    writer = SlabWriter(tmp_path / "a.zarr", layout, 0, layout.slab_planes, threads=2)
    with pytest.raises(ValueError, match="the last chunk"), writer:
        writer.write(array, 0, through=failing, wait=False)
    assert list((tmp_path / "a.zarr").rglob("*.partial")) == []


def test_labels_whose_chunks_give_whole_planes_to_the_next_level(tmp_path):
    """Only Z is halved, and chunks are two planes deep: what is picked is one run of memory."""
    shape, chunks = (128, 300, 300), (2, 64, 64)
    array = np.random.default_rng(2).integers(0, 200, shape).astype("uint8")
    voxel = {"z": 5.0, "y": 10.0, "x": 10.0}
    layout = write_store(tmp_path / "a.zarr", array, kind="labels", voxel_um=voxel, chunks=chunks)
    assert layout.levels[1].factors == (2, 1, 1)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr")["1"][:], array[1::2])
