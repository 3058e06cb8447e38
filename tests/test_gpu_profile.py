"""What the gpu profile asks of a scheduler and of a container, and for which tasks: read from the rendered jobs."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT, Run

SBATCH = """#!/bin/bash
# runs the job beside, as a scheduler would later; of an array, each
last=$(sed -n 's/^#SBATCH --array 0-//p' "${@: -1}")
for index in $(seq 0 "${last:-0}"); do
    (SLURM_ARRAY_TASK_ID=$index bash "${@: -1}" > .command.log 2>&1 &)
done
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
    """Return the text of every rendered job by the name of its process; of an array, with those of its tasks."""
    texts = [path.read_text() for path in folder.glob("work/*/*/.command.run")]
    found = {}
    for text in texts:
        name = re.search(r"^### name: '(?:\w+:)*(\w+)", text, re.MULTILINE)
        assert name is not None
        found[name[1]] = found.get(name[1], "") + text
    return found


GPU_TASKS = {"PROBE_GPU", "N4_VOLUME"}
CPU_TASKS = {"SHRINK", "TISSUE_MASK", "N4_SECTIONS", "PLANE_STATISTICS", "INTENSITY", "RENDER", "FINISH", "PUBLISH"}


NOTHING = "#!/bin/bash\nexit 0\n"
QUICK = "executor.pollInterval = '300 ms'\nexecutor.submitRateLimit = '50/1sec'\n"
# What a site has in a file of its own, for all tasks and for no GPU in particular.
SITE = """
process {
    clusterOptions = { "--account=lab --qos=${task.cpus > 1 ? 'wide' : 'narrow'}" }
    containerOptions = '--bind /scratch'
    beforeScript = 'export FROM_SITE=1'
    queue = 'long'
    withLabel: process_gpu { queue = 'gpus' }
    withLabel: process_single { queue = 'short' }
}
params { config_profile_description = 'a site'; max_memory = '120.GB'; custom_config_version = 'master' }
"""


