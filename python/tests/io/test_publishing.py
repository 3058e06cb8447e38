"""Results take their place complete or not at all; what killed processes leave is taken away, what lives is not."""

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from n4flow.errors import InputError, N4flowError
from n4flow.io import publishing
from n4flow.io.open import open_volume
from n4flow.io.publishing import check_replaceable, locked, publish, published, reclaim
from n4flow.io.writers import write_volume

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
    os.replace, publishing._delete, Path.unlink, Path.rmdir = map(
        ended, (os.replace, publishing._delete, Path.unlink, Path.rmdir)
    )
"""
# publishes one of several folders, and says how it went
PUBLISHES = """
import sys
from pathlib import Path
from n4flow.errors import InputError
from n4flow.io.publishing import publish

print("ready", flush=True)
sys.stdin.readline()
try:
    publish(Path(sys.argv[1]), Path(sys.argv[2]), link=sys.argv[3] == "link", threads=4)
    print("ok")
except InputError as error:
    print(error)
"""


def begun(out, at, sent=signal.SIGKILL):
    command = [sys.executable, "-c", KILLED, str(out), at, str(int(sent))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def publishing_process(source, out, mode="copy"):
    command = [sys.executable, "-c", PUBLISHES, str(source), str(out), mode]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def result(folder, files, text="new"):
    """Make what looks like a sample's results: so many small files, all of which say whose they are."""
    for number in range(files):
        place = folder / "brain.ome.zarr" / str(number % 7) / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text} {number}")
    (folder / "recipe.json").write_text(text)
    (folder / "checksums.json").write_text(text)
    return folder


def texts(folder):
    """Return the text of every file, by its path, as os.walk finds them."""
    return {
        os.path.relpath(os.path.join(above, name), folder): Path(above, name).read_text()
        for above, _folders, inside in os.walk(folder)
        for name in inside
    }


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


# the older result is set aside, the new one put in place; then what is left is renamed and removed, the lock last
@pytest.mark.parametrize(("at", "there"), [(1, "old"), (2, None), *((at, "new") for at in range(3, 9))])
def test_what_a_killed_process_left_is_removed_and_a_result_is_there(tmp_path, caplog, at, there):
    out = tmp_path / "brain"
    out.mkdir()
    (out / "recipe.json").write_text("old")
    with begun(out, str(at)) as process:
        assert process.wait() == -signal.SIGKILL
    assert (out / "recipe.json").read_text() == there if there else not out.exists()
    assert (tmp_path / ".brain.n4flow").is_dir()
    with caplog.at_level(logging.WARNING):
        reclaim(tmp_path)
    assert names(tmp_path) == ["brain"]
    assert (out / "recipe.json").read_text() == (there or "old")
    assert ("which a killed run had left, was removed" in caplog.text) == (at < 7)  # then it is the lock alone
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
    reclaim(tmp_path)
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
    reclaim(tmp_path)
    assert names(tmp_path) == ["brain"]
    assert (out / "recipe.json").read_text() == "old"


def test_a_part_of_an_older_result_is_not_put_back(tmp_path):
    out, hidden = tmp_path / "brain", tmp_path / ".brain.n4flow"
    (hidden / "n4flow-abcdefgh" / "gone").mkdir(parents=True)  # killed while it removed that; then someone moved `out`
    reclaim(tmp_path)
    assert names(tmp_path) == []
    assert not out.exists()


def test_a_folder_is_left_alone_while_its_process_lives_and_nothing_of_others_is_touched(tmp_path, caplog):
    out = tmp_path / "brain"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "n4flow-projects").mkdir(parents=True)
    (tmp_path / ".mine.n4flow").symlink_to(elsewhere)
    (tmp_path / ".cache.n4flow" / "notes").mkdir(parents=True)
    with begun(out, "wait") as process:
        assert process.stdout.readline() == "working\n"
        there = texts(tmp_path)
        reclaim(tmp_path)
        assert texts(tmp_path) == there
        with pytest.raises(InputError, match=rf"brain is being written by process {process.pid} on .*; wait until"):
            publish(result(tmp_path / "source", 3), out)
        process.kill()
    publish(tmp_path / "source", out)
    assert texts(out) == texts(tmp_path / "source")
    assert names(tmp_path) == [".cache.n4flow", ".mine.n4flow", "brain", "elsewhere", "source"]
    assert (elsewhere / "n4flow-projects").is_dir()
    assert "which a killed run had left, was removed" in caplog.text


