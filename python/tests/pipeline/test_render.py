"""The render: equal voxels however it is cut, whole results or none, integer results in the input's units."""

import json

import numpy as np
import pytest

from n4flow.corrections.plane_gain import PlaneGain
from n4flow.corrections.plane_range import estimate_plane_range
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume
from n4flow.pipeline import blocks as passes
from n4flow.pipeline.render import render
from n4flow.pipeline.run import run
from n4flow.pipeline.samples import read_samples
from n4flow.statistics.measure import plane_histograms


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(5)
    values = rng.integers(100, 4000, (13, 37, 53)).astype(np.uint16)
    values[:, :4] = 0  # mosaic padding
    values[:, 4:10] = rng.integers(40, 60, (13, 6, 53))  # agarose
    write_volume(tmp_path / "in.ome.zarr", values, voxel_um=(20, 4, 5))
    return tmp_path / "in.ome.zarr"


@pytest.fixture
def plane_range(image):
    values = open_volume(image).read(slice(None)).astype(np.float32)
    agarose = np.zeros(values.shape[1:], bool)
    agarose[4:10] = True
    return estimate_plane_range(plane_histograms(values, values > 100, agarose), 3, 99.5)


def rendered(image, recipe, **options):
    out = image.parent / "out.ome.zarr"
    numbers = render(open_volume(image), recipe, out, **options)
    return open_volume(out).read(slice(None)), numbers


def test_render_is_the_recipe_applied_to_the_array(image, plane_range):
    recipe = Recipe([plane_range])
    written, numbers = rendered(image, recipe)
    assert np.array_equal(written, recipe.apply(open_volume(image).read(slice(None))))
    assert numbers["minimum"] == 0
    assert numbers["maximum"] == pytest.approx(1)
    assert numbers["saturated_voxels"] == 0


def test_an_integer_result_is_in_the_input_s_units_above_agarose(image, plane_range):
    before = open_volume(image).read(slice(None)).astype(np.float64)
    written, _numbers = rendered(image, Recipe([plane_range]), dtype="input")
    assert written.dtype == np.uint16
    clipped = np.clip(before, plane_range.lower[:, None, None], plane_range.upper[:, None, None])
    expected = np.where(before == 0, 0, clipped - plane_range.lower[:, None, None])
    assert np.abs(written - expected).max() <= 0.51  # rounding to whole numbers


def test_what_does_not_fit_is_saturated_and_counted(image):
    written, numbers = rendered(image, Recipe(), dtype="uint8")
    before = open_volume(image).read(slice(None))
    assert np.array_equal(written, np.minimum(before, 255))
    assert numbers["saturated_voxels"] == (before > 255).sum()


def test_a_gain_beyond_float32_is_refused_and_what_was_infinite_before_is_kept(tmp_path):
    values = np.full((3, 20, 30), 1e38, np.float32)
    values[0, 0, :2] = np.nan, np.inf
    inside, gain = np.ones(values.shape, np.uint8), PlaneGain.from_arrays(*_gain(3))
    volume, mask = (Volume.from_array(array, (1, 1, 1)) for array in (values, inside))
    render(volume, Recipe([gain]), tmp_path / "kept.ome.zarr", mask=mask)
    written = open_volume(tmp_path / "kept.ome.zarr").read(slice(None))
    assert np.array_equal(written, values * gain.gain[:, None, None], equal_nan=True)
    values[1, 3, 4] = 3.3e38
    with pytest.raises(InputError, match=r"1 voxels in planes 0 to 2 are beyond 3\.4e\+38, .* after the corrections"):
        render(volume, Recipe([gain]), tmp_path / "over.ome.zarr", mask=mask)
    assert not (tmp_path / "over.ome.zarr").exists()


def test_a_render_that_fails_leaves_nothing(image, plane_range, monkeypatch):
    def fail(*_given):
        raise OSError("broken")

    monkeypatch.setattr("n4flow.pipeline.render.validate_store", fail)
    with pytest.raises(OSError, match="broken"):
        rendered(image, Recipe([plane_range]))
    assert sorted(path.name for path in image.parent.iterdir()) == ["in.ome.zarr"]


