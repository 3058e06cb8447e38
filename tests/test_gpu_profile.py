"""What the gpu profile asks of a scheduler and of a container, and for which tasks: read from the rendered jobs."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from conftest import Run

SBATCH = """#!/bin/bash
# runs the job beside, as a scheduler would later
(bash "${@: -1}" > .command.log 2>&1 &)
echo "Submitted batch job $RANDOM"
"""
CONTAINER = """#!/bin/bash
# runs the command without the container
while [[ $# -gt 0 && $1 != /bin/bash ]]; do shift; done
exec "$@"
"""


def stand_ins(folder: Path, **scripts: str) -> str:
    """Write programs to a folder; return a PATH with it first."""
    folder.mkdir()
    for name, text in scripts.items():
        file = folder / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def jobs(folder: Path) -> dict[str, str]:
    """Return the text of every rendered job by the name of its process."""
    texts = [path.read_text() for path in folder.glob("work/*/*/.command.run")]
    found = {}
    for text in texts:
        name = re.search(r"^### name: '(\w+)", text, re.MULTILINE)
        assert name is not None
        found[name[1]] = text
    return found


GPU_TASKS = {"PROBE_GPU", "N4_VOLUME"}
CPU_TASKS = {"SHRINK", "TISSUE_MASK", "N4_SECTIONS", "PLANE_STATISTICS", "NORMALIZE", "RENDER", "FINISH", "PUBLISH"}


@pytest.mark.engine
def test_slurm_and_apptainer(workflow: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("n4flow-cpu.img", "n4flow-cuda.img"):
        (images / name).touch()
    nothing = "#!/bin/bash\nexit 0\n"
    path = stand_ins(tmp_path / "bin", sbatch=SBATCH, squeue=nothing, scancel=nothing, apptainer=CONTAINER)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("NXF_APPTAINER_CACHEDIR", str(images))
    quick = tmp_path / "quick.config"
    quick.write_text("executor.pollInterval = '300 ms'\nexecutor.submitRateLimit = '50/1sec'\n")
    asked = "--gres=gpu:h100:1 --partition=gpu"
    settings = ("--bias", "two_pass", "--backend", "gpu", "--gpu_options", asked)
    workflow("-stub-run", "-c", quick, *settings, profile="gpu,slurm,apptainer,test")
    rendered = jobs(tmp_path)
    assert set(rendered) >= GPU_TASKS | CPU_TASKS
    bound = re.findall(r"-B (\S+)", rendered["PUBLISH"])
    assert any((tmp_path / "results").is_relative_to(place) for place in bound), "PUBLISH does not see outdir"
    for name, text in rendered.items():
        container = re.search(r"apptainer exec (.*?) /bin/bash", text)
        options = container[1] if container else ""
        on_gpu = name in GPU_TASKS
        assert (f"#SBATCH {asked}" in text) is on_gpu, name
        assert ("--nv" in options.split()) is on_gpu, name
        assert ("n4flow-cuda.img" in options) is on_gpu, name
        # of base.config, whichever profiles set something of the same task
        if on_gpu:
            assert re.search(r"^#SBATCH -c 2$", text, re.MULTILINE), name
            assert re.search(r"^#SBATCH -t 01:00:00$", text, re.MULTILINE), name  # 4 h, the limit of the test profile
            assert re.search(r"^#SBATCH --mem 6144M$", text, re.MULTILINE), name  # 8 GB, likewise


@pytest.mark.engine
def test_the_profile_alone_asks_for_the_field_of_the_volume_by_a_gpu(workflow: Run):
    run = workflow("-stub-run", profile="gpu,test")
    assert run.ran() >= GPU_TASKS
    assert "N4_SECTIONS" not in run.ran()
    assert "no task uses a GPU" not in run.output


@pytest.mark.engine
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--bias", "sections"], "bias is sections, which are fitted on CPUs"),
        (["--harmonize", "auto"], "bias is off with harmonize"),
        (["--backend", "cpu"], "backend is cpu"),
    ],
)
def test_what_is_asked_for_goes_before_the_profile_and_is_said(workflow: Run, asked: list[str], reason: str):
    run = workflow("-preview", *asked, profile="gpu,test")
    assert [line for line in run.output.splitlines() if "GPU" in line] == [f"no task uses a GPU: {reason}"]


@pytest.mark.engine
def test_docker_on_one_machine(workflow: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", docker=CONTAINER))
    workflow("-stub-run", "--bias", "two_pass", "--backend", "gpu", profile="gpu,docker,test")
    for name, text in jobs(tmp_path).items():
        options = re.search(r"docker run (.*?) /bin/bash", text)
        if options is None:
            assert name not in GPU_TASKS
            continue
        assert ("--gpus all" in options[1]) is (name in GPU_TASKS), name
        assert "-u $(id -u):$(id -g)" in options[1], name  # files belong to the user in either
        assert "CUDA_VISIBLE_DEVICES" in options[1], name
