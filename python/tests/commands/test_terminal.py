"""What a run says while it works: bars on a terminal, a line a stage in a log, and the table at its end."""

import os
import pty
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import n4flow
from n4flow.commands import main
from n4flow.compute import progress as progress_module
from n4flow.compute.progress import Progress
from n4flow.io.writers import write_volume

N4FLOW = Path(sys.executable).with_name("n4flow")
SHAPE = (12, 40, 50)
FEW = ["--sections", "3", "--bias", "off", "--match", "off", "--smooth-z", "0"]
STAGES = ["SHRINK", "TISSUE_MASK", "PLANE_STATISTICS", "NORMALIZE", "RENDER", "FINISH"]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A bright block in noise, without padding."""
    volume = np.random.default_rng(3).integers(10, 20, SHAPE).astype(np.uint16)
    volume[:, 8:32, 10:40] += 200
    path = tmp_path_factory.mktemp("brain") / "brain.ome.zarr"
    write_volume(path, volume, voxel_um=(20, 4, 5))
    return path


def on_a_terminal(*command):
    """Return the exit code of a command that has a terminal, and all that it drew there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": "120", "TERM": "xterm"}
        os.execv(command[0], [str(word) for word in command])
    drawn = b""
    while True:
        try:
            block = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        drawn += block
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), drawn.decode()


def ended(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_a_terminal_gets_bars_a_line_a_stage_and_the_table(image, tmp_path):
    code, drawn = on_a_terminal(N4FLOW, "run", image, tmp_path / "out", *FEW)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for number, stage in enumerate(STAGES, start=1):
        assert len(re.findall(rf"brain {number}/{len(STAGES)} {stage}: .*, peak memory \d+ MB", plain)) == 1
        assert re.search(rf"brain {number}/{len(STAGES)} {stage} \S+ \d:\d\d:\d\d .*peak memory \d+ MB", plain), stage
    nbytes = np.prod(SHAPE) * 2  # of uint16
    assert f"of {nbytes / 1000:.0f} kB" in plain
    store, report = tmp_path / "out/brain/brain.ome.zarr", tmp_path / "out/brain/report.html"
    header, row, sentence = plain.replace("\r", "").rstrip("\n").split("\n")[-3:]
    assert header.split() == ["sample", "verdict", "store", "report"]
    assert row.split() == ["brain", "look" if "look" in row else "pass", str(store), str(report)]
    assert sentence.startswith("brain: ")
    assert store.is_dir()
    assert report.is_file()
    recipe = store.with_name("recipe.json")
    for step, command in {"CONVERT": ["convert"], "RENDER": ["render", recipe]}.items():
        code, drawn = on_a_terminal(N4FLOW, *command, image, tmp_path / f"{step}.ome.zarr")
        assert code == 0
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
        assert re.search(rf"{step} \S+ \d:\d\d:\d\d .*of {nbytes / 1000:.0f} kB.*peak memory \d+ MB", plain), step


def test_a_log_gets_a_line_a_stage_and_quiet_says_nothing(image, tmp_path, capsys):
    log, out = tmp_path / "run.log", tmp_path / "out"
    assert ended("run", image, out, *FEW, "--log", log, "--quiet") == 0
    said = capsys.readouterr()
    assert said.out + said.err == ""
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line.split()[4].rstrip(":") for line in lines[1:]] == STAGES
    assert ended("run", image, out, "--log", log, "--sections", "99") == 2
    assert log.read_text().splitlines()[-1].endswith(capsys.readouterr().err.removeprefix("n4flow: ").rstrip())
    assert ended("run", image, out, "--log", image) == 2
    assert (
        capsys.readouterr().err
        == f"n4flow: --log {image} is also another file of the command; give it a path of its own\n"
    )


def test_strict_alone_makes_a_verdict_an_exit_code(image, tmp_path, monkeypatch, capsys):
    found = n4flow.run(image, tmp_path / "out", sections=3, bias="off", match="off", smooth_z=0)
    for status, code in (("look", 6), ("pass", 0)):
        found.samples[0].numbers["verdict"]["status"] = status
        monkeypatch.setattr("n4flow.pipeline.run.run", lambda *_given, **_options: found)
        assert ended("run", image, tmp_path / "out", "--strict") == code
        assert ended("run", image, tmp_path / "out") == 0
        assert f"brain   {status}     {tmp_path}" in capsys.readouterr().out


def test_a_callback_hears_of_every_stage_and_of_all_that_is_done(image, tmp_path):
    heard = []
    settings = {"bias": "volume", "iterations": "6,5", "match": "off", "smooth_z": 0}
    n4flow.run(image, tmp_path / "out", sections=3, progress=heard.append, **settings)
    steps = {event.step: [e for e in heard if e.step == event.step] for event in heard}
    assert list(steps) == [*STAGES[:2], "N4_VOLUME", "PROVE", *STAGES[2:]]
    totals = {"SHRINK": 48000, "PLANE_STATISTICS": 48000, "RENDER": 48000, "N4_VOLUME": 11}
    for number, (name, events) in enumerate(steps.items(), start=1):
        done = [event.done for event in events]
        assert done[0] == 0
        assert done == sorted(set(done))
        assert {(e.sample, e.number, e.of, e.total) for e in events} == {("brain", number, 8, totals.get(name, 0))}
        assert done[-1] == totals.get(name, 0)


@pytest.mark.parametrize("backend", ["cpu", "itk"])
def test_the_iterations_of_a_fit_are_counted_as_they_pass(backend, monkeypatch):
    monkeypatch.setattr(progress_module, "INTERVAL", 1e-4)
    z, y, x = np.ogrid[:24, :48, :48]
    image = (1000 * np.exp(0.4 * np.sin(x / 30) + 0.3 * y / 48) * (1 + 0.2 * ((z + y + x) % 3))).astype(np.float32)
    heard: list[Progress] = []
    field = n4flow.fit_bias(
        image, np.ones(image.shape, bool), iters=(40, 40), conv_threshold=1e-7, backend=backend, progress=heard.append
    )
    made = sum(level.iterations for level in field.levels)
    seen = {event.done for event in heard}
    assert (heard[0].done, heard[-1].done, heard[0].total) == (0, 80, 80)
    assert len(seen - {0, 80}) > 2  # while it runs, and not at its end alone
    assert seen - {80} <= set(range(made + 1))
