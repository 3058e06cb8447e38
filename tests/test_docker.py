"""The images: built by a real engine, run as on a locked cluster: no network, no home, nothing writable, any user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, PhantomRun, runner
from docker_engine import Unavailable, build, engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Whom no image knows; who is not root could not remove what others wrote.
USER = "12345:23456" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
LOCKED = f"--network none --read-only --tmpfs /tmp:size=64m --user {USER} --env HOME=/nowhere"
# Tasks write as that user into folders that Nextflow made as another.
CONFIG = """\
process {{ container = '{image}'; beforeScript = 'chmod 777 .' }}
docker.runOptions = '{options}'
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment that reaches an engine; images built there go with the tests."""
    try:
        with engine(tmp_path_factory.mktemp("docker")) as environment:
            yield environment
            names = [f"n4flow-test:{kind}" for kind in ("cpu", "cuda", "base", "debian")]
            subprocess.run(["docker", "image", "rm", *names], env=environment, capture_output=True, check=False)
    except Unavailable as reason:
        pytest.skip(f"no Docker: {reason}")


def image(docker: dict[str, str], kind: str) -> str:
    """Return the name of an image: the one that the environment names, or one that is built."""
    if name := os.environ.get(f"N4FLOW_TEST_IMAGE_{kind.upper()}"):
        return name
    try:
        build(docker, ROOT / "containers" / kind / "Dockerfile", f"n4flow-test:{kind}")
    except Unavailable as reason:
        pytest.skip(f"no image: {reason}")
    return f"n4flow-test:{kind}"


def locked(docker: dict[str, str], image: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a container as on a locked cluster."""
    command = ("docker", "run", "--rm", *LOCKED.split(), image, *command)
    return subprocess.run(command, env=docker, capture_output=True, text=True, check=False)


@pytest.fixture
def near() -> Iterator[Path]:
    """Return a folder in the checkout: Nextflow mounts what it and the work directory share, and /tmp is taken."""
    (ROOT / ".n4flow").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="docker-", dir=ROOT / ".n4flow"))
    yield folder
    shutil.rmtree(folder)


def test_a_locked_container_gives_the_voxels_of_this_machine(
    nextflow: str, docker: dict[str, str], phantom_run: PhantomRun, near: Path
):
    name = image(docker, "cpu")
    shutil.copytree(phantom_run.phantom, near / "phantom.ome.zarr")
    shutil.copy(phantom_run.phantom.parent / "phantom.sections.tsv", near)
    for path in [near, *near.rglob("*")]:
        path.chmod(0o755)  # that user sees what is everybody's alone
    (near / "locked.config").write_text(CONFIG.format(image=name, options=LOCKED))
    (near / "results").mkdir()
    (near / "results").chmod(0o777)
    inputs = ["--input", near / "phantom.ome.zarr", "--sections", near / "phantom.sections.tsv"]
    run = runner(nextflow, near)(*inputs, "-c", near / "locked.config", profile="docker,test", environment=docker)
    assert run.ran() == phantom_run.first.ran()
    assert run.digests("phantom") == phantom_run.first.digests("phantom")
    assert name in (run.outdir / "pipeline_info" / "versions.tsv").read_text()
    (folder,) = run.folders("FINISH")
    assert LOCKED in (folder / ".command.run").read_text()
    assert {path.stat().st_uid for path in (folder / "published").rglob("*")} == {int(USER.partition(":")[0])}


def test_the_cuda_image_compiles_its_kernels_and_says_that_there_is_no_gpu(docker: dict[str, str]):
    if not os.environ.get("N4FLOW_TEST_CUDA_IMAGE"):
        pytest.skip("the CUDA image is 4 GB and takes minutes to build; N4FLOW_TEST_CUDA_IMAGE=1 asks for it")
    name = image(docker, "cuda")
    compiled = locked(docker, name, "python3", "/opt/n4flow/check_nvrtc.py")
    assert compiled.returncode == 0, compiled.stderr
    sizes = dict(re.findall(r"(sm_\d+) (\d+) bytes", compiled.stdout))
    assert set(sizes) >= {"sm_80", "sm_90"}
    assert all(int(size) > 10_000 for size in sizes.values())
    asked = locked(docker, name, "n4flow", "probe-gpu")
    assert asked.returncode == 3
    assert re.fullmatch(r"n4flow: no working GPU: .*\n", asked.stderr)
