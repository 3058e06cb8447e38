"""What may happen to a run: a killed task or head process, short memory, a full disk, input of any name, changed input.

Each ends in a sentence with the cause and the remedy, publishes nothing of a sample that is not complete, and a run
with -resume ends with the voxels of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, Run, Undisturbed, runner, sentence, wait_for

from n4flow.io.writers import write_volume

pytestmark = pytest.mark.engine


def pythons(command: str, work: Path) -> list[int]:
    """Return the processes of a step's command that run below a work directory."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            inside = process.name.isdigit() and work in (process / "cwd").resolve().parents
            if inside and (process / "cmdline").read_bytes().split(b"\0")[2] == command.encode():
                found.append(int(process.name))
        except (OSError, IndexError):
            continue
    return found


def kill(command: str, work: Path) -> Callable[[subprocess.Popen], None]:
    """Return what kills the first task of a command, at a random moment of its life."""

    def disturb(_process: subprocess.Popen) -> None:
        wait_for(lambda: pythons(command, work))
        time.sleep(random.uniform(0, 0.5))
        for process in pythons(command, work)[:1]:
            os.kill(process, signal.SIGKILL)

    return disturb


def nothing_published(outdir: Path) -> bool:
    return not [path for path in outdir.rglob("*") if "brain" in path.name]


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "n4flow-test", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk: only root may mount one, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, work: Path, left: int) -> Callable[[subprocess.Popen], None]:
    """Return what takes all but so many kilobytes of a disk while a run is reading."""

    def disturb(_process: subprocess.Popen) -> None:
        wait_for(lambda: pythons("shrink", work))
        (disk / "others").write_bytes(bytes(shutil.disk_usage(disk).free - (left << 10)))

    return disturb


