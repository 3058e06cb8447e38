"""Daemons that a test starts and that end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Debian keeps daemons where only root looks.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


@contextmanager
def daemon(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a daemon; what it prints goes to `folder`/NAME.out."""
    with (folder / f"{command[0]}.out").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(condition: Callable[[], bool], folder: Path, what: str, seconds: float = 120) -> None:
    """Wait for something that daemons do.

    Raises
    ------
    RuntimeError
        It does not happen in time; the message holds the daemons' last lines.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = [path for path in folder.iterdir() if path.suffix in (".out", ".log")]
            said = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-400:]}" for path in logs)
            msg = f"{what} within {seconds:.0f} s\n{said}"
            raise RuntimeError(msg)
        time.sleep(0.2)


def answer(question: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return what a command prints, stripped; nothing where it fails."""
    return subprocess.run(question, env=environment, capture_output=True, text=True, check=False).stdout.strip()
