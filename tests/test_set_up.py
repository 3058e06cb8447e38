"""The set-up of a fresh machine: which Nextflow is taken, that nothing is set up twice, that everything is pinned."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    """Return conf/engine/install.py as a module."""
    spec = importlib.util.spec_from_file_location("engine_install", ROOT / "conf" / "engine" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("banner", "taken"),
    [
        ("version 25.04.0 build 5944", True),
        ("version 26.10.3 build 1", True),
        ("version 24.10.9 build 5943", False),
        ("no version at all", False),
        (None, False),  # a launcher that fails, say because it finds no Java
    ],
)
def test_nextflow_on_path(
    engine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banner: str, taken: bool
):
    command = tmp_path / "nextflow"
    command.write_text(f"#!/bin/sh\necho '  N E X T F L O W\n  {banner}'\nexit {0 if banner else 1}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{engine.COMMAND.parent}:{tmp_path}:/usr/bin:/bin")
    assert engine.found_on_path() == (str(command) if taken else None)


def test_own_nextflow_is_not_taken_for_the_user_s(engine: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{engine.COMMAND.parent}")
    assert engine.found_on_path() is None


def test_manifest_jar_names_every_jar(engine: ModuleType, tmp_path: Path):
    names = [f"{'n' * length}-1.0.jar" for length in range(1, 90)]  # line ends fall everywhere in a name
    for name in names:
        (tmp_path / "jars").mkdir(exist_ok=True)
        (tmp_path / "jars" / name).touch()
    engine.write_manifest_jar(tmp_path / "nextflow.jar", tmp_path / "jars")
    manifest = zipfile.ZipFile(tmp_path / "nextflow.jar").read("META-INF/MANIFEST.MF")
    assert manifest.endswith(b"\r\n")
    assert max(len(line) for line in manifest.split(b"\r\n")) <= 72 - 2  # the limit counts the line's end
    entries = dict(line.split(": ", 1) for line in manifest.decode().replace("\r\n ", "").splitlines())
    assert entries["Main-Class"] == "nextflow.cli.Launcher"
    assert entries["Class-Path"].split(" ") == sorted(f"jars/{name}" for name in names)


def test_second_run_sets_nothing_up(tmp_path: Path):
    if shutil.which("make") is None:
        pytest.skip("no make on PATH")
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".package", ".engine"):
        (tmp_path / name).touch()
    plan = subprocess.run(
        ["make", "--dry-run", "run", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "nextflow run ." in plan
    assert "pip" not in plan
    assert "install.py" not in plan


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locks = {
        "requirements.lock": ["distributed", "engine", "test"],
        "requirements-gpu.lock": ["gpu"],
        "requirements-gpu13.lock": ["gpu13"],
    }
    assert set(extras) == {extra for group in locks.values() for extra in group}
    for lock, group in locks.items():
        text = (ROOT / "python" / lock).read_text()
        pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line}
        wanted = project["dependencies"] + [requirement for extra in group for requirement in extras[extra]]
        names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}
        assert names <= pinned, f"{lock} lacks {names - pinned}; run `make lock`"
        assert "://" not in text, f"{lock} names a registry"


def test_every_jar_has_a_checksum():
    jars = [line for line in (ROOT / "conf" / "engine" / "jars.lock").read_text().splitlines() if line[0] != "#"]
    assert len(jars) > 50
    for jar in jars:
        assert re.fullmatch(r"[\w.-]+:[\w.-]+:[\w.-]+  [0-9a-f]{64}", jar)
    wanted = tomllib.loads((ROOT / "conf" / "engine" / "jgo.toml").read_text())["dependencies"]["coordinates"]
    assert set(wanted) <= {jar.split()[0] for jar in jars}, "jgo.toml was changed; run `make lock`"


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in project["dependencies"]}
    provided_by = importlib.metadata.packages_distributions()
    imported = set()
    for path in (ROOT / "python" / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
    optional = {"cupy", "cupyx", "distributed"}
    foreign = imported - set(sys.stdlib_module_names) - optional - {"n4flow"}
    names = {module: [name.lower() for name in provided_by[module]] for module in foreign}
    assert not {module for module, owners in names.items() if not declared & set(owners)}


def test_nf_test_finds_tests_in_every_suite():
    suites = sorted((ROOT / "tests").rglob("*.test"))
    assert suites
    for suite in suites:
        assert suite.name.endswith(".nf.test"), f"{suite.name}: nf-test looks into files that end in .nf.test only"
        text = suite.read_text()
        assert re.match(r"nextflow_(pipeline|workflow|process|function) \{", text)
        assert re.search(r'^\s+script "[\w/.]+"$', text, re.MULTILINE)
        assert re.search(r'^\s+test\("[^"]+"\) \{$', text, re.MULTILINE), f"{suite.name} has no test"
