"""The command line: exit codes, one sentence for a mistake, numbers as JSON, lists of numbers."""

import ctypes
import errno
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer.main

import n4flow.commands
from n4flow.commands import app, main
from n4flow.commands.finish import whole
from n4flow.commands.options import as_step
from n4flow.commands.step import plane_range
from n4flow.errors import DiskFullError, GpuError, InputError, N4flowWarning
from n4flow.io.writers import write_volume
from n4flow.pipeline.parameters import groups
from n4flow.pipeline.timing import dumps
from n4flow.statistics.measure import shrink_planes


def ended(arguments):
    """Return the exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("n4flow", "numpy"),
        ("n4flow.commands", "numpy"),
        (
            "n4flow.pipeline.estimate",
            "numba scipy skimage SimpleITK matplotlib dask zarr tensorstore numcodecs cupy",
        ),
    ],
)
def test_a_task_imports_nothing_that_only_other_tasks_need(module, unneeded):
    code = f"import sys, {module}; print(*sorted(sys.modules.keys() & set({unneeded.split()})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "brain.ome.zarr"
    write_volume(path, np.full((6, 40, 50), 5, np.uint16), voxel_um=(20, 4, 5))
    return path


def test_inspect_answers_the_machine(image, tmp_path, capsys):
    assert ended(["inspect", image, "--sections", "3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["sample"], plan["shape"], plan["sections"]) == ("brain", [6, 40, 50], 3)
    assert ended(["inspect", image, "--sections", "3", "--json", tmp_path / "n.json"]) == 0
    assert json.loads((tmp_path / "n.json").read_text())["plan"] == plan


def test_inspect_answers_a_person(image, capsys):
    """What it is, what will be done, what it takes, what is doubtful, and the command, which runs as it stands."""
    given = ["--match", "off", "--smooth_z", "0", "--bias", "off", "--no-normalize", "--voxel-um", "40", "4", "5"]
    assert ended(["inspect", image, *given]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "brain: ome-zarr, 6 x 40 x 50 voxels (z y x) of 40 x 4 x 5 micrometres, uint16, 24 kB"
    assert "  Sections: 1, of 6 planes; none is flagged" in said
    first, last = said.index("What will be done:"), said.index("What it takes:")
    assert [line.split()[0] for line in said[first + 1 : last]] == ["SHRINK", "TISSUE_MASK", "RENDER", "FINISH"]
    assert [line.split()[0] for line in said[last + 1 : last + 5]] == ["time", "memory", "reading", "disk"]
    assert said[said.index("What is doubtful:") + 1].startswith("  - the whole stack is treated as one section;")
    again = shlex.split(said[-1].removeprefix("Run it: "))
    assert again[:4] == ["n4flow", "run", str(image), "OUTDIR"]
    found = parsed(*again[2:])
    assert {name: found[name] for name in ("match", "smooth_z", "bias", "normalize", "voxel_um", "sections")} == {
        "match": "off", "smooth_z": "0.0", "bias": "off", "normalize": False, "voxel_um": "40,4,5", "sections": None
    }  # fmt: skip


def test_inspect_looks_at_every_sample_of_a_sheet(image, capsys):
    sheet = image.with_name("samples.csv")
    sheet.write_text("sample,image,sections\na,brain.ome.zarr,2\nb,brain.ome.zarr,3\n")
    assert ended(["inspect", sheet]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line[0] not in " WR"] == ["a:", "b:"]
    assert "Sections: 2," in said
    assert ended(["inspect", sheet, "--json"]) == 0
    assert [plan["sections"] for plan in json.loads(capsys.readouterr().out)["plans"]] == [2, 3]


def test_a_mistake_ends_with_code_2_and_one_sentence(image, capsys):
    assert ended(["inspect", image, "--sections", "9"]) == 2
    assert capsys.readouterr().err == (
        "n4flow: sample brain: sections must be a count from 1 to the number of planes (6), got 9\n"
    )
    assert ended(["run", image, image.parent / "out", "--smoth-z", "3"]) == 2
    assert capsys.readouterr().err == "n4flow: unknown option --smoth-z of n4flow run; did you mean --smooth-z?\n"
    assert not (image.parent / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        "run IMAGE out --json IMAGE",
        "run IMAGE out --mask MASK --json MASK",
        "render MASK IMAGE out.ome.zarr --json MASK",
        "phantom MASK --json MASK",
        "verify MASK --json MASK",
        "provenance a.json MASK --run r --parameters p --versions v --workflow w --out o --json MASK",
    ],
)
def test_numbers_are_written_to_no_other_file_of_the_command(image, tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    mask = tmp_path / "mask.nii"
    mask.write_bytes(b"not to be replaced")
    assert ended([{"IMAGE": image, "MASK": mask}.get(word, word) for word in line.split()]) == 2
    assert "is also another file of the command; give it a path of its own" in capsys.readouterr().err
    assert mask.read_bytes() == b"not to be replaced"


def test_wrong_usage_ends_with_code_2():
    assert ended(["inspect"]) == 2
    assert ended(["shrnk"]) == 2


def test_inspect_answers_a_fault_to_the_workflow(image, tmp_path):
    assert ended(["inspect", image, "--sections", "9", "--answer", tmp_path / "plan.json"]) == 0
    assert "got 9" in json.loads((tmp_path / "plan.json").read_text())["fault"]


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (GpuError("no working GPU: none"), 3, "no working GPU"),
        (MemoryError("Unable to allocate 9 GiB"), 4, "out of memory"),
        (RuntimeError("can't start new thread"), 4, "no further thread can be started; raise the limit"),
        (OSError(errno.ENOSPC, "No space left on device", "out.zarr"), 5, "disk or quota full at out.zarr"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 5, "disk or quota full"),
        (DiskFullError("disk full"), 5, "disk full"),
        (OSError(errno.EFBIG, "File too large"), 5, "the limit of a file's size is reached"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), 2, "file name too long; check the path"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), 2, "a: too many levels of symbolic links"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(monkeypatch, capsys, error, code, word):
    def fail(**_given):
        raise error

    monkeypatch.setattr(n4flow.commands.typer.main, "get_command", lambda _app: fail)
    assert ended(["inspect"]) == code
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("command", [("run", "a.npy", "out"), ("n4", "a.npy", "b.npy")])
def test_too_little_address_space_is_a_sentence_and_not_an_abort_of_llvm(command):
    n4flow = Path(sys.executable).with_name("n4flow")
    line = ["/bin/sh", "-c", 'ulimit -v 400000; exec "$@"', "sh", n4flow, *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "needs at least 850 MB of address space" in done.stderr
    assert "the limit is 409 MB; raise it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_takes_the_sentence_and_leaves_the_code():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [Path(sys.executable).with_name("n4flow"), "inspect", "nowhere.zarr"], stderr=full, check=False
        )
    assert done.returncode == 2


class Panic(BaseException):
    """What pyo3 makes of a panic of Rust: no Exception."""


@pytest.mark.parametrize(
    "error", [Panic("at src/lib.rs:1"), EOFError(), RecursionError("too deep"), KeyError("name"), MemoryError("9 PiB")]
)
def test_whatever_a_library_raises_about_a_file_is_a_sentence_and_verbose_shows_where(
    tmp_path, monkeypatch, capsys, error
):
    def fail(*_given, **_options):
        raise error

    (tmp_path / "a.npy").write_bytes(b"")
    monkeypatch.setattr("n4flow.io.npy.NpyReader.__init__", fail)
    assert ended(["inspect", tmp_path / "a.npy"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "a.npy is not a readable volume (NumPy): " in said
    assert ended(["--verbose", "inspect", tmp_path / "a.npy"]) == 2
    assert "in fail" in capsys.readouterr().err


def test_the_end_of_a_file_is_not_taken_for_one_of_the_keyboard(tmp_path, monkeypatch, capsys):
    def fail(*_given, **_options):
        raise EOFError

    monkeypatch.setattr("n4flow.pipeline.channels.make_plans", fail)
    assert ended(["inspect", tmp_path]) == 1
    assert "Aborted" not in (said := capsys.readouterr().err)
    assert "please report it with the lines above" in said


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch, capsys):
    def fail(**_given):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(n4flow.commands.typer.main, "get_command", lambda _app: fail)
    assert ended(["inspect"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("Traceback")
    assert said[-2:] == [
        "OSError: [Errno 5] Input/output error",
        "n4flow: this is a fault of n4flow and not of yours; please report it with the lines above",
    ]


def parsed(*arguments):
    """Return what the parser of `n4flow run` makes of arguments."""
    group = typer.main.get_command(app)
    command = group.get_command(group.make_context("n4flow", ["run"]), "run")
    return command.make_context("run", list(arguments)).params


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--iterations 50 40 --shrink 2", "iterations", "50,40"),
        ("--iterations 50", "iterations", "50"),
        ("--iterations 5,6 7", "iterations", "5,6,7"),
        ("--voxel_um 10 2.5 1e1", "voxel_um", "10,2.5,1e1"),
        ("--voxel-um=10,5,5", "voxel_um", "10,5,5"),
        ("--shrink 2", "shrink", "2"),
        ("--smooth_z 3", "smooth_z", "3"),
        ("--match=off", "match", "off"),
        ("--normalize false", "normalize", False),
        ("--normalize=true", "normalize", True),
        ("--no-normalize", "normalize", False),
        ("--no_normalize true", "normalize", False),
        ("--no-normalize false", "normalize", True),
        ("--allow_missing_chunks true", "allow_missing_chunks", True),
        ("--allow-missing-chunks=false", "allow_missing_chunks", False),
        ("--json", "json_file", Path("-")),
        ("--json n.json", "json_file", Path("n.json")),
    ],
)
def test_an_option_is_read_in_every_spelling_before_and_after_the_arguments(arguments, name, value):
    for line in (["in", "out", *arguments.split()], [*arguments.split(), "--threads", "1", "in", "out"]):
        found = parsed(*line)
        assert (found["image"], found["outdir"], found[name]) == ("in", Path("out"), value)


@pytest.mark.parametrize(
    ("line", "option", "said"),
    [
        ("run a b --smoth-z 3", "--smoth-z", "did you mean --smooth-z?"),
        ("run a --output b", "--output", "OUTDIR is given by its place: n4flow run INPUT OUTDIR"),
        ("run b --input a", "--input", "INPUT is given by its place: n4flow run INPUT OUTDIR"),
        ("run a b --n_jobs 3", "--n-jobs", "did you mean --threads?"),
        ("run a b --job-array 3", "--job-array", "it is of the workflow alone, so leave it out"),
        ("inspect a --spacing 3", "--spacing", "did you mean --voxel-um?"),
        ("n4 a b --downsample 3", "--downsample", "did you mean --shrink?"),
        ("phantom a --shape 9 9", "--shape", "did you mean --size?"),
    ],
)
def test_an_unknown_option_is_answered_by_what_is_meant(line, option, said, capsys):
    assert ended(line.split()) == 2
    assert capsys.readouterr().err == f"n4flow: unknown option {option} of n4flow {line.split()[0]}; {said}\n"


def test_a_step_writes_its_numbers_and_says_its_warnings(tmp_path, caplog):
    import warnings

    def work(numbers):
        warnings.warn("section s003 is empty", N4flowWarning, stacklevel=1)
        numbers.update(share=np.float32(0.5), missing=float("nan"))

    as_step("SHRINK", work)(threads=1, json_file=tmp_path / "n.json")
    written = json.loads((tmp_path / "n.json").read_text())
    assert written["stage"] == "SHRINK"
    assert written["share"] == 0.5
    assert written["missing"] is None
    assert written["threads"] == 1
    assert written["warnings"] == ["section s003 is empty"]
    assert "section s003 is empty" in caplog.text


def test_a_step_that_fails_leaves_no_numbers(tmp_path):
    def fail():
        raise InputError("bad")

    with pytest.raises(InputError):
        as_step("SHRINK", fail)(threads=1, json_file=tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()


def test_json_has_no_nan_and_no_numpy():
    assert json.loads(dumps({"a": np.arange(2), "b": [np.int64(3), float("inf")]})) == {"a": [0, 1], "b": [3, None]}


@pytest.mark.parametrize("text", ["0:9", "3:3", "a:b", "4", "-1:2", "²:5"])
def test_planes_outside_the_volume_are_refused(text):
    with pytest.raises(InputError, match=r"planes must be START:STOP within 0:8"):
        plane_range(text, 8)
    assert plane_range("2:8", 8) == plane_range("2:8") == (2, 8)


def test_planes_and_masks_that_do_not_fit_are_said_by_a_task(image, tmp_path, capsys):
    np.save(tmp_path / "short.npy", np.ones((3, 40, 50), np.uint8))
    slab = ["shrink", image, "--shrink", "2", "--out", tmp_path / "slab.npz", "--planes"]
    assert ended([*slab, "4:9"]) == 2
    assert capsys.readouterr().err == "n4flow: planes must be START:STOP within 0:6, got '4:9'\n"
    assert ended([*slab, "4:6", "--mask", tmp_path / "short.npy"]) == 2
    assert "short.npy has the shape (3, 40, 50), and the image " in capsys.readouterr().err
    assert not (tmp_path / "slab.npz").exists()


def test_slabs_that_are_not_the_volume_are_refused(tmp_path):
    image = np.random.default_rng(2).uniform(1, 9, (7, 12, 16)).astype(np.float32)
    slabs = [tmp_path / f"{start}.npz" for start in (0, 3, 6)]
    for start, slab in zip((0, 3, 6), slabs, strict=True):
        shrink_planes(image[start : start + 3], 2).save(slab)
    assert np.array_equal(whole(slabs, image.shape, tmp_path).part(0, 7).mean, shrink_planes(image, 2).mean)
    with pytest.raises(InputError, match=rf"^{tmp_path} holds slabs of 4 planes, and the volume has 7; give"):
        whole(slabs[1:], image.shape, tmp_path)
    with pytest.raises(InputError, match="slabs of 10 planes"):
        whole([slabs[0], *slabs], image.shape, tmp_path)


ARENAS = """
import ctypes, os, sys, threading
from n4flow.commands import app, main
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
try:
    main(["--version"])
