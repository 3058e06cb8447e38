"""What a stored correction may hold: compiled loops index by it, so nothing wrong reaches them."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from gpu_examples import some_recipe

from n4flow.commands import main
from n4flow.corrections.recipe import Recipe, load_correction, save_correction
from n4flow.errors import InputError
from n4flow.io.writers import write_volume

SHAPE = (9, 48, 56)


def test_equal_corrections_are_equal_files_however_long_a_fit_took(tmp_path):
    bias = next(correction for correction in some_recipe(SHAPE) if correction.kind == "bias_field")
    slower = replace(bias, fields=tuple((a, b, replace(field, seconds=9.0)) for a, b, field in bias.fields))
    for name, correction in (("a", bias), ("b", slower)):
        save_correction(correction, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_that_cannot_be_are_found():
    by_kind = {correction.kind: correction for correction in some_recipe(SHAPE)}
    for kind, name, values in (
        ("plane_range", "span", (0.0, -1.0, float("nan"), 1e300)),
        ("plane_gain", "gain", (np.zeros(SHAPE[0], np.float32), -np.ones(SHAPE[0], np.float32))),
        ("section_lookup", "threshold", (float("nan"), 1e300)),
    ):
        for value in values:
            assert list(replace(by_kind[kind], **{name: value}).faults(SHAPE)), (kind, name, value)
    bias = by_kind["bias_field"]
    start, stop, field = bias.fields[0]
    for wrong in (
        {"shape": (10**9, *SHAPE[1:])},
        {"grid_shape": (10**9, 4, 4)},
        {"shrink": (0, 1, 1)},
        {"lattice": np.zeros((2, 4, 4), np.float32)},
        {"lattice": np.full((4, 4, 4), np.inf, np.float32)},
        {"lattice": np.zeros((4, 4), np.float32)},
    ):
        tampered = replace(bias, fields=((start, stop, replace(field, **wrong)), *bias.fields[1:]))
        assert list(tampered.faults(SHAPE)), wrong
    for planes in ((-1, stop), (start, 10**9), (stop, start)):
        assert list(replace(bias, fields=((*planes, field),)).faults(SHAPE)), planes


def test_a_recipe_that_does_not_fit_ends_in_a_sentence_before_anything_is_written(tmp_path, capsys):
    recipe = Recipe(some_recipe(SHAPE))
    recipe.save(tmp_path / "recipe.json", shape=list(SHAPE))
    image = tmp_path / "image.ome.zarr"
    write_volume(image, np.full(SHAPE, 100, np.float32), voxel_um=(20, 4, 4))
    stored = json.loads((tmp_path / "recipe.json").read_text())
    entry = next(e for e in stored["corrections"] if e["kind"] == "plane_range")
    file = tmp_path / entry["file"]
    correction = load_correction(file)
    save_correction(replace(correction, lower=correction.lower[:1]), file)
    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"plane_range, does not fit .*: lower has the shape \(1,\), expected \(9,\)"):
        Recipe.load(tmp_path / "recipe.json").apply(np.ones(SHAPE, np.float32), tissue=np.ones(SHAPE, bool))
    write_volume(tmp_path / "mask.ome.zarr", np.ones(SHAPE, np.uint8), voxel_um=(20, 4, 4))
    with pytest.raises(SystemExit) as ended:
        main(["render", str(tmp_path / "recipe.json"), str(image), str(tmp_path / "out.ome.zarr")])
    assert ended.value.code == 2
    assert "lower has the shape (1,), expected (9,)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.ome.zarr").exists()
    np.savez(file, settings=np.array(json.dumps({"kind": "plane_range"})))
    with pytest.raises(InputError, match="holds a plane_range with parts missing"):
        load_correction(file)
