"""Recipes: order, storage, and application that does not depend on how a volume is cut."""

import json

import numpy as np
import pytest

from n4flow.corrections.background import SpatialMeanBackground
from n4flow.corrections.base import Where
from n4flow.corrections.plane_gain import PlaneGain, estimate_plane_gain
from n4flow.corrections.plane_range import PlaneRange, estimate_plane_range
from n4flow.corrections.recipe import Recipe, load_correction, save_correction
from n4flow.errors import InputError
from n4flow.statistics.measure import plane_histograms


@pytest.fixture
def volume():
    return np.random.default_rng(3).uniform(1, 100, (7, 33, 41)).astype(np.float32)


@pytest.fixture
def tissue(volume):
    return volume > 40


@pytest.fixture
def recipe(volume, tissue):
    agarose = np.zeros(volume.shape[1:], bool)
    agarose[:5] = True
    histograms = plane_histograms(volume, tissue, agarose)
    plane_range = estimate_plane_range(histograms, 2, 99)
    gain = estimate_plane_gain(histograms, [plane_range], 2, 1.5, 10)
    return Recipe([SpatialMeanBackground((4.0, 6.0)), plane_range, gain])


def test_a_recipe_survives_saving_and_applies_alike(tmp_path, recipe, volume, tissue):
    recipe.save(tmp_path / "recipe.json", sample="brain")
    again = Recipe.load(tmp_path / "recipe.json")
    assert [c.kind for c in again] == ["background", "plane_range", "plane_gain"]
    assert np.array_equal(again.apply(volume, tissue=tissue), recipe.apply(volume, tissue=tissue))
    assert json.loads((tmp_path / "recipe.json").read_text())["sample"] == "brain"


def test_corrections_are_applied_in_order(recipe, volume, tissue):
    expected = volume.copy()
    where = Where(0, 0, 0, volume.shape, tissue)
    for correction in recipe:
        expected = correction.apply(expected, where)
    assert np.array_equal(recipe.apply(volume, tissue=tissue), expected)


def test_the_input_is_not_modified(recipe, volume, tissue):
    before = volume.copy()
    recipe.apply(volume, tissue=tissue)
    assert np.array_equal(volume, before)


def test_planes_may_be_cut_anywhere(recipe, volume, tissue):
    whole = recipe.apply(volume, tissue=tissue)
    parts = [recipe.apply(volume[a:b], a, tissue=tissue[a:b], shape=volume.shape) for a, b in [(0, 1), (1, 5), (5, 7)]]
    assert np.array_equal(np.concatenate(parts), whole)


def test_an_empty_recipe_changes_nothing(volume):
    assert np.array_equal(Recipe().apply(volume), volume)


def test_equal_corrections_have_equal_bytes(tmp_path, recipe):
    for name in ("a.npz", "b.npz"):
        save_correction(recipe[1], tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = load_correction(tmp_path / "a.npz")
    assert isinstance(loaded, PlaneRange)


def test_a_folder_of_corrections_is_read_in_the_order_of_names(tmp_path, recipe):
    for name, correction in zip(
        ("60_gain", "10_background", "40_range"), (recipe[2], recipe[0], recipe[1]), strict=True
    ):
        save_correction(correction, tmp_path / f"{name}.npz")
    assert [c.kind for c in Recipe.load(tmp_path)] == ["background", "plane_range", "plane_gain"]


def test_batches_of_a_stage_are_joined_behind_the_correction_before(tmp_path, recipe, monkeypatch):
    def joined(self, other):
        return PlaneGain(
            *(np.concatenate([getattr(c, name) for c in (self, other)]) for name in ("gain", "measured")), 2.0
        )

    monkeypatch.setattr(PlaneGain, "joined", joined)
    save_correction(recipe[0], tmp_path / "10_background.npz")
    for number in range(3):
        batch = PlaneGain(np.full(2, 1.0 + number, np.float32), np.ones(2, bool), 2.0)
        save_correction(batch, tmp_path / f"60_gain.{number}.npz")
    background, gain = Recipe.load(tmp_path)
    assert background.kind == "background"
    assert gain.gain.tolist() == [1, 1, 2, 2, 3, 3]


def test_a_changed_correction_is_noticed(tmp_path, recipe):
    recipe.save(tmp_path / "recipe.json")
    stored = next((tmp_path / "corrections").glob("*plane_gain.npz"))
    save_correction(PlaneGain.from_arrays(*_doubled(recipe[2])), stored)
    with pytest.raises(InputError, match="differs from what recipe"):
        Recipe.load(tmp_path / "recipe.json")
    stored.unlink()
    with pytest.raises(InputError, match="which is not beside it"):
        Recipe.load(tmp_path / "recipe.json")


def _doubled(gain):
    settings, arrays = gain.to_arrays()
    return settings, arrays | {"gain": arrays["gain"] * 2}


@pytest.mark.parametrize(
    ("content", "sentence"), [("{}", "is not a recipe that n4flow wrote"), ("no", "is not a recipe")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, sentence):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        Recipe.load(tmp_path / "recipe.json")


def test_a_missing_recipe_or_a_foreign_correction_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Recipe.load(tmp_path / "none.json")
    (tmp_path / "recipe.json").mkdir()  # a folder of no corrections would be a recipe that does nothing
    with pytest.raises(InputError, match="is no file"):
        Recipe.load(tmp_path / "recipe.json")
    np.savez(tmp_path / "x.npz", settings=np.array('{"kind": "magic"}'))
    with pytest.raises(InputError, match="kind 'magic', this version knows background, bias_field, harmonization"):
        load_correction(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="is not a correction that n4flow wrote"):
        load_correction(tmp_path / "y.npz")
