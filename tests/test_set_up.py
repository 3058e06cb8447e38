"""The set-up of a fresh machine: which Nextflow is taken, that nothing is set up twice, that everything is pinned."""

from __future__ import annotations

import ast
import hashlib
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
import yaml

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
    for name in (".python", ".package", ".engine"):
        (tmp_path / name).touch()
    plan = subprocess.run(
        ["make", "--dry-run", "run", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "nextflow run ." in plan
    assert "pip" not in plan
    assert "install.py" not in plan


def test_an_environment_without_pip_is_completed_and_a_whole_one_is_left_alone(tmp_path: Path):
    if shutil.which("make") is None:
        pytest.skip("no make on PATH")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    inside, maker = tmp_path / "venv" / "bin" / "python", tmp_path / "python3"
    inside.write_text("#!/bin/sh\nexit 1\n")  # what an interrupted `make` leaves: `-m pip` fails
    maker.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked\nprintf '#!/bin/sh\\n' > {inside}\n")
    for script in (inside, maker):
        script.chmod(0o755)
    stamp = tmp_path / "venv" / ".python"
    for _time in range(2):  # the second has an environment whose pip works, as of an older Makefile
        stamp.unlink(missing_ok=True)
        command = ["make", f"VENV={tmp_path / 'venv'}", f"PYTHON={maker}", str(stamp)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert stamp.exists()
    assert (tmp_path / "asked").read_text() == f"-m venv {tmp_path / 'venv'}\n"


# What each lock file is made of: lists of pyproject.toml.
LOCKS = {
    "requirements.lock": ["dependencies", "distributed", "test"],
    "requirements-cpu.lock": ["dependencies"],
    "requirements-gpu.lock": ["dependencies", "gpu"],
    "requirements-gpu13.lock": ["dependencies", "gpu13"],
    "requirements-build.lock": ["build"],
    "requirements-docs.lock": ["docs"],
    "requirements-engine.lock": ["engine"],
    "requirements-maintain.lock": ["maintain"],
}
# Extras for a person's own machine: no image has them, and tests that need one say so where it is missing.
PERSONAL = {"plot", "view", "napari"}


def locked(name: str) -> dict[str, list[str]]:
    """Return what a lock file pins, and the hashes of each."""
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "python" / name).read_text().splitlines():
        if match := re.fullmatch(r"([\w.-]+)==\S+( ; .+?)? \\", line):
            hashes = pins.setdefault(match[1], [])
        elif match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line):
            hashes.append(match[1])
        else:
            assert line.startswith("#"), f"{name}: {line}"
    return pins


def test_every_dependency_is_pinned_with_its_hashes():
    stated = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())
    project, groups = stated["project"], stated["dependency-groups"]
    lists = {"dependencies": project["dependencies"], **project["optional-dependencies"], **groups}
    assert set(lists) - PERSONAL == {part for parts in LOCKS.values() for part in parts}
    assert {path.name for path in (ROOT / "python").glob("*.lock")} == set(LOCKS)
    for lock, parts in LOCKS.items():
        wanted = [requirement for part in parts for requirement in lists[part]]
        pins = locked(lock)
        names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}
        assert names <= set(pins), f"{lock} lacks {names - set(pins)}; run `make lock`"
        assert all(pins.values()), f"{lock}: {[name for name, hashes in pins.items() if not hashes]} have no hash"
    # a wheel is built by what the lock file of builds has
    assert set(stated["build-system"]["requires"]) <= set(groups["build"])


