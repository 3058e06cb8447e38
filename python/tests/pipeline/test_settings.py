"""Settings that a lab brings from linumpy, each by what it does to a small volume."""

import numpy as np
import pytest

import n4flow
from n4flow.corrections.base import Where
from n4flow.corrections.outside import Outside
from n4flow.corrections.recipe import Recipe
from n4flow.io.writers import write_volume

VOXEL_UM = {"z": 20.0, "y": 10.0, "x": 10.0}
BARE = {"normalize": False, "match": "off", "smooth_z": 0, "sections": 2, "iterations": "6,6", "trust": "full"}


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A store of two sections of a shaded disk in agarose."""
    rng = np.random.default_rng(4)
    _z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (8, 48, 60)), indexing="ij")
    truth = np.where(y**2 + x**2 < 0.6, np.where(x**2 + y**2 < 0.2, 300.0, 180.0), 20.0)
    values = (truth * np.exp(0.3 * x + rng.normal(0, 0.05, x.shape))).astype(np.float32)
    folder = tmp_path_factory.mktemp("settings")
    write_volume(folder / "brain.ome.zarr", values, voxel_um=(20, 10, 10))
    return folder, values


def result(brain, name, **settings):
    folder, _values = brain
    done = n4flow.run(folder / "brain.ome.zarr", folder / name, **BARE | settings).samples[0]
    read = [n4flow.open_volume(done.folder / store).read(slice(None)) for store in (done.store.name, "mask.ome.zarr")]
    return done, *read


def test_strength_is_a_power_of_the_field(brain):
    _folder, values = brain
    _done, whole, _mask = result(brain, "whole", bias="two_pass")
    done, half, _mask = result(brain, "half", bias="two_pass", bias_strength=0.5)
    change = np.log(values / whole)
    assert np.ptp(change) > 0.2
    np.testing.assert_allclose(np.log(values / half), 0.5 * change, atol=1e-5)
    kept = Recipe.load(done.folder / "recipe.json")
    assert {field.share for correction in kept for _start, _stop, field in correction.fields} == {0.5}


def test_each_pass_has_its_own_distance(brain):
    done, _corrected, _mask = result(brain, "passes", bias="two_pass", spline_section_um=60, spline_volume_um=150)
    lattices = [
        field.lattice.shape
        for correction in Recipe.load(done.folder / "recipe.json")
        for _start, _stop, field in correction.fields
    ]
    width = lattices[0][-1]
    assert [shape[-1] for shape in lattices[:2]] == [width, width]
    assert lattices[2][-1] < width


def test_outside_the_mask_is_zero_where_that_is_asked_for(brain):
    _done, kept, _mask = result(brain, "kept", bias="sections")
    done, zeroed, mask = result(brain, "zeroed", bias="sections", outside="zero")
    inside = mask > 0
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_array_equal(zeroed[inside], kept[inside])
    assert (zeroed[~inside] == 0).all()
    assert (kept[~inside] != 0).all()
    out = done.folder / "again.ome.zarr"
    recipe = Recipe.load(done.folder / "recipe.json")
    n4flow.render(n4flow.open_volume(brain[0] / "brain.ome.zarr"), recipe, out)
    np.testing.assert_array_equal(n4flow.open_volume(out).read(slice(None)), zeroed)
    assert done.numbers["verdict"] == _done.numbers["verdict"]  # what lies outside the tissue judges nothing
    block = np.array([[[1, np.nan, np.nan]]], np.float32)
    tissue = np.array([[[True, True, False]]])
    applied = Outside().apply(block, Where(0, 0, 0, (1, 1, 3), tissue))
    np.testing.assert_array_equal(applied, np.array([[[1, np.nan, 0]]], np.float32))


def test_what_is_not_finite_around_the_volume_is_zero_too(brain):
    folder, values = brain
    framed = np.pad(values, ((0, 0), (20, 20), (24, 24)), constant_values=np.nan)
    write_volume(folder / "framed.ome.zarr", framed, voxel_um=(20, 10, 10))
    settings = BARE | {"bias": "sections", "outside": "zero"}
    done = n4flow.run(folder / "framed.ome.zarr", folder / "framed", **settings).samples[0]
    written = n4flow.open_volume(done.store).read(slice(None))
    assert (written[:, :20] == 0).all()
    assert (written[:, 30:50, 40:60] > 0).any()
    volume, recipe = n4flow.open_volume(folder / "framed.ome.zarr"), Recipe.load(done.folder / "recipe.json")
    n4flow.render(volume, recipe, done.folder / "a.ome.zarr")
    np.testing.assert_array_equal(n4flow.open_volume(done.folder / "a.ome.zarr").read(slice(None)), written)


def test_matching_leaves_what_is_at_or_below_the_threshold(brain):
    _folder, values = brain
    _done, matched, _mask = result(brain, "matched", bias="off", match="plane", tissue_threshold=200)
    low = values <= 200
    np.testing.assert_array_equal(matched[low], values[low])
    assert np.abs(matched[~low] - values[~low]).max() > 1


def test_smoothing_and_closing_of_the_mask_are_lengths(brain):
    _folder, values = brain
    off = {"bias": "off", "shrink": 1}
    masks = {}
    for smoothing, closing in ((0, 0), (30, 0), (30, 60)):
        name = f"mask {smoothing} {closing}"
        _done, _same, mask = result(brain, name, mask_smoothing_um=smoothing, mask_closing_um=closing, **off)
        voxels = {"smoothing_sigma": smoothing / VOXEL_UM["x"], "closing_radius": round(closing / VOXEL_UM["x"])}
        expected = n4flow.compute_tissue_mask(values, n_serial_slices=2, **voxels)
        np.testing.assert_array_equal(mask > 0, expected)
        masks[name] = mask
    assert len({mask.tobytes() for mask in masks.values()}) >= 2
