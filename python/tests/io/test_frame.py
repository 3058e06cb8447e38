"""The frame: what holds valid voxels is found whatever the file, and what lies around it changes nothing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from n4flow import run
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError
from n4flow.io.frame import Frame, find_frame, framed
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume
from n4flow.pipeline.blocks import Blocks, stream
from n4flow.pipeline.passes import shrink_pass
from n4flow.pipeline.render import render
from n4flow.sections import SectionTable
from n4flow.statistics.measure import shrink_planes

VOXEL = {"z": 20.0, "y": 5.0, "x": 5.0}
SHAPE = (9, 61, 83)


def padded(dtype: str, borders: tuple[int, int, int, int], seed: int = 0) -> np.ndarray:
    """Return sections that lie in a mosaic at places of their own, with some zeros inside."""
    top, bottom, left, right = borders
    rng = np.random.default_rng(seed)
    values = np.zeros(SHAPE, dtype)
    inner = values[:, top : SHAPE[1] - bottom, left : SHAPE[2] - right]
    for z in range(SHAPE[0]):  # no plane reaches all four sides
        low, high = rng.integers(0, 8, 2), rng.integers(0, 8, 2)
        part = inner[z, low[0] : inner.shape[1] - high[0], low[1] : inner.shape[2] - high[1]]
        part[...] = rng.integers(0, 200, part.shape)
    for z, (y, x) in enumerate([(0, 9), (-1, 9), (9, 0), (9, -1)]):  # single voxels do
        inner[z, y, x] = 7
    return values


@pytest.mark.parametrize("borders", [(0, 0, 0, 0), (5, 0, 0, 11), (17, 9, 31, 2), (0, 30, 0, 0)])
@pytest.mark.parametrize("kind", ["array", "planes", "small", "deep", "tiff"])
def test_the_frame_is_the_box_of_valid_voxels(
    tmp_path: Path, kind: str, borders: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n4flow.io.frame.SEARCH_BYTES", 2000)
    monkeypatch.setattr("n4flow.io.frame.STRIP", 20)
    values = padded("float32", borders)
    values[2, 0], values[3, :, -1] = np.nan, np.inf  # is not valid either
    valid = np.isfinite(values) & (values != 0)
    y, x = (np.flatnonzero(valid.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if kind == "array":
        volume = Volume.from_array(values, VOXEL)
    elif kind == "tiff":
        tifffile.imwrite(tmp_path / "v.tif", values, compression="zlib", photometric="minisblack")
        volume = open_volume(tmp_path / "v.tif", voxel_um=VOXEL)
    else:
        chunks = {"planes": (1, 61, 83), "small": (2, 16, 11), "deep": (9, 7, 83)}[kind]
        zarr.create_array(tmp_path / "v.zarr", data=values, chunks=chunks, config={"write_empty_chunks": True})
        volume = open_volume(tmp_path / "v.zarr", voxel_um=VOXEL)
    frame = find_frame(volume)
    assert frame == (y[0], y[-1] + 1, x[0], x[-1] + 1)
    assert np.array_equal(framed(volume, frame).read(slice(1, 8)), values[(slice(1, 8), *frame.box)], equal_nan=True)
    assert Frame.read(str(frame), SHAPE) == frame


def test_a_volume_without_valid_voxels_is_its_own_frame() -> None:
    volume = Volume.from_array(np.zeros(SHAPE, np.uint8), VOXEL)
    assert find_frame(volume) == Frame.whole(SHAPE)
    assert framed(volume, Frame.whole(SHAPE)) is volume


def test_of_a_volume_without_padding_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.ones(SHAPE, np.uint8)
    values[0] = 0
    zarr.create_array(tmp_path / "v.zarr", data=values, chunks=(2, 16, 11), config={"write_empty_chunks": True})
    volume = open_volume(tmp_path / "v.zarr", voxel_um=VOXEL)
    asked = set()
    read = type(volume.reader).read

    def noted(reader: Any, z: slice, *box: slice) -> np.ndarray:
        asked.add((z.start, z.stop, *((span.start, span.stop) for span in box)))
        return np.asarray(read(reader, z, *box))

    monkeypatch.setattr(type(volume.reader), "read", noted)
    monkeypatch.setattr("n4flow.io.frame.STRIP", 1)
    assert find_frame(volume) == Frame.whole(SHAPE)
    # The chunks at the sides of those in the middle; the first row tells that the first and last column are valid.
    assert asked == {(4, 6, (0, 16), (0, 83)), (4, 6, (48, 61), (0, 83))}


@pytest.mark.parametrize("text", ["0:5,0:84", "5:5,0:9", "0:62,0:9", "1:2", "a:3,0:2", "-1:3,0:2"])
def test_a_frame_beyond_the_planes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"frame must be Y_START:Y_STOP,X_START:X_STOP within 0:61,0:83, got "):
        Frame.read(text, SHAPE)


@pytest.mark.parametrize("chunks", [(2, 16, 11), (9, 7, 83), (1, 61, 83)])
def test_blocks_of_a_frame_begin_where_chunks_do(
    tmp_path: Path, chunks: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n4flow.pipeline.blocks.BLOCK_BYTES", 1)
    values = padded("uint16", (19, 3, 7, 5))
    zarr.create_array(tmp_path / "v.zarr", data=values, chunks=chunks, config={"write_empty_chunks": True})
    volume = open_volume(tmp_path / "v.zarr", voxel_um=VOXEL)
    frame = find_frame(volume)
    inner = framed(volume, frame)
    found = np.zeros(inner.shape, np.uint16)
    for z, y, block in stream(inner, 0, SHAPE[0]):
        assert y == 0 or (y + frame.y_start) % chunks[1] == 0
        found[z : z + len(block), y : y + block.shape[1]] = block
    assert np.array_equal(found, values[:, *frame.box])
    assert Blocks.of(volume).lead == 0
    shrunken, _given = shrink_pass(volume, 0, SHAPE[0], 3, recipe=Recipe(), frame=frame)
    expected = shrink_planes(values[:, *frame.box], 3)
    assert np.array_equal(shrunken.mean, expected.mean)
    assert np.array_equal(shrunken.valid, expected.valid)
    assert shrunken.frame == frame


def tissue_in_agarose() -> np.ndarray:
    shape = 12, 70, 90
    rng = np.random.default_rng(3)
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    tissue = (y - 35) ** 2 + (x - 45) ** 2 < 24**2
    level = np.where(tissue, 9000, 1500) * (1 + 0.2 * np.sin(z // 4)) * np.exp(0.3 * (x - 45) / 90)
    return np.asarray((level * rng.gamma(30, 1 / 30, shape)).astype(np.uint16))


def test_a_given_mask_is_published_as_it_is(tmp_path: Path) -> None:
    values = np.pad(tissue_in_agarose(), ((0, 0), (8, 0), (0, 8)))
    mask = np.ones(values.shape, np.uint8)  # also where there is padding
    write_volume(tmp_path / "brain.ome.zarr", values, voxel_um=VOXEL)
    np.save(tmp_path / "mask.npy", mask)
    asked: dict[str, Any] = {"mask": tmp_path / "mask.npy", "bias": "off", "sections": 3}
    (sample,) = run(tmp_path / "brain.ome.zarr", tmp_path / "out", **asked).samples
    assert np.array_equal(open_volume(sample.folder / "mask.ome.zarr").read(slice(None)), mask)


QUICK = {"iterations": "6,6", "backend": "cpu"}
COUNTED = ("voxels", "planes", "sections")  # of the metrics: with padding, and by numbers of planes


def section_rows(count: int, n_planes: int, before: int, damaged: int | None) -> list[tuple[Any, ...]]:
    """Return the lines of a table of equal sections of 12 planes, with padding `before` and after them."""
    rows = []
    for i, section in enumerate(SectionTable.equal(12, count)):
        start, stop = section.z_start + before, section.z_stop + before
        flag = "damaged" if i == damaged else "ok"
        rows.append((section.id, start if i else 0, stop if i < count - 1 else n_planes, flag))
    return [("id", "z_start", "z_stop", "flag"), *rows]


@pytest.mark.parametrize(
    ("border", "settings"),
    [
        (((0, 0), (7, 13), (16, 5)), {"sections": 3}),
        (((0, 0), (7, 13), (16, 5)), {"sections": 3, "match": "plane", "smooth_z": 1.2, "background_radius_um": 40}),
        (((0, 0), (61, 0), (1, 290)), {"sections": 3, "bias": "two_pass", "dtype": "uint16"}),
        (((9, 4), (5, 3), (0, 7)), {"sections": 4, "harmonize": "auto", "shrink": 3}),
        (((0, 5), (0, 2), (1, 0)), {"sections": 3, "harmonize": "safe", "flat_field": True}),
        (((0, 0), (40, 40), (40, 40)), {"sections": 3, "harmonize": "full", "mask": True, "ome_zarr_version": "0.4"}),
        (((0, 0), (9, 0), (0, 9)), {"sections": 3, "normalize": False, "match": "off", "smooth_z": 0}),
        (((3, 2), (5, 0), (0, 7)), {"bias": "two_pass", "smooth_z": 1.5, "shrink": 2}),
        (((8, 0), (0, 0), (0, 0)), {"sections": 3, "damaged": 1, "bias": "two_pass", "smooth_z": 1.2}),
        (((0, 9), (0, 0), (0, 0)), {"sections": 3, "damaged": 1, "bias": "off", "normalize": False}),
    ],
)
def test_zero_padding_changes_no_voxel_inside(
    tmp_path: Path, border: tuple[tuple[int, int], ...], settings: dict[str, Any]
) -> None:
    values = tissue_in_agarose()
    files = {"mask": (values > 4000).astype(np.uint8)}
    files["flat_field"] = np.exp(0.2 * np.linspace(-1, 1, values.shape[1]))[None, :, None] * np.ones_like(values[:1])
    voxels, masks, tables, measured = [], [], [], []
    for name, pad in (("plain", [(0, 0)] * 3), ("padded", border)):
        image = np.pad(values, pad)
        write_volume(tmp_path / f"{name}.ome.zarr", image, voxel_um=VOXEL)
        given = {}
        for kind in files:
            if settings.get(kind):
                edge = pad if kind == "mask" else [(0, 0), *pad[1:]]
                given[kind] = tmp_path / f"{name}_{kind}.npy"
                np.save(given[kind], np.pad(files[kind], edge, constant_values=0 if kind == "mask" else 5))
        if "sections" in settings:  # where there is padding, the first and the last are longer
            rows = section_rows(settings["sections"], len(image), pad[0][0], settings.get("damaged"))
            given["sections"] = tmp_path / f"{name}_sections.csv"
            given["sections"].write_text("\n".join(",".join(map(str, row)) for row in rows))
        asked = {"normalize": True} | QUICK | settings | given
        asked.pop("damaged", None)
        (sample,) = run(tmp_path / f"{name}.ome.zarr", tmp_path / "out", **asked).samples
        whole = open_volume(sample.store).read(slice(None))
        recipe = Recipe.load(sample.folder / "recipe.json")
        if asked.get("dtype") is None:
            assert np.array_equal(recipe.apply(image), whole)
        with pytest.raises(InputError, match=r"was made for planes of .*, got .*; give whole planes"):
            recipe.apply(image[:, 1:])
        source = open_volume(tmp_path / f"{name}.ome.zarr")
        render(source, recipe, tmp_path / "again.ome.zarr", dtype=asked.get("dtype", "float32"))
        assert np.array_equal(open_volume(tmp_path / "again.ome.zarr").read(slice(None)), whole)
        (tmp_path / "again.ome.zarr").rename(tmp_path / f"again_{name}")
        inside = tuple(slice(low, low + n) for (low, _high), n in zip(pad, values.shape, strict=True))
        voxels.append(whole[inside])
        masks.append(open_volume(sample.folder / "mask.ome.zarr").read(slice(None))[inside])
        with (sample.folder / "sections.tsv").open() as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        tables.append([{k: v for k, v in row.items() if not k.startswith("z_st")} for row in rows])
        measured.append({k: v for k, v in sample.numbers["metrics"].items() if k not in COUNTED})
        assert np.count_nonzero(whole) == np.count_nonzero(whole[inside])
        if asked.get("dtype") is None:
            rendered = [stage for stage in sample.numbers["stages"] if stage["stage"] == "RENDER"]
            assert min(stage["minimum"] for stage in rendered) == whole.min()
    assert voxels[0].std() > 0
    assert masks[0].any()
    assert np.array_equal(*voxels)
    assert np.array_equal(*masks)
    assert tables[0] == tables[1]
    assert measured[0] == measured[1]
    assert measured[0]["tissue"]["share"] > 0
