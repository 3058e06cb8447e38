"""Results are checked against what was written: any change is found, and named."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr
from rocrate.rocrate import ROCrate

import n4flow
from n4flow.errors import InputError, N4flowError
from n4flow.io.omezarr.checksums import chunk_checksum
from n4flow.io.writers import write_volume
from n4flow.pipeline.provenance import Run, write_provenance
from n4flow.pipeline.verify import verify
from n4flow.pipeline.versions import tool_versions


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of a run with three slabs, two levels, and chunks that are cut by every edge."""
    folder = tmp_path_factory.mktemp("verify")
    volume = np.random.default_rng(3).uniform(10, 200, (40, 270, 260)).astype(np.float32)
    write_volume(folder / "brain.npy", volume)
    off = {"bias": "off", "normalize": False, "match": "off", "smooth_z": 0}
    n4flow.run(folder / "brain.npy", folder / "out", voxel_um="10 5 5", slab_planes=16, **off)
    return folder / "out"


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    """Return a copy of the results that a test may damage."""
    return Path(shutil.copytree(results, tmp_path / "out"))


def test_what_was_written_is_verified(results: Path):
    found = verify(results)
    stated = json.loads((results / "brain" / "checksums.json").read_text())
    assert found.samples == ("brain",)
    assert found.chunks == sum(len(lv["checksums"]) for store in stated["stores"].values() for lv in store["levels"])
    assert verify(results / "brain").chunks == found.chunks


def test_a_checksum_is_the_crc_32c_of_the_voxels_inside(results: Path):
    # RFC 3720, B.4: 32 bytes from 0 to 31.
    assert chunk_checksum(np.arange(32, dtype=np.uint8).reshape(2, 4, 4), (2, 4, 4)) == 0x46DD794E
    cut = np.arange(3 * 4 * 5, dtype=">u2").reshape(3, 4, 5)
    assert chunk_checksum(cut, (2, 3, 4)) == chunk_checksum(cut[:2, :3, :4].astype("<u2"), (2, 3, 4))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("brain/brain.ome.zarr/1/c/1/0/0", "brain.ome.zarr, level 1"),
        ("brain/mask.ome.zarr/0/c/2/0/0", "mask.ome.zarr, level 0"),
        ("brain/brain.ome.zarr/zarr.json", "brain.ome.zarr/zarr.json has SHA-256 "),
        ("brain/recipe.json", "brain/recipe.json has SHA-256 "),
        ("brain/report.html", "brain/report.html has SHA-256 "),
        ("brain/summary.json", "brain/summary.json has SHA-256 "),
        ("index.html", "index.html has SHA-256 "),
        ("pipeline_info/n4flow_mqc.json", "pipeline_info/n4flow_mqc.json has SHA-256 "),
        ("pipeline_info/parameters.json", "pipeline_info/parameters.json has SHA-256 "),
        ("brain/checksums.json", "checksums.json"),
        ("ro-crate-metadata.json", "ro-crate-metadata.json has SHA-256 "),
        ("pipeline_info/ro-crate-metadata.json.sha256", "ro-crate-metadata.json.sha256 says otherwise"),
    ],
)
def test_a_flipped_byte_is_named(copy: Path, name: str, says: str):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 3] ^= 0x80
    (copy / name).write_bytes(content)
    with pytest.raises(N4flowError) as raised:
        verify(copy)
    assert says in str(raised.value)


def test_the_chunk_that_changed_is_named(copy: Path):
    array = zarr.open_group(copy / "brain" / "brain.ome.zarr")["0"]
    place = (21, 140, 129)
    array[place] += 0.001
    z, y, x = (i // c for i, c in zip(place, array.chunks, strict=True))
    with pytest.raises(N4flowError, match=rf"brain\.ome\.zarr, level 0, chunk {z}/{y}/{x} \(voxels z 16 to 31,"):
        verify(copy)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("brain/brain.ome.zarr/0/c/1/0/0", r"level 0: .*brain\.ome\.zarr lacks 1 files.*c/1/0/0"),
        ("brain/sections.tsv", r"sections\.tsv cannot be read \(No such file"),
        ("brain/checksums.json", r"checksums\.json cannot be read"),
        ("ro-crate-metadata.json", r"ro-crate-metadata\.json is not an RO-Crate"),
    ],
)
def test_what_is_missing_is_named(copy: Path, name: str, says: str):
    (copy / name).unlink()
    with pytest.raises(N4flowError, match=says):
        verify(copy)