@pytest.mark.engine
def test_slurm_and_apptainer(workflow: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = tmp_path / "images"
    images.mkdir()
    (images / "n4flow-cpu.img").touch()
    (images / "cuda.sif").touch()
    path = stand_ins(tmp_path / "bin", sbatch=SBATCH, squeue=NOTHING, scancel=NOTHING, apptainer=CONTAINER)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("NXF_APPTAINER_CACHEDIR", str(images))
    site = tmp_path / "site.config"
    site.write_text(QUICK + SITE)
    gpu = "--gres=gpu:h100:1 --partition=gpu"
    settings = ("--bias", "two_pass", "--backend", "gpu", "--gpu_options", gpu)
    settings += ("--container_cuda", images / "cuda.sif", "--job_array", "2")
    workflow("-stub-run", "-c", site, *settings, profile="gpu,slurm,apptainer,test")
    rendered = jobs(tmp_path)
    assert set(rendered) >= GPU_TASKS | CPU_TASKS
    bound = re.findall(r"-B (\S+)", rendered["PUBLISH"])
    assert any((tmp_path / "results").is_relative_to(place) for place in bound), "PUBLISH does not see outdir"
    # an array asks for what its tasks were predicted to need, and so for less than a task without a prediction
    asked = {"SHRINK": (["0-1"], {"445M"}), "RENDER": (["0-1"], {"4096M"}), "FINISH": ([], {"6144M"})}
    asked["INSPECT"] = [], {"953M"}  # of a folder: 1e9 bytes
    for name, (array, memory) in asked.items():
        assert re.findall(r"^#SBATCH --array (\S+)$", rendered[name], re.MULTILINE) == array, name
        assert set(re.findall(r"^#SBATCH --mem (\S+)$", rendered[name], re.MULTILINE)) == memory, name
    for name, text in rendered.items():
        container = re.search(r"apptainer exec (.*?) /bin/bash", text)
        options = container[1] if container else ""
        on_gpu = name in GPU_TASKS
        assert (gpu in text) is on_gpu, name
        assert ("--nv" in options.split()) is on_gpu, name
        assert (str(images / "cuda.sif") in options) is on_gpu, name
        assert ("n4flow-cpu.img" in options) is not on_gpu, name
        # what the site says of every task
        qos = "wide" if re.search(r"^#SBATCH -c 2$", text, re.MULTILINE) else "narrow"
        assert re.search(rf"^#SBATCH --account=lab --qos={qos}\b", text, re.MULTILINE), name
        queue = "gpus" if on_gpu else "short" if name in {"PHANTOM", "PROVENANCE"} else "long"
        assert re.search(rf"^#SBATCH -p {queue}$", text, re.MULTILINE), name
        assert "--bind /scratch" in options, name
        assert "export FROM_SITE=1" in text, name
        # of base.config, whichever profiles set something of the same task
        if on_gpu:
            assert re.search(r"^#SBATCH -c 2$", text, re.MULTILINE), name
            assert re.search(r"^#SBATCH -t 01:00:00$", text, re.MULTILINE), name  # 4 h, the limit of the test profile
            assert re.search(r"^#SBATCH --mem 6144M$", text, re.MULTILINE), name  # 8 GB, likewise


QSUB = """#!/bin/bash
(bash "${@: -1}" > .command.log 2>&1 &)
echo "$RANDOM"
"""
BSUB = """#!/bin/bash
cat > job
(bash job > .command.log 2>&1 &)
echo "Job <$RANDOM> is submitted to default queue"
"""


@pytest.mark.engine
@pytest.mark.parametrize(
    ("first", "second", "requests"),
    [
        ("pbspro", "sge", ["#PBS -P lab -l select=1:ncpus=2:mem=6144mb:ngpus=1", "#$ -P lab -l gpu=1"]),
        ("lsf", "pbs", ["#BSUB -gpu num=1", "#PBS -P lab -l nodes=1:ppn=2:gpus=1"]),
    ],
)
def test_other_schedulers_are_asked_for_a_gpu(
    workflow: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, requests: list[str]
):
    commands = {"qsub": QSUB, "bsub": BSUB} | dict.fromkeys(("qstat", "qdel", "bjobs", "bkill"), NOTHING)
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", **commands))
    site = tmp_path / "site.config"
    # a profile for the first task on a GPU, a scheduler by name for the other
    site.write_text(f"{QUICK}process {{ clusterOptions = '-P lab'; withName: N4_VOLUME {{ executor = '{second}' }} }}")
    short = ("--match", "off", "--smooth_z", "0", "--normalize", "false")
    workflow("-stub-run", "-c", site, *short, profile=f"gpu,{first},test")
    rendered = jobs(tmp_path)
    for name, text in rendered.items():
        assert [request for request in requests if request in text] == {
            "PROBE_GPU": requests[:1],
            "N4_VOLUME": requests[1:],
        }.get(name, []), name
        assert "-P lab" in text or name == "PUBLISH", name


@pytest.mark.engine
def test_the_profile_alone_asks_for_the_field_of_the_volume_and_uses_each_gpu_of_the_machine(
    workflow: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = workflow("-stub-run", profile="gpu,test")
    assert run.ran() >= GPU_TASKS
    assert "N4_SECTIONS" not in run.ran()
    assert "no task uses a GPU" not in run.output
    assert "Creating process 'N4FLOW:N4_VOLUME': maxForks=2;" in (tmp_path / ".nextflow.log").read_text()
    # what the task ran first, by two tasks at once, and by one after them
    text = jobs(tmp_path)["N4_VOLUME"]
    assert "flock" not in jobs(tmp_path)["RENDER"]
    choice = re.search(r"devices=\$\{CUDA.*?\n *done\n", text, re.DOTALL)[0]
    command = ["bash", "-euc", f"{choice}\necho $CUDA_VISIBLE_DEVICES; read line"]
    tasks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(task.stdout.readline() for task in tasks) == ["1\n", "3\n"]
    for task in tasks:
        task.communicate("\n")
    assert subprocess.run(command, input="\n", capture_output=True, text=True, check=True).stdout == "1\n"


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


SCHEDULERS = ("slurm", "pbs", "pbspro", "lsf", "sge")
IMAGES = {
    "docker": "n4flow:",
    "podman": "n4flow:",
    "apptainer": "docker-daemon://n4flow:",
    "singularity": "docker-daemon://n4flow:",
}
# Memory where 11.4e9 bytes are predicted, time and cores, by the labels that processes have.
NEEDS = {
    "small": ("2 GB", "30m", "1"),
    "stream": ("10.6 GB", "4h", "2"),
    "publish": ("2 GB", "8h", "2"),
    "memory": ("10.6 GB", "1h", "2"),
    "cpu": ("10.6 GB", "8h", "2"),
    "gpu": ("10.6 GB", "4h", "2"),
}


@pytest.mark.engine
@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_labels_keep_their_needs_in_every_combination_of_profiles(nextflow: str, tmp_path: Path, parser: str):
    texts = [path.read_text() for path in (ROOT / "modules").glob("*.nf")]
    labels = {tuple(re.findall(r"^    label '(\w+)'", text, re.MULTILINE)) for text in texts} - {()}
    assert {first for first, *_others in labels} == set(NEEDS)
    boxes = (*IMAGES, "conda", "mamba")
    combined = ["standard", *SCHEDULERS, *boxes, *(f"gpu,{other}" for other in (*SCHEDULERS, *boxes))]
    combined += [f"{first},{box}" for first, box in product(("slurm", "gpu,slurm"), boxes)]  # schedulers share a file
    given = ["--profiles", ";".join(combined), "--labels", ";".join(map(",".join, labels))]
    command = [nextflow, "run", ROOT / "tests" / "lib" / "profiles.nf", "-work-dir", tmp_path / "work", *given]
    environment = os.environ | {"NXF_SYNTAX_PARSER": parser}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in re.findall(r"^PROFILES (.*)$", done.stdout, re.MULTILINE)]
    assert [line["profiles"] for line in lines] == combined
    for line in lines:
        profiles = set(line["profiles"].split(","))
        box, scheduler = profiles & set(boxes), profiles & set(SCHEDULERS)
        for joined, got in line["labels"].items():
            own = joined.split(",")
            where = (line["profiles"], joined)
            kind = "cuda" if "cuda" in own else "cpu"
            assert (got["memory"], got["time"], got["cpus"]) == NEEDS[own[0]], where
            assert got["accelerator"] == ("1" if "gpu" in profiles and "device" in own else None), where
            assert got["container"] == next((f"{IMAGES[name]}{kind}" for name in box if name in IMAGES), None), where
            environments = f"{ROOT}/containers/{kind}/environment.yml" if box & {"conda", "mamba"} else None
            assert got["conda"] == environments, where
            assert got["useMamba"] == ("true" if "mamba" in box else None), where
            assert (got["executor"] in SCHEDULERS) is bool(scheduler), where
            assert (got["maxForks"] == "0") is (bool(scheduler) and "device" in own), where