except SystemExit:
    pass
together = threading.Barrier(8)
def allocate():
    together.wait()
    libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.fopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
@pytest.mark.parametrize(("asked", "expected"), [(None, max(2, len(os.sched_getaffinity(0)))), ("5", 5)])
def test_a_command_keeps_an_arena_of_memory_for_each_core(tmp_path, asked, expected):
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    environment |= {"MALLOC_ARENA_MAX": asked} if asked else {}
    subprocess.run([sys.executable, "-c", ARENAS, tmp_path / "info.xml"], env=environment, check=True)
    assert (tmp_path / "info.xml").read_text().count("<heap nr=") == min(expected, 9)  # of eight threads and the first


def test_publish_says_what_came_in_which_way(tmp_path, capsys):
    """Into the folder that a link names, as a task has it."""
    source, numbers = tmp_path / "made" / "brain", tmp_path / "numbers.json"
    (source / "store").mkdir(parents=True)
    for name, text in (("recipe.json", "{}"), ("checksums.json", "{}"), ("store/0", "voxels")):
        (source / name).write_text(text)
    (tmp_path / "results").mkdir()
    (tmp_path / "outdir").symlink_to("results")
    asked = ["publish", source, tmp_path / "outdir", "--link", "--threads", "1", "--json", numbers]
    assert ended(asked) == 0
    place = tmp_path / "results" / "brain"
    assert capsys.readouterr().out == f"3 files, 0.000 GB in {place}: 3 linked\n"
    said = json.loads(numbers.read_text())
    assert (said["files"], said["bytes"], said["linked"]) == (3, 2 + 2 + 6, 3)
    assert os.path.samefile(place / "store" / "0", source / "store" / "0")
    assert ended(asked) == 0
    assert capsys.readouterr().out.endswith(": 3 kept\n")
    (place / "recipe.json").unlink()
    assert ended(asked) == 2
    assert "brain exists and is no result of n4flow" in capsys.readouterr().err