@pytest.mark.parametrize("name", ["brain/report.html", "brain/checksums.json", "ro-crate-metadata.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(copy: Path, name: str):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(N4flowError, match=f"{name} (is no regular file|was not written by the run)"):
        verify(copy)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
@pytest.mark.parametrize(
    "where",
    ["", "pipeline_info", "brain", "brain/brain.ome.zarr", "brain/mask.ome.zarr/0/c/0/0"],
)
def test_what_is_foreign_is_named(copy: Path, where: str, kind: str):
    path = copy / where / ".notes"
    if kind == "link":
        path.symlink_to(copy / "brain" / "recipe.json")
    else:
        {"file": Path.touch, "folder": Path.mkdir, "fifo": os.mkfifo}[kind](path)
    with pytest.raises(N4flowError, match=rf"{re.escape(str(path))} was not written by the run; remove it"):
        verify(copy)


@pytest.mark.parametrize(
    "name",
    [
        "brain/recipe.json",
        "brain/brain.ome.zarr/zarr.json",
        "brain/mask.ome.zarr/0/c/0/0/0",
        "brain/brain.ome.zarr/1",
        "brain",
        "pipeline_info",
        "pipeline_info/run.json",
        "ro-crate-metadata.json",
    ],
)
def test_what_was_replaced_by_a_link_to_the_same_is_named(copy: Path, name: str):
    kept = copy.parent / "kept"
    (copy / name).rename(kept)
    (copy / name).symlink_to(kept)
    with pytest.raises(N4flowError, match=rf"{re.escape(str(copy / name))} is a link, and the run wrote none"):
        verify(copy)


def test_sha256sum_checks_the_crate(results: Path):
    subprocess.run(["sha256sum", "--check", "pipeline_info/ro-crate-metadata.json.sha256"], cwd=results, check=True)


def test_a_run_after_one_of_the_workflow_leaves_none_of_its_files(copy: Path):
    names = ("main.nf", "trace.tsv", "timeline.html", "nextflow_report.html")
    for name in names:
        (copy / "pipeline_info" / name).touch()
    verify(copy)
    write_provenance(
        copy, Run("again", {}, [], ""), [copy / "brain" / name for name in ("checksums.json", "summary.json")]
    )
    verify(copy)
    assert not {path.name for path in (copy / "pipeline_info").iterdir()} & set(names)


def test_a_digest_that_was_replaced_together_with_its_checksums_is_found_by_the_crate(copy: Path):
    path = copy / "brain" / "checksums.json"
    stated = json.loads(path.read_text())
    level = stated["stores"]["mask.ome.zarr"]["levels"][0]
    level["digest"] = hashlib.sha256(b"other").hexdigest()
    path.write_text(json.dumps(stated))
    with pytest.raises(N4flowError, match="its digest is not that of its checksums"):
        verify(copy)


def test_a_folder_without_results_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no results"):
        verify(tmp_path)


def test_two_runs_give_equal_digests(results: Path, tmp_path: Path):
    off = {"bias": "off", "normalize": False, "match": "off", "smooth_z": 0}
    n4flow.run(results.parent / "brain.npy", tmp_path, voxel_um="10 5 5", slab_planes=16, threads=1, **off)
    first, other = (json.loads((p / "brain" / "checksums.json").read_text())["stores"] for p in (results, tmp_path))
    assert first == other


def test_the_crate_says_what_ran(results: Path):
    crate = ROCrate(results)
    run = crate.get("#run")
    assert run.type == "CreateAction"
    assert run["instrument"].type == "SoftwareApplication"
    assert {entity.id for entity in run["result"]} >= {"brain/brain.ome.zarr/", "brain/recipe.json"}
    settings = {entity["name"]: entity["value"] for entity in run["object"] if entity.type == "PropertyValue"}
    assert settings["slab_planes"] == 16
    assert settings["match"] == "off"
    versions = (results / "pipeline_info" / "versions.tsv").read_text()
    assert {line.split("\t")[2]: line.split("\t")[3] for line in versions.splitlines()} == tool_versions()