def test_what_was_left_on_another_machine_goes_when_it_is_made_again(tmp_path):
    """Its process may live: the locks of some file systems do not reach other machines."""
    for name in ("brain", "other"):
        (tmp_path / f".{name}.n4flow" / "n4flow-abcdefgh").mkdir(parents=True)
        (tmp_path / f".{name}.n4flow" / "lock").write_bytes(b"process 1 on far away \xff")
    reclaim(tmp_path)
    assert names(tmp_path) == [".brain.n4flow", ".other.n4flow"]
    publish(result(tmp_path / "source", 3), tmp_path / "brain")
    assert names(tmp_path) == [".other.n4flow", "brain", "source"]
    assert names(tmp_path / ".other.n4flow") == ["lock", "n4flow-abcdefgh"]


def test_a_second_thread_is_refused_like_a_second_process(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "PATIENCE", 0.1)
    raised = []

    def second():
        try:
            with locked(tmp_path / "brain"):
                pass
        except InputError as error:
            raised.append(str(error))

    with locked(tmp_path / "brain"):
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert len(raised) == 1
    assert "is being written by process" in raised[0]


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path):
    release = threading.Event()

    def moment():
        with locked(tmp_path / "brain"):
            release.wait(5)
            time.sleep(0.2)

    first = threading.Thread(target=moment)
    first.start()
    while not (tmp_path / ".brain.n4flow" / "lock").exists():
        time.sleep(0.01)
    release.set()
    with locked(tmp_path / "brain"):
        first.join()
    assert names(tmp_path) == []


def test_without_locks_there_is_a_warning_and_what_others_left_stays(tmp_path, monkeypatch, caplog):
    """Two processes that see no lock of each other end with one of the results, whole."""

    def none(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".brain.n4flow" / "n4flow-abcdefgh" / "old").mkdir(parents=True)
    monkeypatch.setattr(fcntl, "fcntl", none)
    out = tmp_path / "brain"
    first = published(out)
    new = first.__enter__()
    result(new, 20, "first")
    publish(result(tmp_path / "source", 10, "second"), out)
    assert texts(out) == texts(tmp_path / "source")
    first.__exit__(None, None, None)
    assert set(texts(out).values()) == {"first", *(f"first {number}" for number in range(20))}
    assert names(tmp_path) == [".brain.n4flow", "brain", "source"]
    assert names(tmp_path / ".brain.n4flow") == ["n4flow-abcdefgh"]
    assert "has no locks (No locks available); let nothing else write brain" in caplog.text


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_publications_at_the_same_time_end_with_one_of_them_whole(tmp_path, mode):
    sources = [result(tmp_path / f"source {i}", 100 + 20 * i, f"run {i}") for i in range(4)]
    out = tmp_path / "results" / "brain"
    processes = [publishing_process(source, out, mode) for source in sources]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in processes]
    assert "ok" in said
    assert all(sentence == "ok" or "is being written by" in sentence for sentence in said), said
    done = [texts(source) for source, sentence in zip(sources, said, strict=True) if sentence == "ok"]
    assert texts(out) in done
    assert names(out.parent) == ["brain"]


