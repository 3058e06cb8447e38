"""Chunks that a writer left out: the same result as with all of them written."""

import numpy as np
import pytest
import zarr

from n4flow import open_volume
from n4flow.pipeline.run import run

SHAPE, CHUNKS = (24, 48, 60), (4, 16, 20)


@pytest.fixture(scope="module")
def values():
    """Sections of 8 planes with tissue in the middle of agarose and zeros around; the last one is all zeros."""
    z, y, x = np.ogrid[:24, -1:1:48j, -1:1:60j]
    radius = np.hypot(y, x) * (1 + 0.1 * (z // 8))
    noise = np.random.default_rng(0).gamma(400, 1 / 400, SHAPE)
    inside = np.where(radius < 0.5, 900, 150) * (1 + 0.3 * x) * noise
    values = np.where((radius < 0.8) & (z < 16), inside, 0).astype("uint16")
    values[:, :16] = values[:, :, :20] = 0  # whole chunks
    return values


def write(path, values, *, empty, **options):
    """Write with zarr-python, whose stores leave out chunks of zeros unless told otherwise."""
    array = zarr.create_array(
        path, shape=SHAPE, dtype=values.dtype, config={"write_empty_chunks": empty}, **{"chunks": CHUNKS, **options}
    )
    array[...] = values
    return sum(file.is_file() for file in path.rglob("*"))


@pytest.mark.parametrize(
    ("options", "masked", "settings"),
    [({}, False, {}), ({"zarr_format": 2}, True, {}), ({"shards": (8, 48, 60)}, False, {"harmonize": "safe"})],
)
def test_absent_chunks_change_nothing(tmp_path, values, options, masked, settings):
    settings = {"sections": 3, "voxel_um": "20 5 5", "iterations": "5,5", **settings}
    files, results = [], []
    for name, empty in (("whole", True), ("sparse", False)):
        files.append(write(tmp_path / f"{name}.zarr", values, empty=empty, **options))
        write(tmp_path / f"{name}_mask.zarr", (values > 400).astype("uint8"), empty=empty)
        settings["mask"] = str(tmp_path / f"{name}_mask.zarr") if masked else None
        settings["allow_missing_chunks"] = not empty
        results.append(run(tmp_path / f"{name}.zarr", tmp_path / name, **settings).samples[0])
    whole, sparse = (open_volume(result.store).read(slice(None)) for result in results)
    assert np.array_equal(whole, sparse)
    assert not np.array_equal(sparse, values)
    plan = results[1].numbers["plan"]
    assert plan["flagged_sections"] == ["s002"]  # which is all zeros
    absent = f"{files[0] - files[1]} files are absent, as chunks of the fill value may be, and are read as it: "
    assert plan["warnings"][0].startswith(absent)
    assert plan["warnings"][-1] == "no file is left of these sections, which are flagged: s002"


def test_a_report_claims_nothing_where_every_section_is_flagged(tmp_path, values):
    path = tmp_path / "lost.zarr"
    write(path, np.zeros(SHAPE, "uint16"), empty=False)
    result = run(path, tmp_path / "out", sections=3, voxel_um="20 5 5", allow_missing_chunks=True).samples[0]
    assert result.numbers["plan"]["flagged_sections"] == ["s000", "s001", "s002"]
    assert not open_volume(result.store).read(slice(None)).any()
    page = result.report.read_text(encoding="utf-8")
    assert "Nothing was changed: nothing could be estimated." in page
    assert "Bias field divided out" not in page
    assert "Not applied: bias field divided out" in page
    assert result.numbers["verdict"]["status"] == "look"
