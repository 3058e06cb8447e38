"""Folders of planes through the whole chain, beside the same voxels as one store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from n4flow.commands import main
from n4flow.errors import InputError
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.plan import make_plan
from n4flow.pipeline.run import run
from n4flow.pipeline.samples import read_samples

SHAPE, UM = (12, 60, 70), (30, 10, 10)
FAST = {"iterations": "2,2", "backend": "cpu", "shrink": 1}


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    rng = np.random.default_rng(8)
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    tissue = np.where(y * y + x * x < 0.7, 200 * np.exp(0.3 * x), 20) * rng.uniform(0.8, 1.2, (SHAPE[0], 1, 1))
    return (tissue * (1 + 0.02 * rng.standard_normal(SHAPE)) * 20).astype(np.uint16)


@pytest.fixture
def sections(tmp_path, voxels) -> Path:
    """A folder for each section of 4 planes, two channels of which the second is the volume."""
    for number, plane in enumerate(voxels):
        folder = tmp_path / "brain" / f"section {number // 4 + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"p{number % 4}_ch0.tif", plane // 2, metadata=None)
        tifffile.imwrite(folder / f"p{number % 4}_ch1.tif", plane, metadata=None, compression="zlib")
    return tmp_path / "brain"


def test_sections_in_folders_give_the_voxels_of_a_store_with_a_table(tmp_path, voxels, sections):
    write_volume(tmp_path / "one.ome.zarr", voxels, voxel_um=UM)
    rows = "".join(f"section {i + 1}\t{4 * i}\t{4 * i + 4}\n" for i in range(3))
    (tmp_path / "sections.tsv").write_text(f"id\tz_start\tz_stop\n{rows}")
    (tmp_path / "sheet.csv").write_text(
        "sample,image,sections,voxel_um,channel\none,one.ome.zarr,sections.tsv,,\nmany,brain,,30 10 10,ch1\n"
    )
    result = run(tmp_path / "sheet.csv", tmp_path / "out", **FAST)
    one, many = (open_volume(sample.store) for sample in result.samples)
    assert one.digest() == many.digest()
    tables = [(sample.folder / "sections.tsv").read_text() for sample in result.samples]
    assert tables[0] == tables[1]


def test_inspect_says_what_a_run_would_do(tmp_path, sections, capsys):
    (sections / "section 2" / "p1_ch1.tif").unlink()
    arguments = ["inspect", str(sections), "--channel", "ch1", "--voxel-um", "30 10 10"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "lacks 1 of 12 planes: section 2/p1_ch1.tif; put them there" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--allow-missing-planes", "--json", "--out", str(tmp_path / "made")])
    assert end.value.code == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["sections"], plan["shape"], plan["format"]) == (3, list(SHAPE), "planes")
    assert "section 2\t4\t8" in (tmp_path / "made" / "sections.tsv").read_text()
    assert any("p1_ch1.tif" in warning for warning in plan["warnings"])


def test_a_count_of_sections_goes_before_folders(sections):
    given = {"channel": 1, "voxel_um": "30 10 10"}
    assert [s.id for s in make_plan(sections, resolve(given)).sections] == ["section 1", "section 2", "section 3"]
    assert len(make_plan(sections, resolve({**given, "sections": 6})).sections) == 6


def test_one_plane_beside_others_is_among_the_plan_s_warnings(sections):
    plan = make_plan(sections / "section 1" / "p0_ch0.tif", resolve({"voxel_um": "30 10 10"}))
    assert any("give the folder" in warning for warning in plan.warnings)


def test_n4_corrects_a_folder_and_replaces_none_of_its_planes(tmp_path, voxels, sections, capsys):
    write_volume(tmp_path / "one.nii", voxels, voxel_um=UM)
    folder = sections / "section 1"
    shared = ["--iterations", "2", "--voxel-um", "30 10 10", "--overwrite"]
    for source, given, out in (
        (tmp_path / "one.nii", [], "a.nii"),
        (sections, ["--channel", "1"], "b.nii"),
        (sections / "*" / "*_ch1.tif", [], "c.nii"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["n4", str(source), str(tmp_path / out), *given, *shared])
        assert end.value.code == 0
    first, *others = (open_volume(tmp_path / name).read(slice(None)) for name in ("a.nii", "b.nii", "c.nii"))
    assert all(np.array_equal(first, other) for other in others)
    for source in (folder, folder / "*.tif"):
        with pytest.raises(SystemExit) as end:
            main(["n4", str(source), str(folder / "p0_ch1.tif"), "--channel", "1", *shared])
        assert end.value.code == 2
        assert "give each a path of its own" in capsys.readouterr().err


@pytest.mark.parametrize("channel", ["-1", "it's"])
def test_a_sheet_s_channel_is_checked(tmp_path, channel):
    (tmp_path / "sheet.csv").write_text(f"sample,image,channel\na,a.tif,{channel}\n")
    with pytest.raises(InputError, match="parameter channel must be a number, or a label without quotes"):
        read_samples(tmp_path / "sheet.csv")
