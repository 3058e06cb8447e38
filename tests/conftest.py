"""Run the workflow with Nextflow, as a user does, and look at what its tasks did."""

from __future__ import annotations

import csv
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Put the commands beside the Python in use first on PATH, as in an activated environment."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@dataclass(frozen=True)
class WorkflowRun:
    """What a run of the workflow left behind."""

    code: int
    output: str  # what the terminal shows: stdout, then stderr
    outdir: Path
    tasks: list[dict[str, str]]  # the rows of Nextflow's trace: name, status, exit, hash, ...

    def ran(self, status: str = "COMPLETED") -> set[str]:
        """Return the names of the processes with a task of this status; CACHED for those that -resume took over."""
        return {task["name"].split(" ")[0] for task in self.tasks if task["status"] == status}


Run = Callable[..., WorkflowRun]


@pytest.fixture(scope="session")
def nextflow() -> str:
    """Return the Nextflow on PATH."""
    command = shutil.which("nextflow")
    if command is None:
        pytest.skip("no nextflow on PATH; `make test` brings one")
    return command


@pytest.fixture
def workflow(nextflow: str, tmp_path: Path) -> Run:
    """Return a function that runs the workflow in this test's folder; work directory and history stay for -resume."""
    return runner(nextflow, tmp_path)


@dataclass(frozen=True)
class PhantomRun:
    """The test profile's run on the workflow's own phantom, which several tests look at and resume."""

    workflow: Run
    first: WorkflowRun
    phantom: Path


@pytest.fixture(scope="session")
def phantom_run(nextflow: str, tmp_path_factory: pytest.TempPathFactory) -> PhantomRun:
    """Return the test profile's run on a phantom, made once."""
    folder = tmp_path_factory.mktemp("phantom")
    subprocess.run(["n4flow", "phantom", folder / "phantom.ome.zarr", "--truth", folder / "truth"], check=True)
    run = runner(nextflow, folder)
    sections = folder / "phantom.sections.tsv"
    workflow = functools.partial(run, "--input", folder / "phantom.ome.zarr", "--sections", sections)
    return PhantomRun(workflow, workflow(), folder / "phantom.ome.zarr")


def runner(nextflow: str, folder: Path) -> Run:
    """Return a function that runs the workflow in a folder.

    run("--input", "phantom", code=0, profile="test", parser=None, outdir=None) fails where the workflow ends with
    another code, and then shows what it printed. `parser` is the value of NXF_SYNTAX_PARSER.
    """

    def run(
        *arguments: str | Path,
        code: int = 0,
        profile: str = "test",
        parser: str | None = None,
        outdir: Path | None = None,
    ) -> WorkflowRun:
        outdir = outdir or folder / "results"
        trace = folder / "trace.tsv"
        trace.unlink(missing_ok=True)
        environment = os.environ | ({"NXF_SYNTAX_PARSER": parser} if parser else {})
        command = [nextflow, "run", ROOT, "-profile", profile, "-with-trace", trace, "--outdir", outdir, *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, f"expected exit code {code}, got {done.returncode}\n{output}"
        with trace.open() if trace.exists() else open(os.devnull) as file:
            tasks = list(csv.DictReader(file, delimiter="\t"))
        return WorkflowRun(done.returncode, output, outdir, tasks)

    return run