def test_a_publication_that_is_killed_leaves_the_older_result_and_the_next_one_takes_its_place(tmp_path):
    older, newer = result(tmp_path / "older", 50, "old"), result(tmp_path / "newer", 800, "new")
    out = tmp_path / "results" / "brain"
    publish(older, out)
    process = publishing_process(newer, out)
    process.stdin.write("go\n")
    process.stdin.flush()
    while not list(out.parent.glob(".brain.n4flow/*/new/brain.ome.zarr/3/*")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert texts(out) == texts(older)
    assert [path.name for path in out.parent.iterdir() if path.name != "brain"] == [".brain.n4flow"]
    publish(newer, out)
    assert texts(out) == texts(newer)
    assert names(out.parent) == ["brain"]


def test_links_share_a_file_copies_do_not_and_what_is_equal_is_left_alone(tmp_path):
    source = result(tmp_path / "source", 5)
    assert publish(source, tmp_path / "link", link=True)["linked"] == 7
    assert publish(source, tmp_path / "copy")["copied" if not clones(tmp_path) else "cloned"] == 7
    inodes = {name: (tmp_path / name / "recipe.json").stat().st_ino for name in ("source", "link", "copy")}
    assert inodes["link"] == inodes["source"] != inodes["copy"]
    before = (tmp_path / "copy").stat().st_mtime_ns
    assert publish(source, tmp_path / "copy") == {
        "files": 7,
        "bytes": sum(map(len, texts(source).values())),
        "linked": 0,
        "cloned": 0,
        "copied": 0,
        "kept": 7,
    }
    (tmp_path / "copy" / "brain.ome.zarr" / "1" / "1").unlink()
    publish(source, tmp_path / "copy")
    assert texts(tmp_path / "copy") == texts(source)
    assert (tmp_path / "copy").stat().st_mtime_ns != before


def clones(folder):
    """Return whether the file system shares blocks, as `cp` says."""
    (folder / "one").write_text("one")
    command = ["cp", "--reflink=always", folder / "one", folder / "two"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_files_that_cannot_be_linked_are_copied(tmp_path, monkeypatch):
    def other_disk(*_names):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(publishing.os, "link", other_disk)
    done = publish(result(tmp_path / "source", 5), tmp_path / "out", link=True)
    assert done["cloned"] + done["copied"] == 7
    assert texts(tmp_path / "out") == texts(tmp_path / "source")


@pytest.mark.parametrize("fault", ["lost", "cut"])
def test_what_did_not_arrive_is_not_published(tmp_path, monkeypatch, fault):
    source, out = result(tmp_path / "source", 20), result(tmp_path / "out", 4, "old")
    bring = publishing._bring

    def faulty(old, new, **more):
        done = bring(old, new, **more)
        if new.name == "13":
            new.unlink() if fault == "lost" else new.write_text("n")
        return done

    monkeypatch.setattr(publishing, "_bring", faulty)
    with pytest.raises(N4flowError, match="files were lost or changed while they were brought"):
        publish(source, out)
    assert texts(out) == texts(result(tmp_path / "again", 4, "old"))
    assert names(tmp_path) == ["again", "out", "source"]


def test_a_folder_of_others_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raw.txt").touch()
    with pytest.raises(InputError, match="is no result of n4flow; remove it or choose another place"):
        publish(result(tmp_path / "source", 2), tmp_path / "out")
    assert names(tmp_path / "out") == ["raw.txt"]


@pytest.mark.parametrize("replaced_by", ["publish", "published"])
def test_a_result_in_whose_folder_others_wrote_is_not_replaced(tmp_path, replaced_by):
    out = result(tmp_path / "out", 2, "old")
    stated = {"files": {"recipe.json": "", "corrections/1.npz": ""}, "stores": {"brain.ome.zarr": {}}}
    (out / "checksums.json").write_text(json.dumps(stated))
    (out / "corrections").mkdir()
    check_replaceable(out)
    (out / "notes.txt").touch()
    with pytest.raises(InputError, match=r"out holds notes\.txt, which no run wrote; move it away"):
        if replaced_by == "publish":
            publish(result(tmp_path / "source", 2), out)
        else:
            with published(out) as folder:
                folder.mkdir()
    assert "notes.txt" in names(out)
    assert (out / "recipe.json").read_text() == "old"


def test_a_file_that_a_killed_process_was_writing_is_removed_by_the_next_one(tmp_path):
    """Into the same folder, under another name."""
    code = """if True:
        import os, signal, sys, numpy as np
        from n4flow.io import formats, writers
        kept = writers._put_in_place
        writers._put_in_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        writers.write_volume(sys.argv[1], np.ones((2, 3, 4), np.float32), voxel_um=(1, 1, 1))
    """
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "a.nii.gz"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".a.nii.gz.n4flow"]
    write_volume(tmp_path / "b.nrrd", np.ones((2, 3, 4), np.float32), voxel_um=(1, 1, 1))
    assert names(tmp_path) == ["b.nrrd"]


def test_a_store_that_is_replaced_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    store = tmp_path / "a.ome.zarr"
    write_volume(store, np.ones((2, 3, 4), np.uint8), voxel_um=(1, 1, 1))
    replace = os.replace

    def broken(source, target):
        if source.name == store.name:
            raise OSError(5, "broken")
        replace(source, target)

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="broken"):
        write_volume(store, np.zeros((2, 3, 4), np.uint8), voxel_um=(1, 1, 1))
    assert open_volume(store).read(slice(None)).all()
    assert names(tmp_path) == ["a.ome.zarr"]
