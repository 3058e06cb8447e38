"""Results take their place complete or not at all; what killed processes leave is taken away, what lives is not."""

import logging
import os
import signal
import socket
import subprocess
import sys

import pytest

from n4flow.errors import InputError
from n4flow.io.publishing import LOCK, published, reclaim

# makes a result in a folder, and is ended by a signal at its nth renaming or removal; "wait" lives on instead
KILLED = """
import os, signal, sys, time
from pathlib import Path
from n4flow.io import publishing

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
at, sent, calls = sys.argv[2], int(sys.argv[3]), []

def ended(function):
    def call(*places, **more):
        calls.append(places)
        if str(len(calls)) == at:
            os.kill(os.getpid(), sent)
        function(*places, **more)
    return call

with publishing.published(Path(sys.argv[1])) as folder:
    folder.mkdir()
    (folder / "recipe.json").write_text("new")
    (folder.parent / "work").mkdir()
    if at == "wait":
        print("working", flush=True)
        time.sleep(60)
    os.replace, publishing._delete, Path.unlink = map(ended, (os.replace, publishing._delete, Path.unlink))
"""


def begun(out, at, sent=signal.SIGKILL):
    command = [sys.executable, "-c", KILLED, str(out), at, str(int(sent))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_result_takes_the_place_of_an_older_one_only_when_it_is_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.json").touch()
    with pytest.raises(InputError), published(tmp_path / "out") as folder:
        folder.mkdir()
        raise InputError("no")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.json"]
    with published(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# the older result is moved aside, the new one put in place; then what is left is renamed and removed, the lock last
@pytest.mark.parametrize(("at", "there"), [(1, "old"), (2, None), *((at, "new") for at in range(3, 9))])
def test_what_a_killed_process_left_is_removed_and_a_result_is_there(tmp_path, caplog, at, there):
    out = tmp_path / "brain"
    out.mkdir()
    (out / "recipe.json").write_text("old")
    with begun(out, str(at)) as process:
        assert process.wait() == -signal.SIGKILL
    assert (out / "recipe.json").read_text() == there if there else not out.exists()
    assert len([name for name in names(tmp_path) if name.startswith(".brain.")]) == 1
    with caplog.at_level(logging.WARNING):
        reclaim(out)
    assert names(tmp_path) == ["brain"]
    assert (out / "recipe.json").read_text() == (there or "old")
    assert "which a killed run had left, was removed" in caplog.text
    assert ("was put back: the run that was to replace it was killed" in caplog.text) == (there is None)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("link", [False, True])
def test_a_signal_that_ends_a_process_costs_no_result(tmp_path, at, link):
    out, kept = tmp_path / "brain", tmp_path / ("kept" if link else "brain")
    kept.mkdir()
    (kept / "recipe.json").write_text("old")
    if link:
        out.symlink_to("kept")
    with begun(out, str(at), signal.SIGTERM) as process:
        assert process.wait() == 143
    assert (out / "recipe.json").read_text() == ("new" if at > 2 else "old")
    reclaim(out)
    assert names(tmp_path) == sorted({"brain", kept.name})
    assert (kept / "recipe.json").read_text() == ("old" if link or at < 3 else "new")


def test_a_result_that_cannot_be_put_back_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "brain"
    out.mkdir()
    (out / "recipe.json").write_text("old")
    replace = os.replace

    def broken(source, target):
        if target == out:
            raise OSError(5, "broken")
        replace(source, target)

    monkeypatch.setattr("n4flow.io.publishing.os.replace", broken)
    with pytest.raises(OSError, match="broken"), published(out) as folder:
        folder.mkdir()
    monkeypatch.undo()
    reclaim(out)
    assert names(tmp_path) == ["brain"]
    assert (out / "recipe.json").read_text() == "old"


def test_a_part_of_an_older_result_is_not_put_back(tmp_path):
    out, scratch = tmp_path / "brain", tmp_path / ".brain.abcdefgh"
    (scratch / "gone").mkdir(
        parents=True
    )  # the process was killed while it removed that; then someone moved the result
    (scratch / LOCK).write_text(socket.gethostname())
    reclaim(out)
    assert names(tmp_path) == []


def test_a_folder_is_left_alone_while_its_process_lives_or_may_live_elsewhere(tmp_path, caplog):
    out = tmp_path / "brain"
    with begun(out, "wait") as process:
        assert process.stdout.readline() == "working\n"
        for name in (".brain.ome.zarr.abcdefgh", ".brain.abcd", ".brain.elsewher"):  # of others, and of another machine
            (tmp_path / name).mkdir()
            (tmp_path / name / LOCK).write_bytes(b"far away \xff")
        (tmp_path / ".brain.settings").mkdir()
        there = names(tmp_path)
        reclaim(out)
        with published(out) as folder:
            folder.mkdir()
        assert names(tmp_path) == sorted([*there, "brain"])
        process.kill()
    (line,) = caplog.messages
    assert ".brain.elsewher was left by a run on far away" in line
