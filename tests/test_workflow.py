"""The workflow as a user runs it: what it computes, what it caches, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import checks
import numpy as np
import pytest
import zarr
from conftest import ROOT, PhantomRun, Run, runner, skip_with_gpu

import n4flow
from n4flow.pipeline.parameters import resolve, schema
from n4flow.pipeline.run import Result, SampleResult
from n4flow.pipeline.stages import STAGES, settings_of
from n4flow.pipeline.verify import verify as n4flow_verify

pytestmark = pytest.mark.engine

PROCESSES = {
    "INSPECT",
    "SHRINK",
    "TISSUE_MASK",
    "N4_SECTIONS",
    "PROVE",
    "PLANE_STATISTICS",
    "INTENSITY",
    "RENDER",
    "FINISH",
    "PUBLISH",
    "PROVENANCE",
}
PLAIN = {"bias": "off", "normalize": "false", "match": "off", "smooth_z": 0}


def options(parameters: dict[str, object]) -> list[str]:
    """Return parameters as a command line has them."""
    return [text for name, value in parameters.items() for text in (f"--{name}", str(value))]


def store(outdir: Path, sample: str = "phantom") -> Path:
    return outdir / sample / f"{sample}.ome.zarr"


def test_every_process_runs_and_results_are_published(phantom_run: PhantomRun):
    assert phantom_run.first.ran() == PROCESSES
    published = {path.name for path in (phantom_run.first.outdir / "phantom").iterdir()}
    assert published == {
        "phantom.ome.zarr",
        "mask.ome.zarr",
        "recipe.json",
        "corrections",
        "metrics.json",
        "checksums.json",
        "sections.tsv",
        "summary.json",
        "report.html",
    }
    index = (phantom_run.first.outdir / "index.html").read_text()
    assert index.count("phantom/report.html") == 1
    table = json.loads((phantom_run.first.outdir / "pipeline_info" / "n4flow_mqc.json").read_text())
    assert list(table["data"]) == ["phantom"]


def test_a_run_ends_with_verdict_store_and_report_of_each_sample(phantom_run: PhantomRun):
    folder = phantom_run.first.outdir / "phantom"
    sample = SampleResult("phantom", folder, json.loads((folder / "metrics.json").read_text()))
    table = Result(phantom_run.first.outdir, (sample,)).table()  # of `n4flow run`
    assert str(store(phantom_run.first.outdir)) in table
    assert f"{table}\n" in phantom_run.first.output


def test_help_is_the_schema_s(workflow: Run):
    shown = workflow("--help_all").output
    for name, rule in schema().items():
        assert re.search(rf"^  --{name} +{re.escape(rule['description'])} \[", shown, re.MULTILINE), name


def test_the_store_has_the_input_s_geometry(phantom_run: PhantomRun):
    before, after = n4flow.open_volume(phantom_run.phantom), n4flow.open_volume(store(phantom_run.first.outdir))
    assert after.shape == before.shape
    assert after.voxel_um == before.voxel_um
    assert after.origin_um == before.origin_um
    mask = n4flow.open_volume(phantom_run.first.outdir / "phantom" / "mask.ome.zarr")
    assert (mask.shape, mask.voxel_um) == (before.shape, before.voxel_um)


def test_n4flow_run_gives_equal_voxels(phantom_run: PhantomRun, tmp_path: Path):
    sections = phantom_run.phantom.parent / "phantom.sections.tsv"
    result = n4flow.run(phantom_run.phantom, tmp_path, sections=str(sections), shrink=2, slab_planes=7)
    for name in ("phantom.ome.zarr", "mask.ome.zarr"):
        own, workflow_s = result.samples[0].folder / name, phantom_run.first.outdir / "phantom" / name
        assert n4flow.open_volume(own).digest() == n4flow.open_volume(workflow_s).digest()


def test_the_published_recipe_renders_the_published_store(phantom_run: PhantomRun, tmp_path: Path):
    recipe = n4flow.Recipe.load(phantom_run.first.outdir / "phantom" / "recipe.json")
    n4flow.render(n4flow.open_volume(phantom_run.phantom), recipe, tmp_path / "again.ome.zarr")
    again = n4flow.open_volume(tmp_path / "again.ome.zarr")
    assert again.digest() == n4flow.open_volume(store(phantom_run.first.outdir)).digest()


def test_resume_runs_what_a_changed_parameter_touches_and_nothing_else(phantom_run: PhantomRun):
    unchanged = phantom_run.workflow("-resume")
    assert unchanged.ran() == {"PUBLISH"}  # which finds in place what it would put there
    assert unchanged.ran("CACHED") == PROCESSES - {"PUBLISH"}
    smoother = phantom_run.workflow("-resume", "--smooth_z", "3", outdir=phantom_run.first.outdir.parent / "smoother")
    assert smoother.ran() == {"INTENSITY", "RENDER", "FINISH", "PUBLISH", "PROVENANCE"}
    first, other = (n4flow.open_volume(store(run.outdir)).digest() for run in (phantom_run.first, smoother))
    assert first != other


def test_what_is_written_does_not_touch_what_was_read(workflow: Run, tmp_path: Path):
    volume = np.random.default_rng(1).uniform(10, 200, (6, 40, 50)).astype(np.float32)
    from n4flow.io.writers import write_volume

    write_volume(tmp_path / "in.ome.zarr", volume, voxel_um=(10, 5, 5))
    arguments = ["--input", tmp_path / "in.ome.zarr", *options(PLAIN), "-resume"]
    workflow(*arguments)
    again = workflow(*arguments, "--dtype", "uint8")
    assert again.ran("CACHED") >= {"SHRINK", "TISSUE_MASK"}  # though INSPECT foresees other memory for RENDER


def test_an_image_in_several_tiff_files_gives_the_voxels_of_one_store(workflow: Run, tmp_path: Path):
    """An OME-TIFF names the files that hold its planes; the first one is given."""
    import tifffile

    from n4flow.io.writers import write_volume

    values = np.random.default_rng(3).integers(1, 60000, (6, 40, 50)).astype(np.uint16)
    names = [f"brain_{i}.ome.tif" for i in range(3)]
    parts = "".join(
        f'<TiffData FirstZ="{2 * i}" IFD="0" PlaneCount="2"><UUID FileName="{name}">urn:uuid:{i}</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    sizes = 'SizeX="50" SizeY="40" SizeZ="6" SizeC="1" SizeT="1"'
    lengths = 'PhysicalSizeX="5" PhysicalSizeY="5" PhysicalSizeZ="10"'
    (tmp_path / "scan").mkdir()
    for i, name in enumerate(names):
        ome = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{i}"><Image ID="Image:0">'
            f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {sizes} {lengths}>'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
        )
        planes = values[2 * i : 2 * i + 2]
        tifffile.imwrite(tmp_path / "scan" / name, planes, description=ome, metadata=None, photometric="minisblack")
    write_volume(tmp_path / "brain_0.ome.zarr", values, voxel_um=(10, 5, 5))
    settings = {**PLAIN, "shrink": 1}
    one = n4flow.run(tmp_path / "brain_0.ome.zarr", tmp_path / "one", **settings)
    several = workflow("--input", tmp_path / "scan" / names[0], *options(settings))
    for name in ("brain_0.ome.zarr", "mask.ome.zarr"):
        own, workflow_s = one.samples[0].folder / name, several.outdir / "brain_0" / name
        assert n4flow.open_volume(own).digest() == n4flow.open_volume(workflow_s).digest()


def test_folders_of_planes_are_staged_as_one_folder(workflow: Run, tmp_path: Path):
    """A channel by the sheet, and one by a pattern; a folder is a section, and -resume sees a plane that changes.

    Their masks are a folder of planes, too, and a pattern.
    """
    import tifffile

    values = np.random.default_rng(3).integers(1, 60000, (6, 40, 50)).astype(np.uint16)
    for z, plane in enumerate(values):
        folder = tmp_path / "my brain" / f"s{z // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"p{z % 2}_C0.tif", plane // 2, metadata=None)
        tifffile.imwrite(folder / f"p{z % 2}_C1.tif", plane, metadata=None)
    tissue = values > 20000
    (tmp_path / "my mask").mkdir()
    for z, plane in enumerate(tissue):
        tifffile.imwrite(tmp_path / "my mask" / f"m{z}.tif", plane.astype(np.uint8), metadata=None)
    (tmp_path / "sheet.csv").write_text(
        "sample,image,voxel_um,channel,mask\n"
        "a,my brain,10 5 5,C1,my mask\n"
        "b,my brain/s*/*_C1.tif,10 5 5,,my mask/m*.tif\n"
    )
    arguments = ["--input", tmp_path / "sheet.csv", "--dtype", "input", *options(PLAIN)]
    several = workflow(*arguments)
    for name in ("a", "b"):
        assert np.array_equal(n4flow.open_volume(store(several.outdir, name)).read(slice(None)), values)
        written = n4flow.open_volume(several.outdir / name / "mask.ome.zarr").read(slice(None))
        assert np.array_equal(written > 0, tissue)
        assert (several.outdir / name / "sections.tsv").read_text().splitlines()[2].startswith("s1\t2\t4")
    tifffile.imwrite(tmp_path / "my brain" / "s1" / "p0_C1.tif", values[5], metadata=None)
    assert workflow(*arguments, "-resume").ran() >= {"INSPECT", "SHRINK", "RENDER"}


def test_two_samples_of_a_sheet_keep_apart_and_with_everything_off_their_bits(workflow: Run, tmp_path: Path):
    from n4flow.io.writers import write_volume

    rng = np.random.default_rng(2)
    volumes = {
        "a": rng.uniform(10, 200, (6, 40, 50)).astype(np.float32),
        "b": np.pad(rng.integers(1, 60000, (40, 32, 41)).astype(np.uint16), ((0, 0), (3, 5), (9, 0))),
    }
    for name, volume in volumes.items():
        write_volume(tmp_path / f"volume {name}.npy", volume)
    (tmp_path / "samples.csv").write_text(
        "sample,image,sections,voxel_um\na,volume a.npy,2,10 5 5\nb,volume b.npy,5,20 4 4\n"
    )
    run = workflow("--input", tmp_path / "samples.csv", "--dtype", "input", *options(PLAIN))
    for name, size in [("a", 10), ("b", 20)]:
        written = n4flow.open_volume(store(run.outdir, name))
        assert written.dtype == volumes[name].dtype
        assert np.array_equal(written.read(slice(None)), volumes[name])
        assert written.voxel_um["z"] == size
    assert len((run.outdir / "b" / "sections.tsv").read_text().splitlines()) == 1 + 5
    assert "PLANE_STATISTICS" not in run.ran()


def test_all_channels_are_those_of_n4flow_run(workflow: Run, tmp_path: Path):
    """One of them leads; a change of that is no change for what does not depend on it."""
    from n4flow.io.writers import write_volume

    y, x = np.mgrid[-1:1:48j, -1:1:56j]
    shading = np.stack([np.exp(0.4 * x), np.exp(-0.3 * y)])[:, None] * np.where(y * y + x * x < 0.6, 900, 90)
    values = shading * np.random.default_rng(5).gamma(300, 1 / 300, (2, 12, 48, 56))
    write_volume(tmp_path / "a.ome.zarr", values.astype(np.float32), voxel_um=(20, 5, 5))
    given = {"sections": 2, "iterations": "3,3", "normalize": "false", "match": "off", "smooth_z": 0}
    given |= {"channel": "all", "trust": "full", "fit_channel": 1}
    run = workflow("--input", tmp_path / "a.ome.zarr", *options(given))
    names = [task["name"].split(" ")[0] for task in run.tasks]
    for channel in (0, 1):
        assert any(task["name"].startswith(f"RENDER (a channel {channel} ") for task in run.tasks)
    assert (names.count("N4_SECTIONS"), names.count("PROVE"), names.count("JOIN_CHANNELS")) == (1, 2, 1)
    own = json.loads((run.outdir / "pipeline_info" / "parameters.json").read_text())
    own = {name: value for name, value in own.items() if name not in ("input", "outdir")}
    alone = n4flow.run(tmp_path / "a.ome.zarr", tmp_path / "here", **own).samples[0]
    for level in zarr.open_group(alone.store).array_keys():
        there, here = (zarr.open_group(path)[level][:] for path in (store(run.outdir, "a"), alone.store))
        assert np.array_equal(there, here)
    assert not np.allclose(there, values, rtol=0.05)
    assert n4flow_verify(run.outdir).samples == ("a",)
    again = workflow("--input", tmp_path / "a.ome.zarr", *options({**given, "fit_channel": "each"}), "-resume")
    assert "SHRINK" in again.ran("CACHED") - again.ran()
    assert {"N4_SECTIONS", "RENDER", "JOIN_CHANNELS"} <= again.ran()
    assert len(list((again.outdir / "a").glob("channel_*/mask.ome.zarr"))) == 2


def test_two_pass_fits_sections_and_volume_under_the_other_parser_too(phantom_run: PhantomRun, tmp_path: Path):
    asked = {"bias": "two_pass", "iterations": "10,10,10,10"}
    run = phantom_run.workflow(*options(asked), parser="v2", outdir=phantom_run.first.outdir.parent / "two_pass")
    assert run.ran() == PROCESSES | {"N4_VOLUME"}
    recipe = json.loads((run.outdir / "phantom" / "recipe.json").read_text())
    kinds = [correction["kind"] for correction in recipe["corrections"]]
    assert kinds == ["bias_field", "bias_field", "plane_range", "section_lookup", "plane_gain"]
    fields = sorted(run.folders("N4_VOLUME")[0].glob("30*.npz"))
    checks.CHECKS["N4_VOLUME"](checks.Case(phantom_run.phantom.parent), fields)
    sections = phantom_run.phantom.parent / "phantom.sections.tsv"
    result = n4flow.run(phantom_run.phantom, tmp_path, sections=str(sections), shrink=2, **asked)
    assert n4flow.open_volume(result.samples[0].store).digest() == n4flow.open_volume(store(run.outdir)).digest()


def test_auto_that_takes_the_cpu_with_the_gpu_profile_says_so(phantom_run: PhantomRun):
    skip_with_gpu()
    outdir = phantom_run.first.outdir.parent / "fallback"
    asked = options(PLAIN | {"bias": "volume", "backend": "auto", "iterations": "5"})
    run = phantom_run.workflow("-resume", *asked, profile="gpu,test", outdir=outdir)
    assert "N4_VOLUME" in run.ran()
    assert "PROBE_GPU" not in run.ran()
    assert "sample phantom: backend auto took the CPU, as no GPU works in its task" in run.output


def test_harmonize_takes_the_place_of_matching_and_smoothing(workflow: Run, phantom_run: PhantomRun, tmp_path: Path):
    sections = phantom_run.phantom.parent / "phantom.sections.tsv"
    height, width = n4flow.open_volume(phantom_run.phantom).shape[1:]
    flat = tmp_path / "flat.npy"
    np.save(flat, np.linspace(0.8, 1.2, width, dtype=np.float32) * np.ones((1, height, 1), np.float32))
    given = ["--sections", sections, "--harmonize", "auto", "--flat_field", flat]
    run = workflow("--input", phantom_run.phantom, *given)
    assert run.ran() == PROCESSES - {"N4_SECTIONS", "PROVE"} | {"HARMONIZE"}
    harmonized = sorted(run.folders("HARMONIZE")[0].glob("35*.npz"))
    checks.CHECKS["HARMONIZE"](checks.Case(phantom_run.phantom.parent), harmonized)
    recipe = json.loads((run.outdir / "phantom" / "recipe.json").read_text())
    assert [correction["kind"] for correction in recipe["corrections"]] == ["harmonization", "plane_range"]
    asked = {"sections": str(sections), "shrink": 2, "harmonize": "auto", "flat_field": str(flat)}
    result = n4flow.run(phantom_run.phantom, tmp_path, **asked)
    assert n4flow.open_volume(result.samples[0].store).digest() == n4flow.open_volume(store(run.outdir)).digest()
    crate = json.loads((run.outdir / "pipeline_info" / "run.json").read_text())
    assert str(flat) in crate["inputs"]


@pytest.mark.parametrize("process", ["INSPECT", "N4_SECTIONS", "PROVE", "INTENSITY", "RENDER"])
def test_a_process_is_given_the_parameters_that_the_schema_lists_for_it(phantom_run: PhantomRun, process: str):
    """So that a new parameter changes the schema, nextflow.config and the code that uses it, and no process."""
    settled = json.loads((phantom_run.first.outdir / "pipeline_info" / "parameters.json").read_text())
    rules = {name: schema()[name] for name in settings_of(process) if not schema()[name].get("sample")}
    # a flag is said where it is not as usual, and here all are
    names = [name for name, rule in rules.items() if rule["type"] != "boolean" and settled[name] is not None]
    for folder in phantom_run.first.folders(process):
        options = dict(re.findall(r"--([a-z-]+) '([^']*)'", (folder / ".command.sh").read_text()))
        given = resolve({name: options[name.replace("_", "-")] for name in names})
        assert {name: given[name] for name in names} == {name: settled[name] for name in names}


def test_stubs_run_on_a_machine_of_one_core_though_tasks_ask_for_two(nextflow: str, tmp_path: Path):
    alone = tmp_path / "nextflow"
    core = f"taskset -c {min(os.sched_getaffinity(0))} " if shutil.which("taskset") else ""
    alone.write_text(f'#!/bin/sh\nexec {core}"{nextflow}" "$@"\n')
    alone.chmod(0o755)
    run = runner(str(alone), tmp_path)("-stub-run", "--bias", "two_pass", "--backend", "gpu")
    assert run.ran() == PROCESSES | {"PHANTOM", "PROBE_GPU", "N4_VOLUME"}


def faults(folder: Path) -> list[tuple[str, list[str], str]]:
    """Return (name, arguments, sentences) of every mistake that must stop a run before its first task."""
    from n4flow.io.writers import write_volume

    volume = np.full((8, 20, 24), 7, np.uint16)
    good, flat = folder / "good.ome.zarr", folder / "no size.npy"
    write_volume(good, volume, voxel_um=(10, 5, 5))
    np.save(flat, volume)
    (folder / "rows.csv").write_text("sample;image\na;no size.npy\n")
    write_volume(folder / "mask.ome.zarr", volume[:, :, :20].astype(np.uint8), voxel_um=(10, 5, 5))
    write_volume(folder / "two.mhd", volume, voxel_um=(10, 5, 5))
    np.save(folder / "bob's.npy", volume)
    np.save(folder / "theirs.npy", volume)
    (folder / "results" / "theirs").mkdir(parents=True)
    (folder / "results" / "theirs" / "raw.txt").touch()
    noted = folder / "results" / "noted"
    noted.mkdir()
    for name in ("recipe.json", "notes.txt"):
        (noted / name).touch()
    (noted / "checksums.json").write_text('{"files": {"recipe.json": ""}, "stores": {}}')
    np.save(folder / "noted.npy", volume)
    write_volume(folder / "results" / "good" / "good.ome.zarr", volume, voxel_um=(10, 5, 5))
    at = ["--input", str(good), "--outdir", str(folder / "elsewhere")]  # overrides the fixture's own --outdir
    return [
        (
            "parameters",  # all that are wrong, in one go
            [*at, "--smoth_z", "3", "--smooth_z", "-1", "--match", "sections", "--voxel_um", "1 2 3'; touch owned; '"],
            (
                "unknown parameter smoth_z; did you mean smooth_z?\n"
                "parameter smooth_z must be a number from 0 to 1000 (planes), got -1\n"
                "parameter match must be off, section or plane, got 'sections'\n"
                "parameter voxel_um must be three positive numbers"
            ),
        ),
        ("separator", ["--input", str(folder / "rows.csv")], "channel; separate cells by commas, not by ;"),
        ("missing", ["--input", str(folder / "none.zarr")], "parameter input: "),
        ("two files", ["--input", str(folder / "two.mhd")], "keeps its voxels in another file, which tasks do not see"),
        ("no size", ["--input", str(flat)], "sample no size: "),
        ("mask", [*at, "--mask", str(folder / "mask.ome.zarr")], "has the shape (8, 20, 20), and the image"),
        ("name", ["--input", str(folder / "bob's.npy")], "sample name 'bob's' must be letters, digits, spaces and"),
        (
            "inside",
            ["--input", str(folder / "results" / "good" / "good.ome.zarr")],
            "where the results go; choose another",
        ),
        ("in input", ["--input", str(good), "--outdir", str(good)], "where the results go, lies in the input"),
        ("not ours", ["--input", str(folder / "theirs.npy")], "exists and is no result of n4flow; remove it or choose"),
        (
            "notes",
            ["--input", str(folder / "noted.npy")],
            "noted holds notes.txt, which no run wrote; move it away or choose",
        ),
        (
            "harmonize",
            [*at, "--harmonize", "safe", "--smooth_z", "2"],
            "harmonize takes the place of match and smooth_z, got harmonize safe with smooth_z 2; leave one of",
        ),
        (
            "sections",
            [*at, "--backend", "gpu", "--bias", "sections"],
            "backend gpu is for the field of the whole volume, and bias is sections, which are fitted on CPUs; give",
        ),
        ("gpu", [*at, "--backend", "gpu", "--bias", "volume"], "no working GPU: "),
    ]


# What the head process finds ends with 2, what a task finds with 1, as tasks of other samples are stopped first.
EARLY = "parameters,separator,missing,two files,harmonize,sections,name,inside,in input,not ours,notes"
CODES = dict.fromkeys(EARLY.split(","), 2) | {"gpu": 3}
FAULTS = EARLY + ",no size,mask,gpu"  # of what INSPECT finds one without and one with a file beside the image


@pytest.mark.parametrize("name", FAULTS.split(","))
def test_a_mistake_stops_the_run_before_its_first_task_in_one_sentence(workflow: Run, tmp_path: Path, name: str):
    arguments, sentences = next((a, s) for n, a, s in faults(tmp_path) if n == name)
    if name == "gpu":
        skip_with_gpu()
    run = workflow(*arguments, code=CODES.get(name, 1))
    for sentence in sentences.splitlines():
        said = [line for line in run.output.splitlines() if sentence in line]
        assert len(said) == 1, run.output
    assert run.ran() <= (set() if name in EARLY.split(",") else {"INSPECT", "PROBE_GPU"})
    assert not re.search(r"Traceback|\bat [\w.$]+\(|Exception", run.output), run.output
    assert not (tmp_path / "elsewhere" / "good").exists()
    assert {path.name for path in (tmp_path / "good.ome.zarr").iterdir()} == {"0", "zarr.json"}
    assert not list(tmp_path.rglob("owned"))
    if name in ("inside", "not ours"):
        assert {
            path.name for path in (tmp_path / "results").rglob("*") if path.name in ("raw.txt", "good.ome.zarr")
        } == {
            "raw.txt",
            "good.ome.zarr",
        }
    if name == "no size":
        assert "voxel_um" in said[0]


def test_the_workflow_reads_top_to_bottom():
    texts = {name: (ROOT / name).read_text() for name in ("main.nf", "modules/n4flow.nf")}
    bodies = {name: re.search("^workflow .*", text, re.MULTILINE | re.DOTALL)[0] for name, text in texts.items()}
    calls = {name: re.findall(r"^\s+([A-Z0-9_]+)\(", body, re.MULTILINE) for name, body in bodies.items()}
    assert all(len(text.splitlines()) < 120 for text in texts.values())
    assert calls["main.nf"] == ["PROBE_GPU", "PHANTOM", "N4FLOW", "PUBLISH", "PROVENANCE"]
    assert calls["modules/n4flow.nf"] == [
        "REMOTE_STATE",
        "INSPECT",
        "SHRINK",
        "TISSUE_MASK",
        "N4_SECTIONS",
        "N4_VOLUME",
        "PROVE",
        "HARMONIZE",
        "PLANE_STATISTICS",
        "INTENSITY",
        "RENDER",
        "FINISH",
    ]


def test_every_process_is_given_what_its_inputs_are_called():
    """`inputs` takes fields of a sample in the order of a process's tuple; both have the same names."""
    calls = re.findall(r"inputs\(\w+(?:\(samples\))?, '(\w+)', \[([^]]*)\]\)", (ROOT / "modules/n4flow.nf").read_text())
    assert {name for name, _fields in calls} == {"INSPECT", *(stage.process for stage in STAGES)}
    for process, fields in calls:
        text = (ROOT / "modules" / f"{process.lower()}.nf").read_text()
        declared = re.search(r"input:\s+tuple val\(meta\), val\(volume\),(.*?)\n    (?:val|output|\n)", text, re.DOTALL)
        names = re.findall(r"(?:val|path)\((\w+)", declared[1]) if declared else None
        assert (process, re.findall(r"\w+", fields)) == (process, names)


def test_modules_are_short_and_pass_every_setting_as_an_input():
    for module in (ROOT / "modules").glob("*.nf"):
        text = module.read_text()
        assert "ext.args" not in text
        assert len(text.splitlines()) < 60 or module.stem == "n4flow"
        if re.search("^process ", text, re.MULTILINE):
            assert "params." not in text
            assert "stub:" in text


def test_every_parameter_is_used_by_the_workflow():
    used = "".join(
        path.read_text() for path in [ROOT / "main.nf", *ROOT.glob("modules/*.nf"), *ROOT.glob("conf/*.config")]
    )
    unused = [name for name, rule in schema().items() if "stages" not in rule and not re.search(rf"\b{name}\b", used)]
    assert unused == ["report_mb"]  # FINISH reads it from the file of all parameters
