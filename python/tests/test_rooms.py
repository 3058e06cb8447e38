"""The rooms of the package: which there are, and that imports go down only, without a circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import n4flow

PACKAGE = Path(n4flow.__file__).parent
# From the top down: a room may import rooms behind it, and what lies on top of the package.
ROOMS = (
    "commands",
    "pipeline",
    "report",
    "corrections",
    "masks",
    "statistics",
    "n4_bias",
    "phantom",
    "io",
    "compute",
)
ON_TOP = ("__init__", "display", "errors", "sections")


def module_name(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(package: Path) -> dict[str, set[str]]:
    """Return the modules of the package that each of them imports, in functions and for types too."""
    files = {module_name(file, package): file for file in package.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports by a relative path"
                module = node.module or ""
                found[name] |= {f"{module}.{a.name}" if f"{module}.{a.name}" in files else module for a in node.names}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
        found[name] = {module for module in found[name] if module in files and module != package.name} - {name}
    return found


def faults(package: Path, rooms: tuple[str, ...] = ROOMS, on_top: tuple[str, ...] = ON_TOP) -> list[str]:
    """Return a sentence for each room that is not listed, each import that goes up and each circle."""
    found = [f"{p.name} is no room" for p in sorted(package.iterdir()) if list(p.glob("*.py")) and p.name not in rooms]
    found += [f"{p.stem} lies on top" for p in sorted(package.glob("*.py")) if p.stem not in on_top]
    rank = {room: number for number, room in enumerate(rooms)}
    graph = imports(package)
    for name, targets in graph.items():
        own = rank.get(name.split(".")[1] if "." in name else "", len(rooms))
        for target in sorted(targets):
            if name != package.name and rank.get(target.split(".")[1], len(rooms)) < own:
                found.append(f"{name} imports {target}, which is above")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("circle: " + ", ".join(sorted(set(error.args[1]))))
    return found


def test_imports_go_down_only() -> None:
    assert faults(PACKAGE) == []


def test_every_room_says_what_it_is_for() -> None:
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert "mport" in text, f"{room} does not say what it may import"


def test_contributing_names_what_exists() -> None:
    """Paths there are of the repository, or of the package where they have no folder outside it."""
    root = Path(__file__).parents[2]
    named = re.findall(
        r"`([\w./*-]+\.(?:py|nf|json|md|j2|config|test))`", (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    made_up = {"corrections/destriping.py", "modules/NAME.nf", "metrics.json"}  # not there yet, and a result
    places = [root, PACKAGE, root / "benchmarks", PACKAGE / "corrections"]
    assert [path for path in set(named) - made_up if not any(list(place.glob(path)) for place in places)] == []
    assert len(named) > 30
    rooms = re.findall(r"^([a-z_0-9]+)  ", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(rooms) == ROOMS


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("io/a.py", "from p.report import b", "p.io.a imports p.report.b, which is above"),
        ("io/a.py", "def f():\n    import p.report.b", "p.io.a imports p.report.b, which is above"),
        ("errors.py", "from p.io.c import x", "p.errors imports p.io.c, which is above"),
        ("io/c.py", "from p.io import d", "circle: p.io.c, p.io.d"),
        ("attic/a.py", "", "attic is no room"),
        ("other.py", "", "other lies on top"),
    ],
)
def test_what_would_be_wrong_is_found(tmp_path: Path, file: str, text: str, expected: str) -> None:
    package = tmp_path / "p"
    files = {"__init__.py": "", "errors.py": "", "report/b.py": "from p.io import c", "io/c.py": "from p import errors"}
    for name, content in {**files, "io/d.py": "from p.io.c import x", file: text}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    assert expected in faults(package, ("report", "io"), ("__init__", "errors"))
