"""Parameters: one schema, the same defaults everywhere, one sentence for each mistake."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest

from n4flow.errors import InputError
from n4flow.pipeline.parameters import (
    RULES,
    command_line,
    defaults,
    iteration_list,
    meets,
    resolve,
    sample_sheet,
    schema,
    voxel_size,
)

ROOT = Path(__file__).parents[3]

MISTAKES = [
    ({"smoth_z": 1}, "unknown parameter smoth_z; did you mean smooth_z?"),
    ({"smooth_z": -1}, "parameter smooth_z must be a number from 0 to 1000 (planes), got -1"),
    ({"match": "sections"}, "parameter match must be off, section or plane, got 'sections'"),
    ({"n_bins": "many"}, "parameter n_bins must be a whole number from 8 to 65536, got 'many'"),
    ({"spline_um": 0}, "parameter spline_um must be a number above 0 (micrometres), got 0"),
    (
        {"iterations": "50,x"},
        "parameter iterations must be whole numbers from 1 to 999999, separated by commas, got '50,x'",
    ),
    (
        {"iterations": "50,1000000"},
        "parameter iterations must be whole numbers from 1 to 999999, separated by commas, got '50,1000000'",
    ),
    ({"normalize": "maybe"}, "parameter normalize must be true or false, got 'maybe'"),
    ({"percentile_max": 101}, "parameter percentile_max must be a number above 50 to 100 (percent), got 101"),
    ({"smooth_z": "-1"}, "parameter smooth_z must be a number from 0 to 1000 (planes), got -1"),
    ({"smooth_z": "nan"}, "parameter smooth_z must be a number from 0 to 1000 (planes), got nan"),
    ({"iterations": 0}, "parameter iterations must be whole numbers from 1 to 999999, separated by commas, got 0"),
    (
        {"voxel_um": "1 2 3'; rm -r ~"},
        "parameter voxel_um must be three positive numbers 'z y x' (micrometres), got \"1 2 3'; rm -r ~\"",
    ),
    ({"norm": 1}, "unknown parameter norm; did you mean normalize?"),
    ({"harmonize": "yes"}, "parameter harmonize must be off, safe, auto or full, got 'yes'"),
    (
        {"harmonize": "safe", "match": "section"},
        "harmonize takes the place of match and smooth_z, got harmonize safe with match section; leave one of them out",
    ),
    (
        {"harmonize": "auto", "smooth_z": 2},
        "harmonize takes the place of match and smooth_z, got harmonize auto with smooth_z 2; leave one of them out",
    ),
]


@pytest.mark.parametrize(("given", "sentence"), MISTAKES)
def test_each_mistake_has_its_sentence(given, sentence):
    with pytest.raises(InputError) as caught:
        resolve(given)
    assert str(caught.value) == sentence


def test_text_from_a_command_line_is_typed():
    resolved = resolve({"smooth_z": "3", "sections": "30", "normalize": "false", "shrink": "4", "iterations": "20"})
    assert resolved["smooth_z"] == 3.0
    assert resolved["sections"] == 30
    assert resolved["normalize"] is False
    assert resolved["shrink"] == 4
    assert iteration_list(resolved["iterations"]) == (20,)
    assert resolve({"sections": "table.tsv"})["sections"] == "table.tsv"
    assert resolve({"sections": Path("a") / "table.tsv"})["sections"] == "a/table.tsv"
    assert resolve({"voxel_um": (10, 2.5, 3)})["voxel_um"] == "10 2.5 3"
    shrink = resolve({"shrink": 2.0})["shrink"]
    assert (shrink, type(shrink)) == (2, int)


def test_voxel_size_has_three_positive_numbers():
    assert voxel_size("10, 2.5 3") == {"z": 10.0, "y": 2.5, "x": 3.0}
    with pytest.raises(InputError, match=r"voxel_um must be 3 numbers separated by spaces or commas, got '10 2'"):
        voxel_size("10 2")
    with pytest.raises(InputError, match="three positive sizes"):
        voxel_size("10 0 1")


def config_parameters() -> dict[str, object]:
    """Read the defaults of nextflow.config."""
    block = re.search(r"^params \{(.*?)^\}", (ROOT / "nextflow.config").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    literals = dict(re.findall(r"^\s+(\w+)\s*=\s*(.*?)\s*(?://.*)?$", block[1], re.MULTILINE))
    return {name: json.loads(text.replace("'", '"')) for name, text in literals.items()}


def test_the_workflow_and_the_package_have_the_same_parameters_and_defaults():
    assert config_parameters() == defaults()


def test_the_schema_at_the_top_is_the_package_s():
    top = ROOT / "nextflow_schema.json"
    assert not top.is_symlink()  # launch platforms read it from the forge, as it is stored
    own = ROOT / "python/src/n4flow/nextflow_schema.json"
    assert top.read_text() == own.read_text(), "the package's was changed; run `make format`"


def test_launch_platforms_check_a_sheet_by_the_same_rules():
    """The rows that nf-schema's JSON schema takes are those that a sheet may have."""
    stated = json.loads((ROOT / "assets" / "schema_input.json").read_text())
    assert stated["items"]["required"] == sample_sheet()["required"]
    assert list(stated["items"]["properties"]) == list(sample_sheet()["properties"])
    for name, rule in stated["items"]["properties"].items():
        own = schema()[name] if name in schema() else sample_sheet()["properties"][name]
        assert rule == {key: own[key] for key in rule}, name
        assert {"type", "pattern", "minimum"} & set(own) <= set(rule), name
    check = jsonschema.Draft202012Validator(stated)
    assert check.is_valid([{"sample": "brain", "image": "brain.zarr", "sections": 60, "voxel_um": "10 2.5 2.5"}])
    for wrong in ({"sample": "brain"}, {"sample": "mask", "image": "a"}, {"sample": "a", "image": "a", "sections": 0}):
        assert not check.is_valid([wrong]), wrong


