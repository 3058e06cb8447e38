"""What every kind of correction fills in, and that a new one is a class and nothing else."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from gpu_examples import some_recipe

from n4flow.corrections.base import FUSED, KINDS, Correction, Where, map_through
from n4flow.corrections.harmonization import Harmonization
from n4flow.corrections.outside import Outside
from n4flow.corrections.recipe import Recipe, load_correction, save_correction
from n4flow.io.volume import Volume
from n4flow.pipeline.render import render
from n4flow.report.html import write_report
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair
from n4flow.sections import SectionTable
from n4flow.statistics.measure import shrink_planes

SHAPE = (9, 48, 56)


@dataclass
class Destriping(Correction):
    """Subtract an offset from every row: a correction that nothing but this file knows of."""

    kind: ClassVar[str] = "stripes"
    title: ClassVar[str] = "stripes taken out"
    offset: np.ndarray

    def apply(self, block, where):
        rows = slice(where.y, where.y + block.shape[1])
        return block - self.offset[where.z : where.z + len(block), rows, None]

    def summary(self):
        return {"largest_offset": float(abs(self.offset).max())}

    def to_arrays(self):
        return {}, {"offset": self.offset}

    @classmethod
    def from_arrays(cls, settings, arrays):
        return cls(**settings, **arrays)


def examples():
    rng = np.random.default_rng(0)
    sections, edges, side = 3, np.array([0, 3, 6, 9]), (6, 6)
    even = Harmonization(
        rng.normal(0, 0.1, (2, *side)),
        rng.normal(0, 0.1, (sections, *side)),
        np.zeros(side),
        rng.normal(0, 0.1, SHAPE[0]),
        edges,
        (24, 28),
        2,
        "safe",
        rng.normal(0, 0.1, sections),
        np.full(sections, 0.01),
    )
    stripes = Destriping(rng.normal(0, 5, SHAPE[:2]).astype(np.float32))
    return {correction.kind: correction for correction in [*some_recipe(SHAPE), even, Outside(), stripes]}


def test_there_is_an_example_of_every_kind():
    assert set(examples()) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(examples()))
def test_a_correction_fills_in_what_is_asked_of_it(tmp_path, kind):
    correction = examples()[kind]
    assert correction.title[0].islower()
    assert not correction.title.endswith(".")
    assert json.loads(json.dumps(correction.summary(), allow_nan=False)) == correction.summary()
    save_correction(correction, tmp_path / "one.npz")
    again = load_correction(tmp_path / "one.npz")
    assert type(again) is type(correction)
    block = np.random.default_rng(1).uniform(50, 200, SHAPE).astype(np.float32)
    where = Where(0, 0, 0, SHAPE, block > 100)
    expected = correction.apply(block.copy(), where)
    np.testing.assert_array_equal(again.apply(block.copy(), where), expected)
    if correction.fused is not None:
        assert correction.fused in FUSED
        stop, arguments = correction.fused_arguments(block, where)(2, 9)
        assert 2 < stop <= 9
        assert arguments is not None
    if correction.is_map:
        inside = where.tissue[5]
        np.testing.assert_array_equal(map_through([correction], block[5][inside], 5), expected[5][inside])
    if correction.is_field:
        field = correction.shrunken_log_field(slice(2, 7), SHAPE[1:])
        assert (field.shape, field.dtype) == ((5, *SHAPE[1:]), np.float32)


def test_a_new_correction_is_a_class_and_nothing_else(tmp_path):
    stripes = examples()["stripes"]
    before = np.random.default_rng(2).uniform(100, 200, SHAPE).astype(np.float32)
    after = before - stripes.offset[:, :, None]
    Recipe([stripes]).save(tmp_path / "recipe.json", shape=list(SHAPE))
    recipe = Recipe.load(tmp_path / "recipe.json")
    np.testing.assert_array_equal(recipe.apply(before), after)
    volume = Volume.from_array(before, voxel_um=(50, 10, 10))
    numbers = render(volume, recipe, tmp_path / "out.ome.zarr")
    assert numbers["minimum"] == after.min()
    tissue = np.zeros(SHAPE, bool)
    tissue[:, 10:40, 10:40] = True
    arrays = {
        "sections": SectionTable.coerce(3, SHAPE[0]),
        "before": shrink_planes(before, 1),
        "after": shrink_planes(after, 1),
        "tissue": tissue,
        "agarose": None,
        "recipe": recipe,
    }
    pair = Pair(**arrays)
    found = pair_metrics(pair)
    assert found["bias_field"] is None
    numbers = {"sample": "brain", "plan": {"shape": list(SHAPE)}, "metrics": found, "stages": [], "parameters": {}}
    numbers["verdict"] = found["verdict"]
    write_report(tmp_path / "report.html", numbers, pair, {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Stripes taken out." in text
    assert "largest offset" in text


MAY_BE_NAN = {("harmonization", "gain"), ("harmonization", "gain_sd")}


@pytest.mark.parametrize("kind", sorted(examples()))
def test_arrays_that_are_cut_or_hold_nan_are_found(kind):
    correction = examples()[kind]
    assert list(correction.faults(SHAPE)) == []
    settings, arrays = correction.to_arrays()
    arrays = {} if kind == "stripes" else arrays  # which says nothing of itself
    for name, values in arrays.items():
        wrong = {"cut": values[:1] if values.ndim else values, "wide": np.stack([values, values])}
        if values.dtype.kind == "f" and (kind, name) not in MAY_BE_NAN:
            wrong["nan"] = values.copy()
            wrong["nan"].flat[-1] = np.nan
        if values.dtype.kind in "iu":
            wrong["far"] = values.copy()
            wrong["far"].flat[-1] = 100
        for way, array in wrong.items():
            if (kind, name) in MAY_BE_NAN or np.array_equal(array, values):
                continue
            try:
                again = type(correction).from_arrays(json.loads(json.dumps(settings)), {**arrays, name: array})
                found = list(again.faults(SHAPE))
            except (TypeError, ValueError, IndexError, KeyError) as error:  # `load_correction` makes it a sentence
                found = [str(error)]
            assert found, (name, way)
    if arrays and kind != "bias_field":  # which may leave planes alone
        assert list(correction.faults((SHAPE[0] + 1, *SHAPE[1:]))) != []
