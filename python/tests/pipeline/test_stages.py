"""The table of stages: the workflow, its modules, the memory prediction and the commands say the same."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import n4flow
from n4flow.commands import main
from n4flow.io.writers import write_volume
from n4flow.pipeline import estimate, parameters
from n4flow.pipeline.parameters import defaults, resolve
from n4flow.pipeline.plan import make_plan
from n4flow.pipeline.stages import STAGES, settings_of

ROOT = Path(__file__).parents[3]
NAMES = [stage.name for stage in STAGES]
PROCESSES = list(dict.fromkeys(stage.process for stage in STAGES))


def test_the_workflow_calls_the_stages_in_the_order_of_the_table() -> None:
    body = (ROOT / "modules/n4flow.nf").read_text(encoding="utf-8").partition("workflow N4FLOW {")[2]
    assert [name for name in re.findall(r"^\s*([A-Z0-9_]+)\(", body, re.MULTILINE) if name in PROCESSES] == PROCESSES


def test_a_process_writes_the_correction_that_the_table_names_and_the_names_keep_the_order() -> None:
    files = [stage.file for stage in STAGES if stage.file]
    assert files == sorted(files)
    for stage in STAGES:
        if stage.file and stage.process == stage.name:  # those of INTENSITY are named by its command
            module = (ROOT / "modules" / f"{stage.name.lower()}.nf").read_text(encoding="utf-8")
            assert set(re.findall(r"\b\d\d_[a-z_]*[a-z]", module)) == {stage.file}


def test_each_estimating_stage_has_its_function() -> None:
    assert [stage.name for stage in STAGES if stage.estimates and not hasattr(estimate, stage.name.lower())] == []


def test_settings_are_of_processes_that_exist() -> None:
    processes = {file.stem.upper() for file in (ROOT / "modules").glob("*.nf")}
    listed = {process for rule in parameters.schema().values() for process in rule.get("stages", ())}
    assert listed <= processes
    assert set(PROCESSES) - {"TISSUE_MASK"} <= listed | {"TISSUE_MASK"}


def test_memory_is_predicted_for_each_stage_that_reads_voxels(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.ome.zarr", np.ones((4, 32, 32), np.uint16), voxel_um=(20, 4, 5))
    predicted = make_plan(tmp_path / "v.ome.zarr", defaults() | {"bias": "off"}).summary()["memory_bytes"]
    assert set(predicted) == {
        stage.process for stage in STAGES if {"volume", "shrunken", "evidence"} & set(stage.reads)
    }


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({}, {"N4_VOLUME", "HARMONIZE"}),
        ({"bias": "two_pass"}, {"HARMONIZE"}),
        ({"harmonize": "safe"}, {"N4_SECTIONS", "N4_VOLUME", "PROVE", "MATCH_HISTOGRAMS", "SMOOTH_Z"}),
        (
            {"harmonize": "safe", "normalize": False},
            {"N4_SECTIONS", "N4_VOLUME", "PROVE", "PLANE_STATISTICS", "NORMALIZE", "MATCH_HISTOGRAMS", "SMOOTH_Z"},
        ),
    ],
)
def test_parameters_ask_for_stages(given: dict[str, object], left_out: set[str]) -> None:
    settled = resolve(given)
    assert [stage.name for stage in STAGES if stage.asked(settled)] == [n for n in NAMES if n not in left_out]


def test_a_new_parameter_is_an_entry_of_the_schema_its_default_and_the_code_that_uses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry alone gives it to the stage's command, to `run`, to `inspect` and to the errors."""
    rule = {"type": "integer", "minimum": 1, "unit": "planes", "default": 3, "description": "Reach of it."}
    rules = parameters.schema() | {"reach": rule | {"stages": ["INSPECT", "INTENSITY"]}}
    monkeypatch.setattr(parameters, "schema", lambda: rules)
    for module in ("n4flow.commands.options", "n4flow.pipeline.stages", "n4flow.commands.run"):
        monkeypatch.setattr(f"{module}.schema", lambda: rules)
    monkeypatch.delitem(sys.modules, "n4flow.commands.estimate", raising=False)  # whose options are made at its import
    assert settings_of("INTENSITY")[-1] == "reach"
    volume = np.random.default_rng(0).integers(1, 9, (4, 32, 32)).astype(np.uint16)
    volume[:, 8:24, 8:24] += 90
    write_volume(tmp_path / "v.npy", volume, voxel_um=(20, 4, 5))

    def said(*arguments: object) -> str:
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        return " ".join("".join(capsys.readouterr()).split())

    assert "--reach INTEGER Reach of it. [a whole number from 1 upwards (planes); default 3]" in said(
        "intensity", "--help"
    )
    assert "--reach INTEGER Reach of it." in said("run", "--help")
    wrong = "parameter reach must be a whole number from 1 upwards (planes), got 0"
    assert wrong in said("run", tmp_path / "v.npy", tmp_path / "out", "--reach", "0")
    histograms = tmp_path / "histograms"
    histograms.mkdir()
    assert wrong in said("intensity", histograms, "--sections", "2", "--reach", "0", "--out", tmp_path)
    taken: dict[str, object] = {}
    smooth_z = estimate.smooth_z
    monkeypatch.setattr(
        estimate, "smooth_z", lambda inputs, settings: taken.update(settings) or smooth_z(inputs, settings)
    )
    n4flow.run(tmp_path / "v.npy", tmp_path / "out", bias="off", voxel_um="20 4 5", reach="7")
    assert taken["reach"] == 7
    assert json.loads((tmp_path / "out" / "v" / "metrics.json").read_text())["parameters"]["reach"] == 7
