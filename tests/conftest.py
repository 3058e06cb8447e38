"""Run the workflow with Nextflow, as a user does, and look at what its tasks did."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from n4flow.compute.arrays import probe_gpu
from n4flow.errors import GpuError

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Put the commands beside the Python in use first on PATH, as in an activated environment."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # runs are short, and there are many
    os.environ.setdefault("NXF_JVM_ARGS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file's tests in one process, and in one of them all that look at the run on the phantom."""
    for item in items:
        # Slurm runs for its whole file, one of whose tests looks at that run
        on_phantom = "phantom_run" in getattr(item, "fixturenames", ()) or item.path.name == "test_slurm.py"
        item.add_marker(pytest.mark.xdist_group("phantom" if on_phantom else str(item.path)))


@dataclass(frozen=True)
class WorkflowRun:
    """What a run of the workflow left behind."""

    code: int
    output: str  # what the terminal shows
    outdir: Path
    tasks: list[dict[str, str]]  # the rows of Nextflow's trace: name (of the process alone), status, exit, hash, ...
    work: Path  # the work directory

    def folders(self, process: str) -> list[Path]:
        """Return the work directories of a process's tasks."""
        hashes = [task["hash"] for task in self.tasks if task["name"].split(" ")[0] == process]
        return [next((self.work / part.split("/")[0]).glob(f"{part.split('/')[1]}*")) for part in hashes]

    def digests(self, sample: str) -> dict[str, list[str]]:
        """Return the digest of each level of a published sample's stores."""
        stated = json.loads((self.outdir / sample / "checksums.json").read_text())["stores"]
        return {name: [level["digest"] for level in store["levels"]] for name, store in stated.items()}

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


def runner(nextflow: str, folder: Path, project: Path = ROOT) -> Run:
    """Return a function that runs the workflow, or another project, in a folder.

    run("--input", "phantom", code=0, profile="test", parser=None, outdir=None) fails where the workflow ends with
    another code, and then shows what it printed. `parser` is the value of NXF_SYNTAX_PARSER; `during` is called with
    Nextflow's process while that runs; `environment` replaces the tests' own.
    """

    def run(
        *arguments: str | Path,
        code: int = 0,
        profile: str = "test",
        parser: str | None = None,
        outdir: Path | None = None,
        work: Path | None = None,
        during: Callable[[subprocess.Popen], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> WorkflowRun:
        outdir, work = outdir or folder / "results", work or folder / "work"
        trace = folder / "trace.tsv"
        trace.unlink(missing_ok=True)
        own = (environment or os.environ) | ({"NXF_SYNTAX_PARSER": parser} if parser else {})
        command = [nextflow, "run", project, "-profile", profile, "-with-trace", trace, "-work-dir", work]
        command += ["--outdir", outdir, *arguments]
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            if during is not None:
                during(process)
            output, _none = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate()
            raise
        assert process.returncode == code, f"expected exit code {code}, got {process.returncode}\n{output}"
        return WorkflowRun(process.returncode, output, outdir, traced(trace), work)

    return run


def traced(trace: Path) -> list[dict[str, str]]:
    """Return the rows of Nextflow's trace, with the name of the process alone."""
    with trace.open() if trace.exists() else open(os.devnull) as file:
        tasks = list(csv.DictReader(file, delimiter="\t"))
    for task in tasks:
        task["name"] = re.sub(r"^(\w+:)+", "", task["name"])
    return tasks


PLAIN = ["--bias", "off", "--match", "off", "--smooth_z", "0", "--normalize", "false"]


@dataclass(frozen=True)
class Undisturbed:
    """A small volume, the arguments of a short run on it, and what that run gives when nothing is in its way."""

    arguments: list[str | Path]
    run: WorkflowRun
    workflow: Run

    @property
    def digests(self) -> dict[str, list[str]]:
        """Digest of each level of the stores."""
        return self.run.digests("brain")


@pytest.fixture(scope="session")
def undisturbed(nextflow: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return a short run of two slabs, to compare with runs that were disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    size = ["--sections", "2", "--planes", "8", "--size", "96", "128"]
    subprocess.run(["n4flow", "phantom", folder / "brain.ome.zarr", *size], check=True)
    arguments = ["--input", folder / "brain.ome.zarr", "--slab_planes", "8", *PLAIN]
    workflow = runner(nextflow, folder)
    return Undisturbed(arguments, workflow(*arguments), workflow)


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    """Wait until something is true, and fail after a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def skip_with_gpu() -> None:
    """Skip the test that asks for a GPU which is not there, where there is one."""
    try:
        probe_gpu()
    except GpuError:
        return
    pytest.skip("this machine has a working GPU")


def sentence(run: WorkflowRun) -> str:
    """Return the last error that a run printed: the cause and what to do, in one line."""
    return [line for line in run.output.splitlines() if line.startswith("ERROR ~ ")][-1]
