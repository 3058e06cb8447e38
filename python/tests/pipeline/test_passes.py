"""The passes over full resolution: the same bits however a volume is cut, and what they ask for beforehand."""

import json
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from n4flow import run
from n4flow.commands import main
from n4flow.compute.threads import _limit, limit_threads
from n4flow.corrections.background import SpatialMeanBackground
from n4flow.corrections.histogram_matching import estimate_lookup
from n4flow.corrections.plane_gain import estimate_plane_gain
from n4flow.corrections.plane_range import estimate_plane_range
from n4flow.corrections.proof import Evidence
from n4flow.corrections.recipe import Recipe
from n4flow.errors import DiskFullError, InputError, N4flowWarning
from n4flow.io import disk_space as space
from n4flow.io.disk_space import store_needs
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.omezarr.slab_writer import SlabWriter
from n4flow.io.omezarr.store import Shown, create_store, write_omero
from n4flow.io.open import open_volume
from n4flow.io.publishing import locked
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume
from n4flow.masks.tissue_source import TissueSource
from n4flow.pipeline import blocks as passes
from n4flow.pipeline import run as local
from n4flow.pipeline.estimate import Inputs, n4_sections
from n4flow.pipeline.executors import executor, run_here
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.passes import shrink_pass, statistics_pass
from n4flow.pipeline.plan import make_plan
from n4flow.pipeline.render import render, render_slab
from n4flow.pipeline.resources import COMPARED, shrunken_bytes, work_needs
from n4flow.sections import SectionTable
from n4flow.statistics.measure import plane_histograms, shrink_planes
from n4flow.statistics.shrunken import ShrunkenFiles, ShrunkenVolume

VOXEL = {"z": 20.0, "y": 5.0, "x": 5.0}
SHAPE = (12, 70, 90)
SHRINK = 4