def test_every_default_is_allowed_by_its_own_rule():
    given = {name: value for name, value in defaults().items() if value is not None}
    usual = {"bias": "sections", "backend": "auto", "match": "section", "smooth_z": 2.0}
    assert resolve(given) == defaults() | usual
    assert resolve(given | usual) == resolve(given)


def test_what_harmonize_takes_the_place_of_is_off_with_it():
    harmonized = resolve({"harmonize": "auto"})
    assert [harmonized[name] for name in ("bias", "match", "smooth_z", "normalize")] == ["off", "off", 0.0, True]
    assert resolve({"harmonize": "auto", "match": "off", "smooth_z": 0, "bias": "volume"})["bias"] == "volume"


def test_what_a_row_of_a_sheet_may_leave_empty_is_a_parameter():
    columns = sample_sheet()["properties"]
    assert sample_sheet()["required"] == ["sample", "image"]
    for name in columns.keys() - {"sample", "image"}:
        assert columns[name] == {"$ref": f"#/$defs/input_and_output/properties/{name}"}
        assert name in schema()


def test_every_parameter_says_what_it_is():
    assert all(rule["description"].endswith(".") for rule in schema().values())


def test_rules_are_read_as_json_schema_means_them():
    """`jsonschema` knows every keyword; those that say what a value must be, and that the file has, are known here."""
    from jsonschema import Draft202012Validator

    texts = ["", "0", "1 2 3", "1,2,3", " 50 50", "0 5", "cpu", "off", "section", "x", "1 2 3; rm", "float32"]
    numbers = [-1, -0.5, 0, 1e-9, 0.5, 1, 1.0, 2, 50, 50.1, 64, 65, 99.9, 100, 101, 1000, 1001, 65536, 65537]
    known = set(Draft202012Validator.VALIDATORS) - {"format"}  # which says what a value is for
    for name, rule in schema().items():
        assert set(rule) & known <= set(RULES), name
        for value in (*texts, *numbers, True, False, None, [1]):
            assert meets(value, rule) == Draft202012Validator(rule).is_valid(value), (name, value)


@pytest.mark.parametrize(
    "given",
    [
        {"sections": 30, "voxel_um": "1 2 3", "normalize": False, "trust": "full", "smooth_z": 3.5},
        {"harmonize": "safe", "flat_field": "it's.tif"},
        {"bias": "off", "match": "plane", "channel": "DAPI", "report_mb": 0},
        {},
    ],
)
def test_the_command_of_a_run_is_that_run_again(given):
    asked = resolve({"input": "a b.ome.zarr", "outdir": "out", **given})
    words = shlex.split(command_line(asked))
    assert words[:4] == ["n4flow", "run", "a b.ome.zarr", "out"]
    options = {name[2:].replace("-", "_"): value for name, value in zip(words[4::2], words[5::2], strict=True)}
    assert set(options) == set(given)
    assert resolve({"input": "a b.ome.zarr", "outdir": "out", **options}) == asked
