"""The phantom on disk: every file holds the arrays, whatever the size of the runs."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zarr

from n4flow.commands import main
from n4flow.compute.progress import Progress
from n4flow.errors import InputError
from n4flow.phantom.options import PhantomOptions
from n4flow.phantom.store import Phantom
from n4flow.phantom.volume import PhantomBlock
from n4flow.sections import SectionTable

SMALL = PhantomOptions(sections=3, planes=6, size=(96, 120), voxel_um=(80.0, 40.0, 40.0), seed=3)


@cache
def made(**changes: object) -> tuple[Phantom, PhantomBlock]:
    """Return a small phantom and all its planes."""
    phantom = Phantom(dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]
    return phantom, phantom.planes(0, phantom.shape[0])


def read(store: Path) -> np.ndarray:
    return zarr.open_array(store / "0", mode="r")[:]


def scales(store: Path) -> list[list[float]]:
    attributes = zarr.open_group(store, mode="r").attrs
    multiscales = attributes["ome"]["multiscales"] if "ome" in attributes else attributes["multiscales"]
    return [data["coordinateTransformations"][0]["scale"] for data in multiscales[0]["datasets"]]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_store_and_truth_hold_the_arrays(tmp_path, version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("n4flow.phantom.store._RUN_VOXELS", 5 * 96 * 120)  # runs of 4 planes
    phantom, block = made(faults=((1, "damaged"),))
    seen: list[Progress] = []
    numbers = phantom.write(
        tmp_path / "brain.ome.zarr", tmp_path / "truth", threads=2, ome_zarr_version=version, progress=seen.append
    )
    assert [(each.done, each.total, each.unit) for each in seen] == [(n, 18, "planes") for n in (0, 4, 8, 12, 16, 18)]
    assert numbers["voxels"] == 18 * 96 * 120
    np.testing.assert_array_equal(read(tmp_path / "brain.ome.zarr"), block.observed)
    for name in ("truth", "bias", "tissue", "agarose", "labels"):
        store = tmp_path / "truth" / f"{name}.ome.zarr"
        np.testing.assert_array_equal(read(store), getattr(block, name))
        assert scales(store)[0] == [80.0, 40.0, 40.0]
    assert scales(tmp_path / "brain.ome.zarr")[0] == [80.0, 40.0, 40.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["brain.ome.zarr", "brain.sections.tsv", "truth"]

    assert SectionTable.read(tmp_path / "brain.sections.tsv", 18) == phantom.sections
    assert phantom.sections[1].flag == "damaged"
    gains = np.genfromtxt(tmp_path / "truth" / "section_gain.tsv", names=True, dtype=None, encoding="utf-8")
    np.testing.assert_allclose(gains["gain"], phantom.section_gain, rtol=1e-8)
    jitter = np.genfromtxt(tmp_path / "truth" / "plane_jitter.tsv", names=True, dtype=None, encoding="utf-8")
    np.testing.assert_allclose(jitter["jitter"], phantom.plane_jitter, rtol=1e-8)
    stored = json.loads((tmp_path / "truth" / "phantom.json").read_text())
    assert stored["options"]["seed"] == 3
    assert stored["class_intensity"]["white"] == 14000
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in stored["options"].items()}
    assert Phantom(PhantomOptions(**{**options, "faults": ((1, "damaged"),)})).shape == phantom.shape


def test_store_is_valid(tmp_path):
    from n4flow.io.omezarr.store import validate_store

    made()[0].write(tmp_path / "brain.ome.zarr")
    validate_store(tmp_path / "brain.ome.zarr")


def test_other_formats_hold_the_same_volume(tmp_path):
    from n4flow.io.open import open_volume

    phantom, block = made()
    phantom.write(tmp_path / "brain.nii.gz")
    volume = open_volume(tmp_path / "brain.nii.gz")
    np.testing.assert_array_equal(volume.read(slice(0, 18)), block.observed)
    assert volume.voxel_um == pytest.approx({"z": 80, "y": 40, "x": 40})
    assert (tmp_path / "brain.sections.tsv").is_file()


def test_nothing_is_overwritten_and_nothing_partial_stays(tmp_path, monkeypatch: pytest.MonkeyPatch):
    phantom = made()[0]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "taken.ome.zarr").mkdir()
    with pytest.raises(InputError, match=r"taken.ome.zarr exists already; remove it or choose another name"):
        phantom.write(tmp_path / "taken.ome.zarr")
    with pytest.raises(InputError, match="the truth needs a folder that is new or empty"):
        phantom.write(tmp_path / "brain.ome.zarr", tmp_path / "full")
    with pytest.raises(InputError, match=r"expected a name that ends in one of .ome.zarr, .* got 'brain.png'"):
        phantom.write(tmp_path / "brain.png")

    def broken(*_arguments: object) -> None:
        msg = "no space"
        raise OSError(msg)

    monkeypatch.setattr("n4flow.io.omezarr.store.SlabWriter.write", broken)
    with pytest.raises(OSError, match="no space"):
        phantom.write(tmp_path / "brain.ome.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "taken.ome.zarr"]


def test_memory_does_not_grow_with_z(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("n4flow.phantom.store._RUN_VOXELS", 8 * 64 * 80)
    peaks = []
    for sections in (8, 24):
        phantom = Phantom(dataclasses.replace(SMALL, sections=sections, planes=16, size=(64, 80)))
        phantom.write(tmp_path / f"warm{sections}.ome.zarr")  # imports and kernels
        tracemalloc.start()
        phantom.write(tmp_path / f"n{sections}.ome.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0] + 1e5  # three times the planes; tables of Z numbers are allowed


def test_the_command(tmp_path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "p.ome.zarr"
    size = ["--sections", "2", "--planes", "3", "--size", "32", "40", "--voxel-um", "30", "10", "12"]
    kind = ["--seed", "7", "--oblique", "10", "--no-padding", "--no-speckle", "--strength", "0.5", "--dtype", "float32"]
    faults = ["--damaged", "1", "--no-flag-faults"]
    files = ["--truth", str(tmp_path / "t"), "--json", str(tmp_path / "n.json")]
    with pytest.raises(SystemExit) as end:
        main(["phantom", str(out), *size, *kind, *faults, *files])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines() == [str(out), str(tmp_path / "p.sections.tsv")]
    default = PhantomOptions()
    half = ("shading", "section_shading", "attenuation", "gain", "drift", "jitter")
    expected = PhantomOptions(
        sections=2,
        planes=3,
        size=(32, 40),
        voxel_um=(30, 10, 12),
        seed=7,
        oblique=10,
        padding=0,
        speckle=0,
        dtype="float32",
        faults=((1, "damaged"),),
        flag_faults=False,
        **{name: getattr(default, name) / 2 for name in half},
    )
    np.testing.assert_array_equal(read(out), Phantom(expected).observed(0, 6))
    assert read(tmp_path / "t" / "truth.ome.zarr").shape == (6, 32, 40)
    assert json.loads((tmp_path / "n.json").read_text())["voxel_um"] == {"z": 30, "y": 10, "x": 12}


def test_the_command_ends_with_2_and_one_sentence(tmp_path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["phantom", str(tmp_path / "p.ome.zarr"), "--dtype", "int8"])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == "n4flow: phantom: dtype must be one of uint8, uint16, float32, got int8"