def test_what_is_not_ours_is_never_replaced(image):
    for made in ("results/in", "results2"):
        (image.parent / made).mkdir(parents=True)
        (image.parent / made / "raw.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is no result of n4flow"):
        run(image, image.parent / "results", bias="off")
    with pytest.raises(InputError, match="results2 must be an OME-Zarr"):
        render(open_volume(image), Recipe(), image.parent / "results2")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="the input .* and the output .* are the same file"):
            render(open_volume(image), Recipe(), image, overwrite=overwrite)
        with pytest.raises(InputError, match="lie one in the other"):
            render(open_volume(image), Recipe(), image / "0" / "out.ome.zarr", overwrite=overwrite)
    render(open_volume(image), Recipe(), image.parent / "out.ome.zarr")
    with pytest.raises(InputError, match=r"out\.ome\.zarr exists; choose another name, or replace it"):
        render(open_volume(image), Recipe(), image.parent / "out.ome.zarr")
    render(open_volume(image), Recipe(), image.parent / "out.ome.zarr", overwrite=True)
    inside = image.parent / "x" / "in" / "in.ome.zarr"
    inside.parent.mkdir(parents=True)
    image.rename(inside)
    with pytest.raises(InputError, match="lies in .*, where the results go; choose another outdir"):
        run(inside, image.parent / "x", bias="off")
    for outdir in (inside, inside / "results"):
        with pytest.raises(InputError, match="where the results go, lies in the input .*; choose another outdir"):
            run(inside, outdir, bias="off")
        assert not (inside / "in").exists()
        assert not (inside / "results").exists()
    assert open_volume(inside).shape == (13, 37, 53)
    assert (image.parent / "results/in/raw.txt").read_text() == "mine"


def test_a_mask_of_another_shape_is_refused(image, plane_range):
    for shape in ((13, 37, 54), (12, 37, 53)):
        mask = Volume.from_array(np.ones(shape, np.uint8), (1, 1, 1))
        with pytest.raises(InputError, match=r"has the shape .*, and the image .* has \(13, 37, 53\)"):
            rendered(image, Recipe([plane_range]), mask=mask)


def test_a_stored_recipe_is_not_applied_to_another_volume(image, plane_range):
    Recipe([plane_range]).save(image.parent / "recipe.json", shape=[13, 37, 53])
    stored = Recipe.load(image.parent / "recipe.json")
    other = Volume.from_array(np.ones((5, 37, 53), np.uint16), (1, 1, 1))
    with pytest.raises(InputError, match=r"made for a volume of \(13, 37, 53\), this one has \(5, 37, 53\)"):
        render(other, stored, image.parent / "out.ome.zarr")


def test_chunks_are_read_once_and_in_blocks_of_both_grids(monkeypatch):
    values = np.arange(10 * 24 * 9, dtype=np.uint16).reshape(10, 24, 9)
    volume = Volume.from_array(values, (1, 1, 1))
    monkeypatch.setattr(type(volume), "chunks", (4, 6, 9))
    row = 9 * 2
    monkeypatch.setattr(passes, "BLOCK_BYTES", 1)
    for most, depth, height in [
        (10**9, 4, 12),  # chunks that are written are (2, 4, ...) voxels
        (4 * 12 * row, 4, 12),
        (4 * 12 * row - 1, 4, 6),  # too large: blocks of the chunks that are read
        (2 * 6 * row, 2, 6),  # larger than memory may be: chunks are decoded twice
    ]:
        monkeypatch.setattr(passes, "READ_BYTES", most)
        blocks = passes.Blocks.of(volume, 2, 4)
        assert (blocks.depth, blocks.height) == (depth, height)
        assert blocks.nbytes(volume) <= most
        seen = np.zeros(values.shape, int)
        for z, y, block in passes.stream(volume, 1, 10, blocks):
            place = slice(z, z + block.shape[0]), slice(y, y + block.shape[1])
            assert np.array_equal(block, values[place])
            assert z == 1 or z % depth == 0
            assert y % height == 0
            seen[place] += 1
        assert (seen[1:] == 1).all()
        assert not seen[0].any()
    halo = passes.Blocks.of(volume, 2, 4, 3)
    assert halo.height == 12  # four times the halo
    cuts = [(y, block.shape[1]) for z, y, block in passes.stream(volume, 0, 2, halo)]
    assert cuts == [(0, 15), (9, 15)]


def test_a_gain_on_tissue_needs_the_mask(image):
    gain = PlaneGain.from_arrays(*_gain(13))
    with pytest.raises(InputError, match=r"no mask\.ome\.zarr lies beside it"):
        rendered(image, Recipe([gain]))
    mask = np.zeros((13, 37, 53), np.uint8)
    mask[:, 20:] = 1
    write_volume(image.parent / "m.ome.zarr", mask, voxel_um=(20, 4, 5))
    written, _numbers = rendered(image, Recipe([gain]), mask=image.parent / "m.ome.zarr")
    before = open_volume(image).read(slice(None)).astype(np.float32)
    assert np.array_equal(written[:, :20], before[:, :20])
    assert np.allclose(written[:, 20:], before[:, 20:] * 1.5)
    write_volume(image.parent / "small.ome.zarr", mask[:5], voxel_um=(20, 4, 5))
    with pytest.raises(InputError, match=r"small.ome.zarr has the shape \(5, 37, 53\), .* \(13, 37, 53\)"):
        rendered(image, Recipe([gain]), overwrite=True, mask=image.parent / "small.ome.zarr")