def stack(seed=3):
    """Tissue in agarose in padding, with a shading and sections of other brightness."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    tissue = (y - 35) ** 2 + (x - 45) ** 2 < 24**2
    level = np.where(tissue, 9000, 1500) * (1 + 0.2 * np.sin(z // 4)) * np.exp(0.3 * (x - 45) / 90)
    values = (level * rng.gamma(30, 1 / 30, SHAPE)).astype(np.uint16)
    values[:, :3] = values[:, -2:] = values[..., :5] = 0
    return values, tissue


@pytest.fixture(scope="module")
def estimated():
    """Everything that a run estimates, and the volume."""
    values, tissue = stack()
    volume = Volume.from_array(values, VOXEL)
    table = SectionTable.equal(SHAPE[0], 3)
    background = Recipe([SpatialMeanBackground((40.0, 30.0))])
    shrunken = shrink_planes(values, SHRINK)
    source = TissueSource(tissue[:, 1::SHRINK, 1::SHRINK], ~tissue[0, 1::SHRINK, 1::SHRINK], SHRINK)
    settings = resolve({"input": "-", "outdir": "-", "iterations": "4,4", "backend": "cpu"})
    bias = n4_sections(Inputs(table, shrunken, source, voxel_um=VOXEL), settings)
    histograms = statistics_pass(volume, 0, SHAPE[0], recipe=Recipe([bias]), tissue=source)
    found = [estimate_plane_range(histograms, table, 99.5)]
    found.append(estimate_lookup(histograms, Recipe(found), table, 64))
    found.append(estimate_plane_gain(histograms, Recipe(found), table, 1.0))
    return SimpleNamespace(
        volume=volume,
        values=values,
        table=table,
        source=source,
        shrunken=shrunken,
        settings=settings,
        bias=bias,
        recipes={"whole": Recipe([bias, *found]), "background": Recipe([*background, bias])},
    )


@pytest.fixture
def cut(monkeypatch, request):
    """Read by the smallest blocks, with so many threads."""
    before = list(_limit)
    limit_threads(request.param)
    monkeypatch.setattr(passes, "BLOCK_BYTES", 1)
    yield
    _limit[:] = before


def tissue_of(estimated):
    return estimated.source.block(*(slice(0, n) for n in SHAPE))


def written(folder, estimated, recipe, volume, **options):
    """Render slab by slab as tasks do; return voxels and the shrunken copy."""
    layout = plan_layout(SHAPE, "float32", VOXEL, **options)
    create_store(folder, layout)
    slabs = [
        render_slab(
            volume,
            recipe,
            start,
            min(start + layout.slab_planes, SHAPE[0]),
            stores=[(folder, layout)],
            shrink=SHRINK,
            tissue=estimated.source,
        )
        for start in range(0, SHAPE[0], layout.slab_planes)
    ]
    write_omero(folder, "x", [Shown("x", (0, 1), (0, 1))])
    return open_volume(folder).read(slice(None)), ShrunkenVolume.concatenate([slab.after for slab in slabs])


@pytest.mark.parametrize("cut", [1, 3], indirect=True)
@pytest.mark.parametrize(
    ("chunks", "codec"),
    [((12, 70, 90), "auto"), ((1, 70, 90), "auto"), ((5, 16, 11), "auto"), ((2, 16, 32), zarr.codecs.BloscCodec())],
)
@pytest.mark.parametrize("kind", ["whole", "background"])
def test_every_cut_gives_the_bits_of_the_array_in_memory(tmp_path, estimated, cut, chunks, codec, kind):
    store = zarr.create_array(tmp_path / "in.zarr", shape=SHAPE, chunks=chunks, dtype="uint16", compressors=codec)
    store[:] = estimated.values
    volume = open_volume(tmp_path / "in.zarr", voxel_um=VOXEL)
    assert passes.in_parts(volume, 0, (2, 16, 32)) == (codec != "auto")  # each thread decodes its own
    recipe = estimated.recipes[kind]
    expected = recipe.apply(estimated.values, tissue=tissue_of(estimated))
    for number, options in enumerate([{}, {"chunks": (2, 16, 32), "slab_planes": 4}]):
        voxels, after = written(tmp_path / f"{number}.zarr", estimated, recipe, volume, **options)
        assert np.array_equal(voxels, expected)
        reference = shrink_planes(expected, SHRINK)
        # sums of float64 in another order, rounded to float32
        np.testing.assert_allclose(after.mean, reference.mean, rtol=1e-6)
        assert np.array_equal(after.valid, reference.valid)
        assert all(np.array_equal(after.planes[name], reference.planes[name]) for name in reference.planes)


@pytest.mark.parametrize("cut", [1, 3], indirect=True)
@pytest.mark.parametrize("chunks", [(1, 70, 90), (5, 16, 11)])
def test_statistics_of_every_cut_are_those_of_the_array(tmp_path, estimated, cut, chunks):
    store = zarr.create_array(tmp_path / "in.zarr", shape=SHAPE, chunks=chunks, dtype="uint16")
    store[:] = estimated.values
    volume = open_volume(tmp_path / "in.zarr", voxel_um=VOXEL)
    shrunken, _given = shrink_pass(volume, 2, 11, SHRINK, recipe=Recipe())
    whole = shrink_planes(estimated.values[2:11], SHRINK)
    assert np.array_equal(shrunken.mean, whole.mean)
    assert np.array_equal(shrunken.valid, whole.valid)
    assert all(np.array_equal(shrunken.planes[name], whole.planes[name]) for name in whole.planes)
    recipe = Recipe([estimated.bias])
    counted = statistics_pass(volume, 2, 11, recipe=recipe, tissue=estimated.source)
    even = recipe.apply(estimated.values)[2:11]
    agarose = expanded(estimated.source.agarose_small)
    expected = plane_histograms(even, tissue_of(estimated)[2:11], agarose, z_start=2)
    assert np.array_equal(counted.offsets, expected.offsets)
    assert all(map(np.array_equal, counted.values, expected.values))
    assert all(map(np.array_equal, counted.counts, expected.counts))


def expanded(small):
    return small.repeat(SHRINK, axis=0).repeat(SHRINK, axis=1)[: SHAPE[1], : SHAPE[2]]


def test_percentiles_lie_within_a_bin_of_the_full_data(estimated):
    even = Recipe([estimated.bias]).apply(estimated.values)
    counted = statistics_pass(estimated.volume, 0, SHAPE[0], recipe=Recipe([estimated.bias]), tissue=estimated.source)
    inside = tissue_of(estimated)
    for z in range(SHAPE[0]):
        for q in (1, 50, 99.9):
            exact = np.percentile(even[z][(even[z] != 0) & inside[z]].astype(np.float64), q)
            assert counted.percentile(z, q, "tissue") == pytest.approx(exact, rel=2.0**-10)


def test_a_batch_needs_its_own_planes_alone(tmp_path, estimated):
    estimated.source.save(tmp_path / "masks.npz")
    files = [tmp_path / f"shrunken_{start:06d}.npz" for start in (0, 5, 9)]
    for file, start, stop in zip(files, (0, 5, 9), (5, 9, 12), strict=True):
        shrink_planes(estimated.values[start:stop], SHRINK).save(file)
    shrunken = ShrunkenFiles(files)
    files[2].unlink()  # whose planes no one needs
    assert shrunken.shape == estimated.shrunken.shape
    some = shrunken.part(4, 8)
    assert np.array_equal(some.mean, estimated.shrunken.mean[4:8])
    assert np.array_equal(some.valid, estimated.shrunken.valid[4:8])
    assert np.array_equal(some.planes["maximum"], estimated.shrunken.planes["maximum"][4:8])
    masks = TissueSource.load(tmp_path / "masks.npz", planes=(4, 8))
    box = slice(5, 8), slice(9, 40), slice(13, 77)
    assert np.array_equal(masks.block(*box), estimated.source.block(*box))
    inputs = Inputs(estimated.table, shrunken, masks, voxel_um=VOXEL, batch=(1, 2))
    bias = n4_sections(inputs, estimated.settings)
    assert np.array_equal(bias.fields[0][2].lattice, estimated.bias.fields[1][2].lattice)


def test_lost_chunks_are_an_error_or_invalid(tmp_path):
    values, _tissue = stack()
    store = zarr.create_array(tmp_path / "in.zarr", shape=SHAPE, chunks=(2, 35, 90), dtype="uint16")
    store[:] = values
    (tmp_path / "in.zarr/c/2/0/0").unlink()
    (tmp_path / "in.zarr/c/3/1/0").write_bytes(b"")
    cut = tmp_path / "in.zarr/c/2/1/0"
    cut.write_bytes(cut.read_bytes()[:-1])
    settings = {"sections": 3, "bias": "off", "voxel_um": "20 5 5"}
    with pytest.raises(InputError, match=r"lacks 3 files, .*: c/2/0/0, c/2/1/0, c/3/1/0; copy the store again"):
        run(tmp_path / "in.zarr", tmp_path / "out", **settings)
    result = run(tmp_path / "in.zarr", tmp_path / "out", allow_missing_chunks=True, **settings)
    numbers = result.samples[0].numbers
    assert numbers["plan"]["flagged_sections"] == []  # some of s001 is left
    assert numbers["plan"]["warnings"] == [
        "1 files are absent, as chunks of the fill value may be, and are read as it: c/2/0/0 of in.zarr",
        "2 files are lost or cut short, and their voxels are invalid: c/2/1/0, c/3/1/0 of in.zarr",
    ]
    voxels = open_volume(result.samples[0].store).read(slice(None))
    assert not voxels[4:6].any()
    assert not voxels[6:8, 35:].any()
    assert voxels[6:8, 10:35].any()


def test_lost_chunks_of_the_mask_are_no_tissue(tmp_path):
    values, tissue = stack()
    write_volume(tmp_path / "in.ome.zarr", values, voxel_um=VOXEL)
    mask = zarr.create_array(
        tmp_path / "mask.zarr", shape=SHAPE, chunks=(2, 35, 45), dtype="uint8", config={"write_empty_chunks": True}
    )
    mask[:] = tissue
    (tmp_path / "mask.zarr/c/4/0/1").unlink()
    settings = {"sections": 3, "bias": "off", "smooth_z": 1, "mask": tmp_path / "mask.zarr"}  # a gain on tissue
    with pytest.raises(InputError, match=r"mask.zarr lacks 1 files, .*: c/4/0/1; copy the store again, or allow"):
        run(tmp_path / "in.ome.zarr", tmp_path / "out", **settings)
    result = run(tmp_path / "in.ome.zarr", tmp_path / "out", allow_missing_chunks=True, **settings).samples[0]
    assert result.numbers["plan"]["flagged_sections"] == []
    assert "1 files are absent" in result.numbers["plan"]["warnings"][0]
    assert "read as it: c/4/0/1 of mask.zarr" in result.numbers["plan"]["warnings"][0]
    tissue[8:10, :35, 45:] = False
    assert np.array_equal(open_volume(result.folder / "mask.ome.zarr").read(slice(None)) > 0, tissue)
    again = [str(result.folder / "recipe.json"), str(tmp_path / "in.ome.zarr"), str(tmp_path / "again.ome.zarr")]
    again += ["--mask", str(tmp_path / "mask.zarr")]
    for more, code in (([], InputError.exit_code), (["--allow-missing-chunks"], 0)):
        with pytest.raises(SystemExit) as end:
            main(["render", *again, *more])
        assert end.value.code == code
    rendered, written = (open_volume(path).read(slice(None)) for path in (tmp_path / "again.ome.zarr", result.store))
    assert np.array_equal(rendered, written)
    shutil.rmtree(tmp_path / "again.ome.zarr")
    next((result.folder / "mask.ome.zarr/0/c").rglob("0")).joinpath("0", "0").write_bytes(b"")  # the one beside it
    with pytest.raises(SystemExit) as end:
        main(["render", *again[:3], "--allow-missing-chunks"])
    assert end.value.code == 0
    assert np.isfinite(open_volume(tmp_path / "again.ome.zarr").read(slice(None))).all()


def test_space_and_inodes_are_looked_at_before_anything_is_written(tmp_path, estimated, monkeypatch):
    layout = plan_layout(SHAPE, "float32", VOXEL, chunks=(4, 32, 32))
    nbytes, files = store_needs([layout], 0, SHAPE[0])
    render(estimated.volume, Recipe(), tmp_path / "kept.ome.zarr", chunks=(4, 32, 32))
    taken = list((tmp_path / "kept.ome.zarr").rglob("*"))
    assert sum(path.stat().st_size for path in taken if path.is_file() and path.suffix != ".json") <= nbytes
    assert len(taken) <= files
    disk = {"f_bavail": nbytes, "f_frsize": 1, "f_files": 10**6, "f_favail": files}
    for lacking, says in (
        ({"f_bavail": nbytes - 1}, "needs up to .* GB and has"),
        ({"f_favail": files - 1}, "inodes for"),
    ):
        monkeypatch.setattr(space.os, "statvfs", lambda _path, d=disk | lacking: SimpleNamespace(**d))
        with pytest.raises(DiskFullError, match=says):
            render(estimated.volume, Recipe(), tmp_path / "out.ome.zarr", chunks=(4, 32, 32))
        assert [path.name for path in tmp_path.iterdir()] == ["kept.ome.zarr"]
    monkeypatch.setattr(space.os, "statvfs", lambda _path: SimpleNamespace(**disk))
    render(estimated.volume, Recipe(), tmp_path / "out.ome.zarr", chunks=(4, 32, 32))


@pytest.mark.parametrize("chunks", [(1, 8, 8), (3, 17, 19), (16, 64, 64)])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_mask_of_noise_fits_into_what_is_asked_for_it(tmp_path, chunks, version):
    layout = plan_layout((20, 150, 140), "uint8", VOXEL, chunks=chunks, kind="labels", version=version)
    nbytes, _files = store_needs([layout], 0, 20)
    create_store(tmp_path / "mask", layout)
    with SlabWriter(tmp_path / "mask", layout, 0, 20) as writer:
        writer.write(np.random.default_rng(1).integers(0, 2, layout.shape, dtype=np.uint8), 0)
    files = [path for path in (tmp_path / "mask").rglob("*") if path.is_file()]
    taken = sum(path.stat().st_size for path in files if path.name[-1].isdigit())  # metadata is .z... or .json
    assert nbytes / 3 < taken <= nbytes  # chunks at the edges are asked for whole


def test_a_run_asks_for_the_room_of_all_its_samples_before_it_reads(tmp_path, monkeypatch):
    write_volume(tmp_path / "in.ome.zarr", stack()[0], voxel_um=VOXEL)
    (tmp_path / "sheet.csv").write_text("sample,image\na,in.ome.zarr\nb,in.ome.zarr\n")
    needs = make_plan(tmp_path / "in.ome.zarr", resolve({"sections": 3})).needs()
    enough = {f"f_{name}": 2 * needs[n] + needs[f"work_{n}"] for name, n in (("bavail", "bytes"), ("favail", "files"))}
    disk = {"f_frsize": 1, "f_files": 10**6} | enough
    monkeypatch.setattr(local, "_shrink", None)
    for lacking, says in (("f_bavail", "out needs up to .* GB and has"), ("f_favail", "out needs up to .* inodes for")):
        lacks = SimpleNamespace(**disk | {lacking: enough[lacking] - 1})
        monkeypatch.setattr(space.os, "statvfs", lambda _path, lacks=lacks: lacks)
        with pytest.raises(DiskFullError, match=says):
            run(tmp_path / "sheet.csv", tmp_path / "out", sections=3)
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(space.os, "statvfs", lambda _path: SimpleNamespace(**disk))
    with pytest.raises(TypeError, match="first argument must be callable"):  # there is room: it begins to shrink
        run(tmp_path / "sheet.csv", tmp_path / "out", sections=3)


def test_a_second_run_into_one_outdir_is_refused_before_it_reads(tmp_path, monkeypatch):
    write_volume(tmp_path / "v.npy", np.ones((4, 32, 32), np.float32))
    monkeypatch.setattr(local, "_Sample", None)
    with locked(tmp_path / "out" / "pipeline_info"):
        with pytest.raises(InputError, match=r"pipeline_info is being written by process \d+ on .*; wait until"):
            run(tmp_path / "v.npy", tmp_path / "out", voxel_um="10 5 5")
        assert not (tmp_path / "out" / "v").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "shrink"), [("float32", 1), ("float32", 3), ("uint16", 2), ("uint8", 1)])
def test_files_of_noise_between_the_stages_fit_into_what_is_asked_for_them(tmp_path, kind, shrink):
    rng = np.random.default_rng(1)
    values = (rng.gamma(2, 30, (6, 65, 70)) * (rng.random((6, 65, 70)) < 0.5)).astype(kind)
    layout = plan_layout(values.shape, "float32", VOXEL, slab_planes=3)
    bits = rng.random((6, -(-65 // shrink), -(-70 // shrink))) < 0.5
    TissueSource(bits, bits[0], shrink).save(tmp_path / "masks.npz")
    for start in (0, 3):
        shrunken = shrink_planes(values[start : start + 3], shrink)
        for name in ("before", "after"):
            shrunken.save(tmp_path / f"{name}_{start}.npz")
        inside = bits[0].repeat(shrink, axis=0).repeat(shrink, axis=1)[:65, :70]
        tissue = np.broadcast_to(inside, (3, 65, 70))
        plane_histograms(values[start : start + 3], tissue, ~inside, start).save(tmp_path / f"numbers_{start}.npz")
    samples = rng.normal(size=(2, 6, *bits.shape[1:])).astype(np.float32)  # of noise as fine as they can be
    Evidence(*samples, bits, np.zeros(6, int), 1, bits.shape[1:]).save(tmp_path / "evidence.npz")
    nbytes, files = work_needs(layout.shape, shrink, 2)
    taken = list(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in taken) <= nbytes
    assert len(taken) == files


PEAK = """
def peak_bytes():  # getrusage would count the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
"""
RENDERED = (
    PEAK
    + """