def test_nothing_is_installed_from_a_registry_without_its_hash():
    files = ["Makefile", "conf/engine/install.py", "containers/cpu/Dockerfile", "containers/cuda/Dockerfile"]
    files += [str(path.relative_to(ROOT)) for path in (ROOT / ".github" / "workflows").iterdir()]
    installs = []
    for name in files:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        text = re.sub(r'"(?:, \*?"|\])', " ", text)  # a command as a list in Python
        installs += [(name, line) for line in text.splitlines() if re.search(r"\bpip\b.*\b(install|wheel)\b", line)]
    assert len({name for name, _line in installs}) >= 4
    for name, line in installs:
        for command in re.split(r"&&|\|\||;", line):
            if re.search(r"\bpip\b.*\b(install|wheel)\b", command) and "uninstall" not in command:
                sealed = "--require-hashes" in command or {"--no-deps", "--no-build-isolation"} & set(command.split())
                # but in the lanes that ask for what is not locked
                assert sealed or "bin/uv' pip" in command, f"{name}: {command.strip()}"


def test_a_package_with_another_hash_is_not_installed(tmp_path: Path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    recipe = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("LOCKED "))
    install = recipe.partition("=")[2].replace("'$(VENV)/bin/python'", sys.executable).split()
    for digest, code in ((hashlib.sha256(wheel.read_bytes()).hexdigest(), 0), ("0" * 64, 1)):
        lock = tmp_path / "one.lock"
        lock.write_text(f"thing==1.0 \\\n    --hash=sha256:{digest}\n")
        where = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / digest)]
        done = subprocess.run([*install, *where, "-r", str(lock)], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_actions_of_the_forge_are_pinned_by_commit():
    uses = [
        line
        for path in (ROOT / ".github" / "workflows").iterdir()
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert uses
    for line in uses:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*$", line), line


def test_every_jar_has_a_checksum():
    jars = [line for line in (ROOT / "conf" / "engine" / "jars.lock").read_text().splitlines() if line[0] != "#"]
    assert len(jars) > 50
    for jar in jars:
        assert re.fullmatch(r"[\w.-]+:[\w.-]+:[\w.-]+  [0-9a-f]{64}", jar)
    wanted = tomllib.loads((ROOT / "conf" / "engine" / "jgo.toml").read_text())["dependencies"]["coordinates"]
    assert set(wanted) <= {jar.split()[0] for jar in jars}, "jgo.toml was changed; run `make lock`"


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    stated = {
        "nextflow.config": r"^ +version += '(.+)'$",
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## (\S+)",
    }
    for name, pattern in stated.items():
        assert re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)[1] == project["version"], name
    # each Python that the forge tests is one that the package says it runs on
    lanes = set(re.findall(r'python: "?\[?"([\d.]+)', (ROOT / ".github/workflows/dependencies.yml").read_text()))
    said = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert lanes <= said
    assert min(said, key=lambda v: int(v[2:])) == project["requires-python"].removeprefix(">=")


def test_an_environment_of_conda_has_the_package_of_this_checkout():
    extras = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for kind in ("cpu", "cuda"):
        file = ROOT / "containers" / kind / "environment.yml"
        stated = yaml.safe_load(file.read_text())
        (pip,) = [part["pip"] for part in stated["dependencies"] if isinstance(part, dict)]
        folder, _bracket, extra = pip[0].removeprefix("--editable ").rstrip("]").partition("[")
        assert (file.parent / folder / "pyproject.toml").exists()
        assert extra in extras if kind == "cuda" else extra == ""


def test_the_recipe_for_conda_asks_for_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    folder = ROOT / "containers" / "conda"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["context"] == {
        "version": project["version"],
        "python_min": project["requires-python"].removeprefix(">="),
    }
    assert (folder / recipe["source"]["path"] / recipe["about"]["license_file"]).exists()
    assert recipe["about"]["license"] == project["license"]
    (entry,) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(entry)]
    python, *needed = recipe["requirements"]["run"]
    assert python == "python >=${{ python_min }}"
    asked = {requirement.replace("dask[array]", "dask-core") for requirement in project["dependencies"]}
    assert {requirement.replace(" ", "") for requirement in needed} == asked


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
    extras = {name for extra in PERSONAL for name in project["optional-dependencies"][extra]}
    optional = {"cupy", "cupyx", "distributed", *(re.match(r"[\w-]+", name)[0] for name in extras)}
    optional.add("pint")  # which napari brings
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
