"""Give mutants to n4flow, each in a forked child with little time and memory, and count what becomes of them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hostile.mutants import Mutant
from hostile.originals import WRITERS, reference, voxels

SECONDS = 10  # Longest time that an answer may take.
BYTES = 2**30  # Most memory above that of the process before the mutant.
OUTCOMES = ("right", "refused", "silent", "traceback", "hang", "memory", "code")
BAD = OUTCOMES[2:]
CODES = {"verify": (1, 2)}  # Of a refusal, where it is not 2 alone: results that differ are no wrong usage.
PLAIN = ["--bias", "off", "--match", "off", "--smooth-z", "0", "--normalize", "false"]
SIZE = ["--voxel-um", "50 10 10"]


class Finding(NamedTuple):
    """What one command made of a mutant."""

    mutant: Mutant
    action: str
    outcome: str
    said: str


def make_originals(folder: Path, *, results: bool) -> None:
    """Write a whole file of every format, a table of sections, a sample sheet of an absent volume, and results."""
    for name, write in WRITERS.items():
        write(folder / name, voxels())
    (folder / "sections.tsv").write_text("id\tz_start\tz_stop\tflag\ns000\t0\t2\tok\ns001\t2\t5\tok\n")
    (folder / "sheet.csv").write_text("sample,image,sections,voxel_um\nbrain,absent.npy,2,50 10 10\n")
    if not results:
        return
    from n4flow.pipeline.run import run

    np.save(folder / "brain.npy", voxels())
    run(folder / "brain.npy", folder / "results", voxel_um="50 10 10", sections=2, smooth_z=1, spline_um=400)
    for name in ("corrections", "mask.ome.zarr"):
        shutil.copytree(folder / "results" / "brain" / name, folder / "recipe" / name)
    shutil.copyfile(folder / "results" / "brain" / "recipe.json", folder / "recipe" / "recipe.json")
    _render(folder / "recipe", folder, folder / "rendered.zarr")
    np.save(folder / "rendered.npy", _level(folder / "rendered.zarr"))


def sweep(chosen: Iterable[Mutant], folder: Path, seed: int, more: Callable[[Mutant], bool]) -> Iterator[Finding]:
    """Yield what each command makes of each mutant; `more` says which of them the long commands get, too."""
    originals = folder / "originals"
    for mutant in chosen:
        place = folder / f"mutant-{os.getpid()}"
        place.mkdir()
        try:
            path = mutant.make(originals, place, seed)
            actions = _actions(mutant, path, originals)
            for action, function in actions if more(mutant) else actions[:2]:
                finding = Finding(mutant, action, *_judged(function, place, CODES.get(action, (2,))))
                yield finding
                if action == "n4" and finding.outcome != "refused":
                    break  # The whole chain is for what it refuses: it takes too long to be judged by time.
        finally:
            shutil.rmtree(place)


def _actions(mutant: Mutant, path: Path, originals: Path) -> list[tuple[str, Callable[[], bool]]]:
    """Return commands by name, long ones last; each is a function that returns whether its result is right."""
    out = path.parent / "out"
    actions: dict[str, list[tuple[str, Callable[[], bool]]]] = {
        "volume": [
            ("read", lambda: _read(path)),
            ("inspect", lambda: _main("inspect", path, *SIZE)),
            ("n4", lambda: _main("n4", path, out.with_suffix(".npy"), "--iterations", "2", "--channel", "0")),
            ("run", lambda: _main("run", path, out, *SIZE, *PLAIN)),
        ],
        "sections": [("inspect", lambda: _main("inspect", originals / "array.npy", *SIZE, "--sections", path))],
        "sheet": [("run", lambda: _main("run", path, out, *PLAIN))],
        "recipe": [
            (
                "render",
                lambda: _render(path, originals, out) and (mutant.kind == "inside" or _as_rendered(out, originals)),
            )
        ],
        "results": [("verify", lambda: _main("verify", path) and False)],
    }
    return actions[mutant.family]


def _main(*arguments: Any) -> bool:
    from n4flow.commands import main

    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            raise
    return True


def _render(recipe: Path, originals: Path, out: Path) -> bool:
    return _main("render", recipe / "recipe.json", originals / "array.npy", out.with_suffix(".zarr"), *SIZE)


def _level(store: Path) -> np.ndarray:
    from n4flow.io.open import open_volume

    return open_volume(store).read(slice(None))


def _as_rendered(out: Path, originals: Path) -> bool:
    return np.array_equal(_level(out.with_suffix(".zarr")), np.load(originals / "rendered.npy"))


def _read(path: Path) -> bool:
    """Read a volume as the library does; keep what is not the original for the comparison with another library."""
    from n4flow.errors import N4flowError
    from n4flow.io.open import open_volume

    try:
        values = open_volume(path, channel=0, require_voxel_um=False).read(slice(None))
    except N4flowError as error:
        print(f"n4flow: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if np.array_equal(values, voxels()):
        return True
    np.save(path.parent / "read.npy", values)
    return False


def _as_its_library(path: Path) -> bool:
    """Return whether another library reads the same voxels."""
    ours, theirs = np.load(path.parent / "read.npy"), np.asarray(reference(path))
    return theirs.size == ours.size and np.array_equal(
        theirs.reshape(ours.shape), ours, equal_nan=ours.dtype.kind == "f"
    )


def _judged(function: Callable[[], bool], place: Path, codes: tuple[int, ...]) -> tuple[str, str]:
    """Return the outcome of a command and the last line that it said."""
    answer = place / "answer.json"
    answer.unlink(missing_ok=True)
    status, seconds, memory = forked(lambda: answer.write_text(json.dumps(function())), place / "said")
    said = (place / "said").read_text(errors="replace").strip()
    last = said.splitlines()[-1][:300] if said else ""
    code = os.waitstatus_to_exitcode(status)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU):
        return "hang", f"{seconds:.0f} s"
    if memory > BYTES:
        return "memory", f"{memory >> 20} MiB; {last}"
    if code < 0 or "Traceback (most recent call last)" in said:
        return "traceback", f"{code}: {last}"
    if code == 0:
        if answer.exists() and json.loads(answer.read_text()):
            return "right", ""
        if (place / "read.npy").exists():
            path = next(item for item in place.iterdir() if item.name in WRITERS)
            status, _seconds, _memory = forked(lambda: sys.exit(not _as_its_library(path)), place / "theirs")
            if status == 0:
                return "right", "as its library reads it"
            last = (place / "theirs").read_text(errors="replace").strip().splitlines()[-1:] or ["other voxels"]
        return "silent", str(last)
    if not (last.startswith("n4flow: ") or said.startswith("Usage: ")):
        return "traceback", f"{code}: {last}"
    return ("refused" if code in codes else "code"), f"{code}: {last}"


def forked(function: Callable[[], Any], said: Path, most: float = SECONDS) -> tuple[int, float, int]:
    """Call a function in a child; return how it ended, how long it took and its memory above what it began with.

    It is stopped after `most` seconds of a processor, or of waiting; where others use the machine, it has longer.
    """
    base = _resident()
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            descriptor = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            limit = _virtual() + 6 * BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CPU, (int(most), int(most)))
            function()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001  what a test sees of any end
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - begin
        if ended:
            return status, seconds, usage.ru_maxrss * 1024 - base
        if seconds > most and (seconds > 6 * most or _waits(child)):
            os.kill(child, signal.SIGKILL)
            _ended, status, usage = os.wait4(child, 0)
            return status, seconds, usage.ru_maxrss * 1024 - base
        time.sleep(0.003)


def _waits(process: int) -> bool:
    """Return whether no thread of a process has anything to do but to wait."""
    threads = Path(f"/proc/{process}/task").glob("*/stat")
    try:
        states = {file.read_text().rpartition(")")[2].split()[0] for file in threads}
    except OSError:  # one of them ended meanwhile
        return False
    return not {"R", "D"} & states


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def warm_up(folder: Path, *, fit: bool) -> None:
    """Load what the commands need in this process, without a thread that a child would miss."""
    import nibabel  # noqa: F401
    import SimpleITK  # noqa: F401
    import tensorstore  # noqa: F401
    import tifffile  # noqa: F401
    import zarr  # noqa: F401

    from n4flow.compute.threads import limit_threads

    limit_threads(1)
    _main("inspect", folder / "array.npy", *SIZE, "--answer", folder / "plan.json", "--threads", 1)
    if fit:
        _main("n4", folder / "array.npy", folder / "warm.npy", "--threads", 1)
        # What `run` compiles is kept in files, for children that have no time to compile.
        forked(lambda: _main("run", folder / "array.npy", folder / "warm", *SIZE, *PLAIN), folder / "said", 600)


def shared_out(chosen: list[Mutant], folder: Path, seed: int, jobs: int, every: int) -> list[Finding]:
    """Sweep in so many processes; the long commands get every so many mutants of a kind, or none."""
    workers = []
    for job in range(jobs):
        worker = os.fork()
        if worker == 0:
            code = 1
            try:
                with (folder / f"findings-{job}").open("w") as stream:
                    for finding in sweep(
                        chosen[job::jobs], folder, seed, lambda mutant: bool(every) and mutant.number % every == 0
                    ):
                        stream.write(json.dumps([chosen.index(finding.mutant), *finding[1:]]) + "\n")
                code = 0
            except Exception:  # noqa: BLE001  the parent says that it failed
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(worker)
    if sum(os.waitpid(worker, 0)[1] for worker in workers):  # every one of them is waited for
        msg = "a process of the sweep failed"
        raise RuntimeError(msg)
    lines = [json.loads(line) for job in range(jobs) for line in (folder / f"findings-{job}").read_text().splitlines()]
    return [Finding(chosen[index], *rest) for index, *rest in lines]


def table(findings: list[Finding], of: Callable[[Mutant], str]) -> str:
    """Return counts of outcomes by a property of the mutants, the worst outcome of each one's commands."""
    worst: dict[Mutant, str] = {}
    for finding in findings:
        worst[finding.mutant] = max(worst.get(finding.mutant, OUTCOMES[0]), finding.outcome, key=OUTCOMES.index)
    counts: dict[str, Counter[str]] = {}
    for mutant, outcome in worst.items():
        counts.setdefault(of(mutant), Counter())[outcome] += 1
    total = sum(counts.values(), Counter())
    head = f"{'':20}" + "".join(f"{name:>10}" for name in ("mutants", *OUTCOMES))
    rows = [
        f"{name:20}{row.total():10}" + "".join(f"{row[outcome] or '.':>10}" for outcome in OUTCOMES)
        for name, row in [*counts.items(), ("all", total)]
    ]
    return "\n".join([head, *rows])