import json, sys
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.plan import make_plan
from n4flow.corrections.recipe import Recipe
from n4flow.pipeline.finish import create_stores
from n4flow.pipeline.render import render_slab
from n4flow.masks.tissue_source import TissueSource
import numpy as np
from pathlib import Path
plan = make_plan(sys.argv[1], resolve({"sections": 2}), "sample")
small = np.ones((plan.volume.shape[0], *[-(-n // plan.shrink) for n in plan.volume.shape[1:]]), bool)
stores = create_stores(Path(sys.argv[2]), plan)
render_slab(plan.volume, Recipe(), *plan.slabs[0], stores=stores, shrink=plan.shrink,
            tissue=TissueSource(small, ~small[0], plan.shrink), threads=2)
print(json.dumps([peak_bytes(), plan.summary()["memory_bytes"]["RENDER"]]))
"""
)


def test_the_predicted_memory_is_kept(tmp_path):
    values = np.random.default_rng(1).integers(1, 60000, (32, 700, 900)).astype(np.uint16)
    write_volume(tmp_path / "in.ome.zarr", values, voxel_um=VOXEL)
    command = [sys.executable, "-c", RENDERED, str(tmp_path / "in.ome.zarr"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, predicted = json.loads(done.stdout)
    assert 0.4 * predicted < peak < predicted  # an upper bound that is of use


def test_the_predicted_memory_does_not_grow_with_planes(tmp_path):
    found = []
    for planes in (128, 1024):
        shutil.rmtree(tmp_path / "in.zarr", ignore_errors=True)
        create_store(tmp_path / "in.zarr", plan_layout((planes, 2000, 2000), "uint16", VOXEL))
        parameters = resolve({"sections": 8, "allow_missing_chunks": True, "slab_planes": 32})
        found.append(make_plan(tmp_path / "in.zarr", parameters).summary()["memory_bytes"])
    for name, least in found[0].items():
        if name in ("SHRINK", "PLANE_STATISTICS", "RENDER"):
            assert least <= found[1][name] < 1.1 * least < 1.5e9
        compare = ("PROVE", "HARMONIZE", "INTENSITY", "FINISH")
        if name in ("TISSUE_MASK", *compare):  # two masks as bits grow, and samples of 6 x 6
            samples = 84 * 84 * COMPARED if name in compare else 0
            cached = 2**27 - 128 * 500 * 500 * 4 if name == "TISSUE_MASK" else 0  # which 128 planes do not fill
            assert found[1][name] - least <= 1.2 * (896 * (2 * 500 * 500 / 8 + samples) + cached) + 1
    whole = 896 * 500 * 500 * 11  # bytes: a fit of the whole volume holds that of the planes that are more
    assert found[1]["N4_VOLUME"] - found[0]["N4_VOLUME"] > whole


STAGE = (
    PEAK
    + """
import sys
from n4flow.commands import main
try:
    main(sys.argv[1:])
finally:
    print("peak", peak_bytes())
"""
)


def test_stages_on_the_shrunken_volume_keep_the_predicted_memory(tmp_path):
    shape = (96, 400, 400)
    rng = np.random.default_rng(0)
    disk = np.hypot(*np.ogrid[-1:1:400j, -1.1:1.1:400j]) < 0.8
    values = (np.where(disk, 900, 100) * rng.gamma(20, 0.05, shape)).astype(np.float32)
    (tmp_path / "shrunken").mkdir()
    shrink_planes(values, 1).save(tmp_path / "shrunken/shrunken_000000.npz")
    (tmp_path / "recipe").mkdir()
    masked = ["--masks", "masks.npz", "--sections", "12", "--json", "n.json", "--out", "out.npz"]
    voxels = ["--voxel-um", "50 25 25"]
    beside = [*masked, *voxels, "--backend", "cpu", "--iterations", "2", "--tolerance", "0.001"]
    foreseen = shrunken_bytes(shape, 1, 8, "cpu")
    for process, options in (
        (
            "TISSUE_MASK",
            ["tissue-mask", "shrunken", "--sections", "12", "--voxel-um", "50 25 25", "--out", "masks.npz"],
        ),
        ("N4_SECTIONS", ["n4-sections", "shrunken", "--batch", "0:4", *beside]),
        ("N4_VOLUME", ["n4-volume", "shrunken", *beside, "--out", "recipe/30_bias_volume.npz"]),
        ("PROVE", ["prove", "shrunken", *masked, "--recipe", "recipe", "--recipe-out", "kept"]),
        ("HARMONIZE", ["harmonize", "shrunken", *masked, "--harmonize", "auto"]),
    ):
        command = [sys.executable, "-c", STAGE, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        peak = int(done.stdout.split()[-1])
        assert 0.3 * foreseen[process] < peak < foreseen[process], process


def test_a_dask_cluster_of_two_workers_gives_the_same_bits(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    from n4flow.commands import main

    values, _tissue = stack()
    write_volume(tmp_path / "in.ome.zarr", values, voxel_um=VOXEL)
    settings = {"sections": 3, "bias": "sections", "iterations": "3,3", "slab_planes": 4, "backend": "cpu"}
    here = run(tmp_path / "in.ome.zarr", tmp_path / "here", **settings)
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=str(tmp_path)
    ) as cluster:
        address = ["--dask-scheduler", cluster.scheduler_address]
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "in.ome.zarr"), str(tmp_path / "there"), *address, *options])
        assert not ended.value.code, capsys.readouterr().err
        with distributed.Client(cluster) as client:
            logs = client.run(lambda: "n4flow.pipeline.render" in sys.modules)
    assert any(logs.values())  # it was the workers who rendered
    voxels = [open_volume(tmp_path / place / "in/in.ome.zarr").read(slice(None)) for place in ("here", "there")]
    assert np.array_equal(*voxels)
    assert voxels[0].max() > 0.5
    assert len(here.samples[0].numbers["plan"]["slabs"]) == 3


def test_a_cluster_does_not_change_the_name_of_a_linked_sample(tmp_path, monkeypatch):
    values, _tissue = stack()
    write_volume(tmp_path / "stored.ome.zarr", values, voxel_um=VOXEL)
    (tmp_path / "brain.ome.zarr").symlink_to("stored.ome.zarr")
    monkeypatch.setattr("n4flow.pipeline.run.executor", lambda _scheduler: nullcontext(run_here))
    monkeypatch.chdir(tmp_path)
    result = run("brain.ome.zarr", "out", dask_scheduler="tcp://somewhere:8786", sections=3, bias="off", match="off")
    assert [sample.sample for sample in result.samples] == ["brain"]
    assert (tmp_path / "out/brain/brain.ome.zarr").is_dir()


def test_a_cluster_without_workers_is_said_and_waited_for(tmp_path, caplog):
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "local_directory": str(tmp_path)}
    with distributed.LocalCluster(n_workers=0, **options) as cluster:
        with executor(cluster.scheduler_address) as run_slabs:
            (line,) = (record.getMessage() for record in caplog.records if record.name == "n4flow")
            assert f"scheduler at {cluster.scheduler_address} has no workers yet" in line
            cluster.scale(1)
            assert run_slabs([partial(divmod, 7, 3)]) == [(2, 1)]
        caplog.clear()
        with executor(cluster.scheduler_address):
            assert not [record for record in caplog.records if record.name == "n4flow"]


def test_an_address_without_a_scheduler_is_said(tmp_path):
    pytest.importorskip("distributed")
    values, _tissue = stack()
    write_volume(tmp_path / "in.ome.zarr", values, voxel_um=VOXEL)
    with pytest.raises(InputError, match="there is no dask scheduler at nonsense"):
        run(tmp_path / "in.ome.zarr", tmp_path / "out", dask_scheduler="nonsense", sections=3, bias="off")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_float32_cannot_hold_is_refused_in_every_pass_or_warned_about():
    values = stack()[0].astype(np.float64)
    recipe, voxel = Recipe(), tuple(VOXEL.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrink_pass(Volume.from_array(values, voxel), 0, 8, SHRINK, recipe=recipe)
    for factor, words in ((1e-300, "planes 0 to 8 of .* have no value beyond 1.2e-38"), (1e-45, "no value beyond")):
        with pytest.warns(N4flowWarning, match=words):
            shrink_pass(Volume.from_array(values * factor, voxel), 0, 8, SHRINK, recipe=recipe)
    values[5, 40, 50] = 1e300
    volume = Volume.from_array(values, voxel)
    for before in (recipe, Recipe([SpatialMeanBackground((40.0, 30.0))])):
        with pytest.raises(InputError, match=r"has values beyond 3\.4e\+38, the largest float32"):
            shrink_pass(volume, 0, 8, SHRINK, recipe=before)