def _gain(n_planes):
    template = PlaneGain(np.full(n_planes, 1.5, np.float32), np.ones(n_planes, bool), 2.0)
    return template.to_arrays()


def test_a_volume_without_voxel_size_is_not_written(image):
    with pytest.raises(InputError, match="has no voxel size"):
        render(Volume.from_array(np.ones((2, 8, 8), np.float32)), Recipe(), image.parent / "out.ome.zarr")


@pytest.mark.parametrize("slab_planes", [1, 4, 64])
def test_results_do_not_depend_on_the_slabs(image, slab_planes):
    results = []
    for planes in (None, slab_planes):
        out = image.parent / f"out{planes}"
        result = run(image, out, sections=3, bias="off", background_radius_um=30, shrink=2, slab_planes=planes)
        results.append(open_volume(result.samples[0].store).read(slice(None)))
    assert np.array_equal(*results)


def test_run_leaves_the_input_alone_and_writes_its_numbers(image):
    before = {path: path.read_bytes() for path in image.rglob("*") if path.is_file()}
    result = run(image, image.parent / "out", sections=3, bias="off")
    assert {path: path.read_bytes() for path in image.rglob("*") if path.is_file()} == before
    numbers = json.loads((result.samples[0].folder / "metrics.json").read_text())
    stages = [stage["stage"] for stage in numbers["stages"]]
    assert stages == [
        "SHRINK",
        "TISSUE_MASK",
        "PROVE",
        "PLANE_STATISTICS",
        "NORMALIZE",
        "MATCH_HISTOGRAMS",
        "SMOOTH_Z",
        "RENDER",
    ]
    assert numbers["parameters"]["bias"] == "off"


def test_a_given_mask_is_used_as_it_is(image):
    mask = np.zeros((13, 37, 53), np.uint8)
    mask[3:9, 11:30, 7:41] = 255
    np.save(image.parent / "mask.npy", mask)
    result = run(image, image.parent / "out", bias="off", mask=str(image.parent / "mask.npy"), shrink=3)
    written = open_volume(result.samples[0].folder / "mask.ome.zarr").read(slice(None))
    assert np.array_equal(written > 0, mask > 0)
    np.save(image.parent / "mask.npy", np.zeros_like(mask))
    with pytest.raises(InputError, match="the given mask is empty"):
        run(image, image.parent / "out", bias="off", mask=str(image.parent / "mask.npy"), shrink=3)


def test_a_sample_sheet_is_read_relative_to_itself(tmp_path):
    sheet = tmp_path / "samples.csv"
    sheet.write_text("sample,image,mask,sections,voxel_um\na,a.npy,m.npy,3,1 2 3\nb,sub/b.npy,,t.tsv,\n")
    first, second = read_samples(sheet)
    assert first == ("a", tmp_path / "a.npy", {"mask": str(tmp_path / "m.npy"), "sections": 3, "voxel_um": "1 2 3"})
    assert second == ("b", tmp_path / "sub/b.npy", {"sections": str(tmp_path / "t.tsv")})
    sheet.write_text("sample,image\na,a.npy\na,b.npy\n")
    with pytest.raises(InputError, match="names sample a in 2 rows"):
        read_samples(sheet)
    sheet.write_text(' sample , image \na , "a.npy"\n')
    assert read_samples(sheet) == [("a", tmp_path / "a.npy", {})]
    sheet.write_text("sample,image\na,a.npy\nb\n")
    with pytest.raises(InputError, match="row 2: sample and image must not be empty"):
        read_samples(sheet)
    sheet.write_text("sample,file\na,a.npy\n")
    with pytest.raises(InputError, match="has columns sample, file; expected sample, image.*channel$"):
        read_samples(sheet)
    for header, said in (
        ("sample;image", "separate cells by commas, not by ;"),
        ("sample\timage", "separate cells by commas, not by tabs"),
        ("sample,image,Sections,Mask", "write sections, mask in small letters"),
    ):
        sheet.write_text(f"{header}\na,a.npy\n")
        with pytest.raises(InputError, match=f"expected sample, image.*; {said}$"):
            read_samples(sheet)
