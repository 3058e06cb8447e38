"""The workflow on a real Slurm of one node: what jobs ask for and see, and what is said when Slurm takes them away."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, PhantomRun, Run, Undisturbed, WorkflowRun, sentence, skip_with_gpu, traced, wait_for
from pages import follow
from slurm_node import missing, slurm

pytestmark = pytest.mark.engine

# Slurm is asked often.
QUICK = "executor { pollInterval = '1 sec'; queueStatInterval = '1 sec'; exitReadTimeout = '10 sec' }\n"
# A job waits while a file is there, and leaves behind what it saw. No task's hash knows of it.
CONFIG = """\
process.beforeScript = 'env > environment.txt; while [ -e "{hold}" ] && [[ "$PWD" == *work* ]]; do sleep 0.2; done'
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start Slurm and return the environment that reaches it."""
    if lacking := missing():
        pytest.skip(
            f"no Slurm: {', '.join(lacking)} not found; Debian's munge, slurmctld, slurmd, slurm-client bring it"
        )
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """Return the file that keeps jobs waiting while it exists."""
    return tmp_path / "hold"


@pytest.fixture
def submitted(workflow: Run, node: dict[str, str], tmp_path: Path, hold: Path) -> Callable:
    """Return `workflow`, submitting to Slurm."""
    (tmp_path / "site.config").write_text(QUICK + CONFIG.format(hold=hold))

    def run(*arguments: str | Path, profile: str = "slurm,test", **options):
        return workflow(*arguments, "-c", tmp_path / "site.config", profile=profile, environment=node, **options)

    return run


# Stands in for Apptainer: what Nextflow hands to it is looked at, and the command inside is run as it is.
APPTAINER = """\
#!/bin/bash
[ "$1" = pull ] && { touch "$3"; exit; }
while [[ "$1" != *.img ]]; do shift; done
exec "${@:2}"
"""


@pytest.fixture
def apptainer(node: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what stands in for Apptainer on PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apptainer").write_text(APPTAINER)
    (tmp_path / "bin" / "apptainer").chmod(0o755)
    monkeypatch.setitem(node, "PATH", f"{tmp_path / 'bin'}:{node['PATH']}")


def ask(node: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=node, capture_output=True, text=True, check=True).stdout.strip()


def resume(node: dict[str, str]) -> None:
    """Return the node to service. What is not down (any more) refuses to be resumed, and it may come back by itself."""

    def back() -> bool:
        name, state = ask(node, "sinfo", "--noheader", "--format=%n %T").split()
        if state in {"idle", "mixed", "allocated"}:
            return True
        subprocess.run(("scontrol", "update", f"NodeName={name}", "State=RESUME"), env=node, check=False)
        return False

    wait_for(back)


def seen(folder: Path) -> set[str]:
    """Return which of the variables that name a GPU a job saw."""
    return set(re.findall(r"^(CUDA_VISIBLE_DEVICES|SLURM_JOB_GPUS)=", (folder / "environment.txt").read_text(), re.M))


def test_the_tutorial_of_the_cluster_gives_the_voxels_of_this_machine(
    node: dict[str, str], apptainer: None, phantom_run: PhantomRun, tmp_path: Path
):
    (tmp_path / "n4flow").symlink_to(ROOT)
    (tmp_path / "nextflow.config").write_text(QUICK)
    follow(ROOT / "docs" / "tutorials" / "cluster.md", tmp_path, node)
    results = tmp_path / "results"
    run = WorkflowRun(0, "", results, traced(results / "pipeline_info" / "trace.tsv"), tmp_path / "work")
    assert run.ran() == phantom_run.first.ran()
    ours, theirs = run.digests("brain"), phantom_run.first.digests("phantom")
    assert (ours["brain.ome.zarr"], ours["mask.ome.zarr"]) == (theirs["phantom.ome.zarr"], theirs["mask.ome.zarr"])
    script = (run.folders("FINISH")[0] / ".command.run").read_text()
    assert re.search(r"^#SBATCH -c 2$", script, re.M)
    plan = json.loads((run.folders("INSPECT")[0] / "plan.json").read_text())
    asked = set(plan["memory_bytes"]) - {"N4_VOLUME", "HARMONIZE"}  # which have no task here
    assert len(asked) == 8
    for process in asked:
        (folder, *_others) = run.folders(process)
        mebibytes = plan["memory_bytes"][process] >> 20
        assert f"#SBATCH --mem {mebibytes}M\n" in (folder / ".command.run").read_text(), process
    assert "--gres" not in script
    arrays = [path for path in run.work.glob("*/*/.command.run") if "#SBATCH --array 0-1" in path.read_text()]
    assert len(arrays) == 4  # two of three tasks of each scattered process; the third goes alone


def test_a_gpu_that_is_not_there_ends_the_run_at_once(submitted: Callable, node: dict[str, str]):
    skip_with_gpu()
    run = submitted("--bias", "volume", "--backend", "gpu", profile="gpu,slurm,test", code=3)
    assert run.ran() <= {"PROBE_GPU"}
    assert "no working GPU: " in sentence(run)
    assert not (run.outdir / "phantom").exists()
    assert ask(node, "squeue", "--noheader") == ""
    (folder,) = [path.parent for path in run.work.glob("*/*/.command.run")]
    assert "#SBATCH --gres=gpu:1" in (folder / ".command.run").read_text()
    assert seen(folder) == {"CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"}


def test_only_tasks_for_a_gpu_get_one(
    submitted: Callable, node: dict[str, str], apptainer: None, undisturbed: Undisturbed
):
    arguments = [*undisturbed.arguments, "--bias", "two_pass", "--iterations", "2", "--backend", "auto"]
    run = submitted(*arguments, "--gpu_options", "--gres=gpu:1 --comment=mine", profile="gpu,slurm,apptainer,test")
    for process in sorted(run.ran()):
        for folder in run.folders(process):
            script = (folder / ".command.run").read_text()
            asks = [line for line in script.splitlines() if line.startswith("#SBATCH") and "gres" in line]
            assert asks == (["#SBATCH --gres=gpu:1 --comment=mine"] if process == "N4_VOLUME" else []), process
            assert seen(folder) == ({"CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"} if process == "N4_VOLUME" else set())
            (launch,) = [line for line in script.splitlines() if "apptainer exec" in line]
            assert ("--nv" in launch) == (process == "N4_VOLUME"), process
            assert f"n4flow-{'cuda' if process == 'N4_VOLUME' else 'cpu'}.img" in launch
    assert "N4_VOLUME" in run.ran()


def test_what_slurm_takes_away_is_said_and_resumed(
    submitted: Callable, node: dict[str, str], hold: Path, undisturbed: Undisturbed
):
    def running() -> list[str]:
        return ask(node, "squeue", "--noheader", "--states=R", "--format=%i").split()

    def meanwhile(*commands: str) -> Callable:
        def disturb(_process: subprocess.Popen) -> None:
            wait_for(running)
            (job, *_others) = running()
            for command in commands:
                ask(node, *command.format(job=job, node=ask(node, "sinfo", "--noheader", "--format=%n")).split())
            wait_for(lambda: job not in running())
            resume(node)
            hold.unlink()

        return disturb

    causes = {
        "reached its time limit; give its label more time": ["scontrol update JobId={job} EndTime=now+1"],
        "was cancelled from outside": ["scancel {job}"],
        "was lost with its node": ["scontrol update NodeName={node} State=DOWN Reason=test"],
    }
    for said, commands in causes.items():
        hold.touch()
        run = submitted(*undisturbed.arguments, "-resume", code=1, during=meanwhile(*commands))
        assert said in sentence(run), run.output
        assert sentence(run).endswith("; then run again with -resume")
        assert run.ran("FAILED")
        assert not list(run.outdir.glob("*brain*"))

    # A drained node lets its job finish and takes no other; the run waits until it is back.
    def drain(process: subprocess.Popen) -> None:
        wait_for(running)
        name = ask(node, "sinfo", "--noheader", "--format=%n")
        ask(node, "scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")
        hold.unlink()
        wait_for(lambda: "PENDING" in ask(node, "squeue", "--noheader", "--format=%T") and not running())
        assert process.poll() is None
        resume(node)

    hold.touch()
    run = submitted(*undisturbed.arguments, "-resume", during=drain)
    assert run.digests("brain") == undisturbed.digests