def test_help_is_there_by_its_short_name_for_every_command(capsys):
    group = typer.main.get_command(app)
    for name in [None, *group.list_commands(group.make_context("n4flow", ["run"]))]:
        said = []
        for spelled in ("-h", "--help"):
            assert ended([*filter(None, [name]), spelled]) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert f"Usage: n4flow {name or '[OPTIONS] COMMAND'}" in said[0]


def test_run_lists_every_parameter_in_the_section_of_the_schema(capsys):
    assert ended(["run", "-h"]) == 0
    said = capsys.readouterr().out
    at = [said.index(f"\n{group['title']}:\n") for group in groups()] + [said.index("\nOptions:\n")]
    assert at == sorted(at)
    for group, (start, stop) in zip(groups(), pairwise(at), strict=True):
        listed = re.findall(r"^  --([a-z-]+)", said[start:stop], re.MULTILINE)
        own = [name for name, rule in group["properties"].items() if not rule.get("workflow")]
        assert listed == [name.replace("_", "-") for name in own if name not in ("input", "outdir")]
    words = " ".join(said.split())
    for choices in ("--trust proven|full", "--bias sections|volume|two_pass|off"):
        assert choices in words
    assert "[a number from 0 to 1; default 0.001]" in words


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("n4flow ver", {"verify", "versions"}),
        ("n4flow run --smooth", {"--smooth-z"}),
        ("n4flow run a b --trust ", {"proven", "full"}),
        ("n4flow inspect --ome-zarr-version 0.", {"0.5", "0.4"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(typed, offered):
    words = typed.split(" ")
    asked = {"_N4FLOW_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    n4flow = Path(sys.executable).with_name("n4flow")
    done = subprocess.run([n4flow], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered
