"""`n4flow convert`: voxels and voxel size as they are in the input, read back by zarr-python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr

import n4flow
from n4flow.commands import main
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume
from n4flow.pipeline import convert as convert_module

SHAPE = (9, 70, 90)


def ended(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    return end.value.code


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 2**31, SHAPE).astype(np.int32)


def converted(path: Path) -> tuple[np.ndarray, list[float]]:
    group = zarr.open_group(path, mode="r")
    ome = dict(group.attrs).get("ome", dict(group.attrs))
    scale = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    return group["0"][:], scale


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_any_input_becomes_a_store_with_its_voxel_size(tmp_path, voxels, version):
    """int32 beyond 2**24: nothing passes through float32."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.005, 0.004, 0.02))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    (tmp_path / "planes").mkdir()
    for number, plane in enumerate(voxels):
        tifffile.imwrite(tmp_path / "planes" / f"z{number}.tif", plane, metadata=None)
    sizes = ["--voxel-um", "20 4 5"]
    for source, given in (("a.nrrd", []), ("planes", sizes), ("planes/*.tif", sizes)):
        out, report = tmp_path / "out" / "a.ome.zarr", tmp_path / "report.json"
        assert (
            ended(tmp_path / source, out, *given, "--ome-zarr-version", version, "--overwrite", "--json", report) == 0
        )
        values, scale = converted(out)
        assert values.dtype == np.int32
        assert np.array_equal(values, voxels)
        assert scale == [20.0, 4.0, 5.0]
        assert open_volume(out).voxel_um == {"z": 20.0, "y": 4.0, "x": 5.0}
        stated = json.loads(report.read_text())
        assert (stated["minimum"], stated["maximum"]) == (voxels.min(), voxels.max())
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_nothing_is_replaced_by_accident_and_nothing_is_left_half(tmp_path, voxels, monkeypatch, capsys):
    source, out = tmp_path / "a.npy", tmp_path / "a.ome.zarr"
    np.save(source, voxels)
    assert ended(source, out) == 2
    assert "has no voxel size; give it with voxel_um" in capsys.readouterr().err
    given = [source, out, "--voxel-um", "20 4 5"]
    assert ended(*given) == 0
    assert ended(*given) == 2
    assert "exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert ended(out, out, "--overwrite") == 2
    assert "are the same file; give each a path of its own" in capsys.readouterr().err
    assert ended(source, tmp_path / "b.nii", "--voxel-um", "20 4 5") == 2
    assert "must be an OME-Zarr, a name that ends in .ome.zarr or .zarr" in capsys.readouterr().err

    def broken(*_arguments):
        raise MemoryError

    monkeypatch.setattr(convert_module, "write_omero", broken)
    np.save(source, voxels + 1)
    assert ended(*given, "--overwrite") == 4
    assert np.array_equal(converted(out)[0], voxels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.ome.zarr"]


def test_all_channels_keep_their_labels(tmp_path, voxels, capsys):
    channels = np.stack([voxels, voxels[::-1] // 2])
    metadata = {"axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(tmp_path / "c.ome.tif", channels.astype(np.uint16), metadata=metadata)
    out = tmp_path / "c.ome.zarr"
    assert ended(tmp_path / "c.ome.tif", out, "--voxel-um", "20 4 5", "--channel", "all") == 0
    assert "2 x 9 x 70 x 90 voxels of 20 x 4 x 5 micrometres" in capsys.readouterr().out
    values, scale = converted(out)
    assert np.array_equal(values, channels.astype(np.uint16))
    assert scale == [1.0, 20.0, 4.0, 5.0]
    shown = zarr.open_group(out, mode="r").attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in shown] == ["DAPI", "GFP"]
    assert shown[1]["window"]["max"] == channels[1].astype(np.uint16).max()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_other_programs_wrote_beside_the_image_stays(tmp_path, voxels, version):
    source, theirs = tmp_path / "in.ome.zarr", {"acquisition": {"lens": "10x", "z": [1, 2.5]}, "project": "atlas"}
    write_volume(source, voxels.astype(np.uint16), voxel_um=(20, 4, 5))
    group = zarr.open_group(source, mode="r+")
    group.attrs.update(theirs)
    ome = dict(group.attrs["ome"])
    ome["omero"]["channels"][0].update(label="DAPI", color="00FF00")
    group.attrs["ome"] = ome
    assert ended(source, tmp_path / "convert.ome.zarr", "--ome-zarr-version", version) == 0
    n4flow.render(n4flow.open_volume(source), n4flow.Recipe(), tmp_path / "render.ome.zarr", ome_zarr_version=version)
    n4flow.run(source, tmp_path / "out", ome_zarr_version=version, bias="off", match="off", smooth_z=0, shrink=8)
    for store in ("convert.ome.zarr", "render.ome.zarr", "out/in/in.ome.zarr"):
        found = dict(zarr.open_group(tmp_path / store, mode="r").attrs)
        assert {name: found[name] for name in theirs} == theirs, store
        (channel,) = found.get("ome", found)["omero"]["channels"]
        assert (channel["label"], channel["color"]) == ("DAPI", "00FF00"), store
