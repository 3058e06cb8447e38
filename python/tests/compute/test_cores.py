"""How many cores a process may use: the quota of its control groups, of both versions, and its affinity."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from n4flow.compute import cores


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        file = root.joinpath(*name.split("__"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(file.name.replace("_DOT_", ".")).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu_DOT_max": "200000 100000\n"}, 2),  # docker run --cpus 2, in a namespace of its own
        ("0::/\n", {"cpu_DOT_max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a__cpu_DOT_max": "150000 100000\n", "a__b__cpu_DOT_max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", {"a__cpu_DOT_max": "400000 100000\n", "a__b__cpu_DOT_max": "50000 100000\n"}, 0.5),
        (  # version 1: the container sees its own group as the root, and its path as the host names it
            "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
            {"cpu__cpu_DOT_cfs_quota_us": "300000\n", "cpu__cpu_DOT_cfs_period_us": "100000\n"},
            3,
        ),
        ("1:cpu:/\n", {"cpu__cpu_DOT_cfs_quota_us": "-1\n", "cpu__cpu_DOT_cfs_period_us": "100000\n"}, math.inf),
        ("1:cpuset:/\n0::/gone\n", {}, math.inf),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, own: str, files: dict[str, str], expected: float) -> None:
    groups = tmp_path / "groups"
    groups.write_text(own)
    write(tmp_path / "root", **files)
    assert cores.quota(tmp_path / "root", groups) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cores.quota(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 6), (2.0, 2), (1.5, 2), (0.1, 1), (64.0, 6)])
def test_cores_are_those_of_affinity_and_of_the_quota(monkeypatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _process: set(range(6)), raising=False)
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    assert cores.usable_cores() == expected
