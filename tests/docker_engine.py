"""A Docker engine, and images built in it: the one that answers, or one that root starts and that ends with the tests.

    python tests/docker_engine.py FOLDER COMMAND...    run a command with DOCKER_HOST set; everything lies in FOLDER

What cannot be had is said by `Unavailable`: no engine, no base image, no way to a package archive from inside a build.
"""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from daemons import PATH, answer, daemon, wait_until

BASE = "debian:bookworm-slim"  # the default of both Dockerfiles
BUILD_SECONDS = 1200
DEBIAN = "n4flow-test:debian"  # the same, made here
NO_ROUTE = r"Temporary failure|Could not resolve|Failed to fetch|Retrying \(Retry|Connection (?:refused|timed out)"
PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")


class Unavailable(Exception):
    """What a test needs cannot be had on this machine; the message says what and why."""


@contextmanager
def engine(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment in which `docker` reaches an engine; one that is started here keeps its data in `folder`.

    Raises
    ------
    Unavailable
        No engine answers and none can be started.
    """
    environment = os.environ | {"PATH": PATH}
    if shutil.which("docker", path=PATH) is None:
        msg = "docker is not on PATH; Debian's docker.io brings it"
        raise Unavailable(msg)
    if answer(["docker", "buildx", "version"], environment) == "":
        environment["DOCKER_BUILDKIT"] = "0"  # the builder of old, which needs no plugin
    if _version(environment):
        yield environment
        return
    if os.geteuid() != 0 or shutil.which("dockerd", path=PATH) is None:
        msg = "no Docker engine answers, and only root with dockerd can start one"
        raise Unavailable(msg)
    folder.mkdir(parents=True, exist_ok=True)
    environment["DOCKER_HOST"] = f"unix://{folder}/docker.sock"
    command = ["dockerd", "--host", environment["DOCKER_HOST"], "--pidfile", f"{folder}/docker.pid"]
    command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--bridge=none", "--iptables=false"]
    try:
        with daemon(command, folder, environment):
            try:
                wait_until(lambda: bool(_version(environment)), folder, "the Docker engine does not answer")
            except RuntimeError as error:
                raise Unavailable(str(error)) from error
            yield environment
    finally:
        # the engine leaves the namespace of its network mounted, and what is mounted cannot be removed
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in mounted:
            if place.startswith(f"{folder}/"):
                subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        shutil.rmtree(folder / "data", ignore_errors=True)


def _version(environment: Mapping[str, str]) -> str:
    return answer(["docker", "version", "--format={{.Server.Version}}"], environment)


def build(environment: Mapping[str, str], dockerfile: Path, tag: str, *arguments: str) -> None:
    """Build an image from this repository on Debian as pulled, or as made from its archive where nothing is pulled.

    Raises
    ------
    Unavailable
        There is no base image, no container runs, or there is no quick way to Debian's or Python's archive from inside.
    AssertionError
        The build fails for another reason; the message holds its last lines.
    """
    base = f"BASE={_base(environment)}"
    command = ["docker", "build", "--network=host", f"--build-arg={base}", *arguments, "--tag", tag, "--file"]
    root = dockerfile.resolve().parents[2]
    command += [str(dockerfile), str(root)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired as late:
        msg = f"{dockerfile} is not built within {BUILD_SECONDS} s: the archives answer slowly"
        raise Unavailable(msg) from late
    said = done.stdout + done.stderr
    if done.returncode and (found := re.search(f".*(?:{NO_ROUTE}).*", said)):
        msg = f"the image needs Debian's and Python's archives, and a build does not reach them: {found[0].strip()}"
        raise Unavailable(msg)
    assert done.returncode == 0, f"{dockerfile} does not build\n{said[-3000:]}"


def _base(environment: Mapping[str, str]) -> str:
    """Return an image that trusts what this machine trusts, and whose pip looks where this machine's does."""
    tag = "n4flow-test:base"
    if answer(["docker", "image", "ls", "--quiet", tag], environment):
        return tag
    known = answer(["docker", "image", "ls", "--quiet", BASE], environment)
    debian = BASE if known or _run(environment, 120, "docker", "pull", "--quiet", BASE) else _make_debian(environment)
    settings = "".join(f"ENV {name}={os.environ[name]}\n" for name in PIP if os.environ.get(name))
    with tempfile.TemporaryDirectory() as folder:
        certificates = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
        if certificates:
            shutil.copyfile(certificates, Path(folder, "certificates.pem"))
            settings += "COPY certificates.pem /certificates.pem\nENV PIP_CERT=/certificates.pem\n"
        Path(folder, "Dockerfile").write_text(f"FROM {debian}\n{settings}")
        # an engine may answer and yet run nothing, within a container of its own for instance
        for command in (["build", "--tag", tag, folder], ["run", "--rm", "--network=none", tag, "true"]):
            done = subprocess.run(["docker", *command], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                msg = (
                    f"this engine cannot {command[0]} a container: {(done.stderr.strip() or 'no reason given')[-300:]}"
                )
                raise Unavailable(msg)
    return tag


def _make_debian(environment: Mapping[str, str]) -> str:
    """Make what cannot be pulled from Debian's archive, which root can; return its name."""
    if os.geteuid() != 0 or shutil.which("mmdebstrap", path=PATH) is None:
        msg = f"{BASE} cannot be pulled, and only root with mmdebstrap can make it from Debian's archive"
        raise Unavailable(msg)
    with tempfile.TemporaryDirectory() as folder:
        image = f"{folder}/debian.tar"
        if not _run(environment, 300, "mmdebstrap", "--variant=minbase", "bookworm", image):
            msg = f"{BASE} cannot be pulled, and mmdebstrap cannot make it: Debian's archive is not reached"
            raise Unavailable(msg)
        if not _run(environment, 120, "docker", "import", image, DEBIAN):
            msg = "this engine imports no image"
            raise Unavailable(msg)
    return DEBIAN


def _run(environment: Mapping[str, str], seconds: float, *command: str) -> bool:
    """Return whether a command succeeds in time."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    with engine(Path(sys.argv[1]).resolve()) as reached:
        sys.exit(subprocess.run(sys.argv[2:], env=reached, check=False).returncode)