@contextmanager
def small_memory(size: int) -> Iterator[Path]:
    """Make a control group whose processes have `size` bytes together; yield the file that takes their numbers."""
    root = Path("/sys/fs/cgroup")
    parent, limit, swap, most = root / "memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", size
    if (root / "cgroup.controllers").exists():
        parent, limit, swap, most = root, "memory.max", "memory.swap.max", 0
    group = parent / f"n4flow-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(size))
        with suppress(OSError):  # where swap is not counted there is none
            (group / swap).write_text(str(most))
    except OSError as error:
        pytest.skip(f"no control group that limits memory: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write away; from root by a mount, where mounts are allowed."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    mounted = os.geteuid() == 0 and not subprocess.run(["mount", "--bind", folder, folder], check=False).returncode
    try:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        for path in paths:
            path.chmod(modes[path])


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Return digest and time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def test_a_killed_task_is_tried_again(workflow: Run, undisturbed: Undisturbed, tmp_path: Path):
    run = workflow(*undisturbed.arguments, during=kill("render-slab", tmp_path / "work"))
    failed = [task for task in run.tasks if task["status"] == "FAILED"]
    assert {task["exit"] for task in failed} <= {"137"}  # nothing failed where the task was faster than the signal
    assert run.digests("brain") == undisturbed.digests


def test_a_killed_nextflow_publishes_nothing_and_is_resumed(workflow: Run, undisturbed: Undisturbed, tmp_path: Path):
    def disturb(process: subprocess.Popen) -> None:
        wait_for(lambda: pythons("render-slab", tmp_path / "work"))
        process.kill()  # the launcher has become Java itself
        wait_for(lambda: not pythons("render-slab", tmp_path / "work"))

    run = workflow(*undisturbed.arguments, during=disturb, code=-signal.SIGKILL)
    assert nothing_published(run.outdir)
    resumed = workflow(*undisturbed.arguments, "-resume")
    # a task that ended in the moment before the kill may be missing from Nextflow's own records, and runs again
    assert {"INSPECT", "SHRINK"} <= resumed.ran("CACHED")
    assert resumed.digests("brain") == undisturbed.digests


@pytest.mark.parametrize(
    ("options", "small", "says"),
    [
        ("size=4m", "outdir", r"outdir needs up to 0\.04\d GB for the results and has 0\.004 GB free"),
        ("size=4m", "work", r"work needs up to 0\.04\d GB for the work directory and has 0\.004 GB free"),
        ("size=40m", "both", r"work needs up to 0\.08\d GB for the work directory and a copy in outdir and has"),
        ("size=60m,nr_inodes=30", "outdir", r"outdir needs up to \d\d files for the results and has inodes for \d\d"),
    ],
)
def test_a_disk_too_small_is_said_before_anything_is_read(
    workflow: Run, undisturbed: Undisturbed, tmp_path: Path, options: str, small: str, says: str
):
    with small_disk(tmp_path / "disk", options) as disk:
        places = {name: disk / name for name in ("outdir", "work") if small in (name, "both")}
        run = workflow(*undisturbed.arguments, **places, code=5)
        assert re.search(says + ".*; free some, or choose another -work-dir or --outdir", sentence(run)), run.output
        assert "SHRINK" not in run.output


def test_a_resumed_sheet_with_one_more_sample_needs_room_for_that_one_alone(
    workflow: Run, undisturbed: Undisturbed, tmp_path: Path
):
    image, rest = undisturbed.arguments[1], undisturbed.arguments[2:]
    for name, samples in (("one", ["brain"]), ("two", ["brain", "other"])):
        rows = [f"{sample},{image}" for sample in samples]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sample,image", *rows]) + "\n")
    with small_disk(tmp_path / "disk", "size=60m") as disk:
        first = workflow("--input", tmp_path / "one.csv", *rest, work=disk / "work")
        needs = json.loads((first.folders("INSPECT")[0] / "plan.json").read_text())["needs"]
        needed = needs["bytes"] + needs["work_bytes"]
        left = needed * 5 // 4
        (disk / "others").write_bytes(bytes(shutil.disk_usage(disk).free - left))
        again = workflow("--input", tmp_path / "two.csv", *rest, "-resume", work=disk / "work")
    assert again.ran("CACHED") >= {"INSPECT", "SHRINK", "RENDER"}  # FINISH writes down the name of the sheet
    assert sorted(again.digests("other").values()) == sorted(again.digests("brain").values())


def test_results_on_another_disk_cannot_be_links(workflow: Run, undisturbed: Undisturbed, tmp_path: Path):
    with small_disk(tmp_path / "disk", "size=60m") as disk:
        run = workflow(*undisturbed.arguments, "--publish_mode", "link", outdir=disk, code=2)
        assert "publish_mode link needs the work directory and outdir on one disk" in sentence(run), run.output


def test_an_outdir_that_others_fill(workflow: Run, undisturbed: Undisturbed, tmp_path: Path):
    with small_disk(tmp_path / "disk", "size=60m") as disk:
        run = workflow(*undisturbed.arguments, outdir=disk, during=fill(disk, tmp_path / "work", 200), code=1)
        assert "task PUBLISH (brain) found no space left" in sentence(run), run.output
        assert nothing_published(run.outdir)
        (disk / "others").unlink()
        again = workflow(*undisturbed.arguments, "-resume", outdir=disk)
        assert again.ran() - {"PROVENANCE"} == {"PUBLISH"}
        assert again.digests("brain") == undisturbed.digests
        subprocess.run(["n4flow", "verify", disk], check=True)


def test_a_work_directory_that_others_fill(workflow: Run, undisturbed: Undisturbed, tmp_path: Path):
    with small_disk(tmp_path / "disk", "size=60m") as disk:
        run = workflow(*undisturbed.arguments, work=disk / "work", during=fill(disk, disk / "work", 800), code=1)
        assert "found no space left" in sentence(run), run.output
        assert nothing_published(run.outdir)
        (disk / "others").unlink()
        again = workflow(*undisturbed.arguments, "-resume", work=disk / "work")
        assert again.ran("CACHED")
        assert again.digests("brain") == undisturbed.digests


def test_memory_that_is_short_is_asked_for_and_then_said(undisturbed: Undisturbed, tmp_path: Path):
    for folder in undisturbed.run.folders("RENDER"):
        shutil.rmtree(folder)  # what a resumed run then does again
    arguments = [*undisturbed.arguments, "-resume"]
    with small_memory(64 << 20) as processes:
        # in place of the step, what takes memory without end: a step whose own code does not fit into the group is
        # not always killed, but may read its pages again and again from disk
        greedy = "n4flow() { tail /dev/zero; }; export -f n4flow"
        config = f"""\
            trace.fields = 'name,status,exit,hash,memory'
            process {{ withName: RENDER {{ beforeScript = 'echo $$ > {processes}; {greedy}' }} }}
        """
        (tmp_path / "limited.config").write_text(config)
        limited = ["-c", tmp_path / "limited.config"]
        run = undisturbed.workflow(*arguments, *limited, outdir=tmp_path / "results", code=1)
    names = [task["name"] for task in run.tasks if task["exit"] == "137"]
    assert names, run.output
    tries = [task for task in run.tasks if task["name"] == max(names, key=names.count)]
    assert [task["exit"] for task in tries] == ["137"] * 3
    (plan,) = [json.loads((folder / "plan.json").read_text()) for folder in run.folders("INSPECT")]
    foreseen = plan["memory_bytes"]["RENDER"] / 2**20
    asked = [float(size) * {"MB": 1, "GB": 1024}[unit] for size, unit in (task["memory"].split() for task in tries)]
    assert asked == pytest.approx([foreseen, 2 * foreseen, 3 * foreseen], rel=0.1)  # the trace rounds
    assert "was killed, at its last try too, as the system does when memory is short" in sentence(run)
    assert nothing_published(run.outdir)
    again = undisturbed.workflow(*arguments, outdir=tmp_path / "results")
    assert again.ran("CACHED") >= {"INSPECT", "SHRINK", "TISSUE_MASK"}
    assert again.digests("brain") == undisturbed.digests


def test_input_of_any_name_behind_a_link_is_only_read(nextflow: str, undisturbed: Undisturbed, tmp_path: Path):
    store, link = tmp_path / "Archiv für Gehirne" / "Nr. 1.ome.zarr", tmp_path / "à traiter" / "brain.ome.zarr"
    shutil.copytree(undisturbed.arguments[1], store)
    link.parent.mkdir()
    link.symlink_to(store)
    folder = tmp_path / "ein Lauf (größer)"
    folder.mkdir()
    before = fingerprint(store)
    with read_only(store.parent):
        run = runner(nextflow, folder)("--input", link, *undisturbed.arguments[2:])
    assert run.digests("brain") == undisturbed.digests
    assert fingerprint(store) == before


def test_a_docker_daemon_that_is_down_is_said_to_be_that(nextflow: str, tmp_path: Path):
    """`docker` here says what the real one says then."""
    said = "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 125\n")
    docker.chmod(0o755)
    environment = os.environ | {"PATH": f"{docker.parent}:{os.environ['PATH']}"}
    run = runner(nextflow, tmp_path)("--input", "phantom", code=1, profile="docker,test", environment=environment)
    assert (
        f"cannot be started in its container: {said.rstrip('?')}?; start Docker (systemctl start docker)"
        in sentence(run)
    )
    assert "fault of n4flow" not in run.output


def test_only_short_memory_is_tried_again(workflow: Run, undisturbed: Undisturbed, tmp_path: Path):
    (tmp_path / "bad.config").write_text("process { withName: TISSUE_MASK { beforeScript = 'exit 1' } }\n")
    run = workflow(*undisturbed.arguments, "-c", tmp_path / "bad.config", code=1)
    assert [task["exit"] for task in run.tasks if task["name"].startswith("TISSUE_MASK")] == ["1"]
    assert "task TISSUE_MASK (brain) ended with exit code 1" in sentence(run)


def test_a_changed_chunk_runs_its_sample_again_and_no_other(workflow: Run, tmp_path: Path):
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        values = rng.uniform(10, 200, (6, 40, 50)).astype(np.float32)
        write_volume(tmp_path / f"{name}.ome.zarr", values, voxel_um=(10, 5, 5))
    (tmp_path / "samples.csv").write_text("sample,image\na,a.ome.zarr\nb,b.ome.zarr\n")
    arguments = ["--input", tmp_path / "samples.csv", "-resume", *PLAIN]
    first = workflow(*arguments)
    (chunk,) = [path for path in (tmp_path / "b.ome.zarr" / "0").rglob("*") if path.is_file() and path.name == "0"]
    chunk.write_bytes(chunk.read_bytes())  # the same bytes at another time
    second = workflow(*arguments)
    again = {task["name"] for task in second.tasks if task["status"] == "COMPLETED"}
    touched = {name for name in (task["name"] for task in first.tasks) if "(b" in name}
    # PUBLISH looks at what lies in outdir; PROVENANCE is of all samples.
    assert again == touched | {"PUBLISH (a)", "PROVENANCE"}
    assert second.digests("a") == first.digests("a")
