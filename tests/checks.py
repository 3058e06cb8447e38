"""What every process must have made of the phantom: nf-test asks it of a process alone, pytest of a whole run.

    python tests/checks.py make FOLDER               the phantom, its truth, and what every process is given
    python tests/checks.py PROCESS FOLDER FILE...    is silent, or says what is wrong and ends with 1

A check looks at the files that a task made, and at what it was given, which lies beside them in the task's folder.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import BSpline

from n4flow.commands import main
from n4flow.corrections.base import Where
from n4flow.corrections.proof import Evidence
from n4flow.corrections.recipe import Recipe, load_correction
from n4flow.errors import N4flowError
from n4flow.io.frame import Frame
from n4flow.io.open import open_volume
from n4flow.masks.tissue_source import TissueSource
from n4flow.pipeline.estimate import Inputs, n4_volume
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.provenance import crate_sum
from n4flow.pipeline.verify import verify
from n4flow.sections import SectionTable
from n4flow.statistics.histograms import HistogramFiles
from n4flow.statistics.shrunken import ShrunkenFiles

PLANES = 24  # of a slab, as in the test profile


class Case:
    """The phantom of a folder, and its truth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> np.ndarray:
        """Return a store of the folder."""
        return open_volume(self.folder / f"{name}.ome.zarr", require_voxel_um=False).read(slice(None))

    @cached_property
    def observed(self) -> np.ndarray:
        """The volume, float32."""
        return self.read("phantom").astype(np.float32)

    @cached_property
    def tissue(self) -> np.ndarray:
        """The true tissue."""
        return self.read("truth/tissue") > 0

    @property
    def sections_file(self) -> Path:
        """The section table."""
        return self.folder / "phantom.sections.tsv"

    @cached_property
    def sections(self) -> list[slice]:
        """Planes of each section."""
        with self.sections_file.open() as file:
            return [slice(int(row["z_start"]), int(row["z_stop"])) for row in csv.DictReader(file, delimiter="\t")]

    def after(self, corrections: Iterable[Any], tissue: np.ndarray | None = None) -> np.ndarray:
        """Return the volume under corrections, from their numbers by the formulas of docs/stages.md in NumPy and SciPy.

        Gains are of the true tissue where no other is given.
        """
        values = self.observed.astype(np.float64)
        for each in corrections:
            values = FORMULAS[each.kind](each, values, self.tissue if tissue is None else tissue)
        return values

    def unevenness(self, volume: np.ndarray) -> float:
        """Return the spread of the planes' brightness against the truth: of gains that nobody took out."""
        truth = self.read("truth/truth")
        ratio = [v[t].mean() / u[t].mean() for v, u, t in zip(volume, truth, self.tissue, strict=True)]
        return float(np.std(ratio) / np.mean(ratio))

    def likeness(self, volume: np.ndarray, planes: slice) -> float:
        """Return the correlation with the truth within the tissue of some planes."""
        inside = self.tissue[planes]
        return float(np.corrcoef(volume[inside], self.read("truth/truth")[planes][inside])[0, 1])


def divided(field: Any, values: np.ndarray, _tissue: np.ndarray) -> np.ndarray:
    """Divide by exp of a cubic B-spline on a uniform lattice, whose samples lie in the middle of their blocks."""
    log_field = np.zeros(values.shape)
    corner = (field.frame.y_start, field.frame.x_start) if field.frame else (0, 0)
    for first, stop, one in field.fields:
        total, places = one.lattice.astype(np.float64), []
        for axis, begin in enumerate((first, *corner)):
            inside = np.arange(values.shape[axis]) - begin
            inside = inside[(inside >= 0) & (inside < one.shape[axis])]
            controls, samples = total.shape[0], one.grid_shape[axis]
            t = ((inside + 0.5) / one.shrink[axis] - 0.5) * (controls - 3) / max(samples - 1, 1)
            total = np.moveaxis(BSpline(np.arange(-3, controls + 1), total, 3, extrapolate=True)(t), 0, -1)
            places.append(slice(begin + inside[0], begin + inside[-1] + 1))
        log_field[tuple(places)] = total
        assert stop - first == one.shape[0]
    return values / np.exp(log_field)


def ranged(ranges: Any, values: np.ndarray, _tissue: np.ndarray) -> np.ndarray:
    """Cut each plane at its limits, take its agarose off, divide by the span; padding stays."""
    lower, upper = (limit.astype(np.float64)[:, None, None] for limit in (ranges.lower, ranges.upper))
    return np.where(values == 0, 0, (np.clip(values, lower, upper) - lower) / ranges.span)


def mapped(lookups: Any, values: np.ndarray, _tissue: np.ndarray) -> np.ndarray:
    """Map what is above the threshold by straight lines between the knots of each plane's map, and beyond the last."""
    result = values.copy()
    for z, number in enumerate(lookups.map_of_plane):
        if number >= 0:
            part = slice(lookups.offsets[number], lookups.offsets[number + 1])
            x, y, plane = lookups.knots_x[part], lookups.knots_y[part], values[z]
            slope = (y[-1] - y[0]) / (x[-1] - x[0]) if lookups.slope_above is None else lookups.slope_above[number]
            beyond = np.minimum(y[-1] + slope * (plane - x[-1]), np.inf if lookups.most is None else lookups.most)
            above = np.where(plane > x[-1], beyond, np.interp(plane, x, y))
            result[z] = np.where(plane > lookups.threshold, above, plane)
    return result


def multiplied(gains: Any, values: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Multiply the tissue of each plane."""
    return np.where(tissue, values * gains.gain[:, None, None], values)


FORMULAS = {"bias_field": divided, "plane_range": ranged, "section_lookup": mapped, "plane_gain": multiplied}


def start(file: Path) -> int:
    """Return the first plane of a slab from its name."""
    return int(file.stem[-6:])


def below(least: float, value: float, most: float, what: str) -> None:
    """Refuse a value out of range."""
    assert least <= value <= most, f"{what} is {value:.4g}, expected {least:g} to {most:g}"


def phantom(case: Case, files: Sequence[Path]) -> None:
    """Another process, with another number of threads, makes the same voxels."""
    (store,) = [file for file in files if file.suffix == ".zarr"]
    assert open_volume(store).digest() == open_volume(case.folder / "phantom.ome.zarr").digest()


def inspect(case: Case, files: Sequence[Path]) -> None:
    """Slabs of whole sections, batches of three of them, and room for what will be held."""
    (plan,) = [json.loads(file.read_text()) for file in files]
    assert plan["shape"] == list(case.observed.shape)
    assert plan["voxel_um"] == {"z": 50, "y": 25, "x": 25}
    assert (plan["shrink"], plan["slab_planes"]) == (2, PLANES)
    assert plan["slabs"] == [[0, 24], [24, 40]]
    assert plan["batches"] == [[0, 3], [3, 5]]
    for name, size in plan["memory_bytes"].items():
        below(1e8, size, 2e9, f"memory of {name}")


def shrink(case: Case, files: Sequence[Path]) -> None:
    """Each voxel is the mean of the four, padding left out."""
    for file in files:
        files = ShrunkenFiles([file])
        small = files.part(0, files.shape[0])
        assert files.frame is not None
        planes = slice(start(file), start(file) + len(small.mean))
        values = case.observed[planes, *Frame(*files.frame).box].astype(np.float64)
        blocks = values.reshape(len(values), values.shape[1] // 2, 2, values.shape[2] // 2, 2)
        count = (blocks != 0).sum((2, 4))
        np.testing.assert_allclose(small.mean * count, blocks.sum((2, 4)), rtol=1e-6)
        np.testing.assert_array_equal(small.valid, count / 4)


def tissue_mask(case: Case, files: Sequence[Path]) -> None:
    """The mask is the tissue, ventricles closed; what is called agarose in all planes is it in most."""
    (found,) = [TissueSource.load(file) for file in files]
    mask = _expanded(found, np.asarray(found.small), case)
    below(0.92, 2 * (mask & case.tissue).sum() / (mask.sum() + case.tissue.sum()), 1, "overlap with the true tissue")
    agarose = _expanded(found, found.agarose_small[None], case)[0]
    below(0, float(case.tissue[:, agarose].mean()), 0.1, "share of tissue in agarose")


def fields(case: Case, files: Sequence[Path]) -> None:
    """Each field is the true one, but for what anatomy of the same scale costs: of one section most of the spread."""
    for file in files:
        correction = load_correction(file)
        ones = np.ones(case.observed.shape, np.float32)
        found = -np.log(correction.apply(ones, Where(0, 0, 0, ones.shape)))
        true = np.log(case.read("truth/bias"))
        for first, stop, _field in correction.fields:
            inside = np.zeros(ones.shape, bool)
            inside[first:stop] = case.tissue[first:stop]
            below(0, (true - found)[inside].std() / true[inside].std(), 0.85, f"error of planes {first} to {stop - 1}")
            below(0.75, np.corrcoef(true[inside], found[inside])[0, 1], 1, "correlation with the true field")


def volume_field(case: Case, files: Sequence[Path]) -> None:
    """The field is the one that ITK finds: on a volume with uneven sections that is not the true one."""
    task = files[0].parent
    asked = json.loads(files[0].with_suffix(".json").read_text())["command"]
    iterations = re.search(r"--iterations (\S+)", asked)[1]
    shrunken = ShrunkenFiles(sorted(task.glob("shrunken/*.npz")))
    before = Recipe.load(task / "recipe") if (task / "recipe").exists() else Recipe()
    settings = resolve({"input": "-", "outdir": "-", "iterations": iterations, "backend": "itk"})
    masks, table = (
        TissueSource.load(task / "masks.npz"),
        SectionTable.coerce(str(case.sections_file), len(case.observed)),
    )
    inputs = Inputs(table, shrunken, masks, recipe=before, voxel_um={"z": 50, "y": 25, "x": 25})
    expected = n4_volume(inputs, settings)
    ones = np.ones(case.observed.shape, np.float32)
    place = Where(0, 0, 0, ones.shape)
    found = [correction.apply(ones.copy(), place)[case.tissue] for correction in (load_correction(files[0]), expected)]
    own, itk = (np.log(field) for field in found)
    below(0.002, float(itk.std()), 1, "spread of ITK's field")
    below(0, float(abs(own - itk).max() / itk.std()), 0.01, "difference from ITK's field in shares of its spread")


def prove(case: Case, files: Sequence[Path]) -> None:
    """Gains of sections and planes are proven, and what is kept of each field is the true one still."""
    evidence = Evidence.load(files[0].parents[1] / "evidence.npz")
    proven = np.exp(evidence.levels(evidence.proven))[:, None, None]
    left = case.unevenness(case.observed / proven) / case.unevenness(case.observed)
    below(0, left, 0.5, "what is left of the gains")
    fields(case, files)


def harmonize(case: Case, files: Sequence[Path]) -> None:
    """Gains of sections and planes are mostly taken out."""
    (correction,) = [load_correction(file) for file in files]
    ones = np.ones(case.observed.shape, np.float32)
    after = case.observed * correction.apply(ones, Where(0, 0, 0, ones.shape))
    below(0, case.unevenness(after) / case.unevenness(case.observed), 0.5, "what is left of the gains")


def plane_statistics(case: Case, files: Sequence[Path]) -> None:
    """Every voxel that is not padding is counted, after the fields, with its own value to a bin's width."""
    recipe = Recipe.load(files[0].parent / "recipe")
    after = case.after(recipe)
    for file in files:
        counted = HistogramFiles([file])
        for z in range(start(file), start(file) + counted.n_planes):
            plane = after[z].astype(np.float64)
            assert counted.count(z) == (plane != 0).sum()
            np.testing.assert_allclose(counted.mean(z), plane[plane != 0].mean(), rtol=1e-3)


def intensity(case: Case, files: Sequence[Path]) -> None:
    """Of three corrections in a row, each does its own: agarose to 0, sections together, planes nearer to the truth."""
    ranges, lookups, gains = (load_correction(file) for file in sorted(files))
    before = [*Recipe.load(files[0].parents[1] / "recipe")]
    counted, ranged, matched, smoothed = (
        case.after([*before, *found]) for found in ([], [ranges], [ranges, lookups], [ranges, lookups, gains])
    )
    agarose = case.read("truth/agarose") > 0
    true = [np.median(plane[inside]) for plane, inside in zip(counted, agarose, strict=True)]
    np.testing.assert_allclose(ranges.lower, true, rtol=0.03)  # the mask leaves out the tissue's shadow
    below(0.95, float(ranged.max()), 1.0001, "the brightest voxel")
    spread = [np.std([np.median(v[s][case.tissue[s]]) for s in case.sections]) for v in (ranged, matched)]
    below(0, spread[1] / spread[0], 0.35, "what is left of the sections' spread")
    below(0, case.unevenness(smoothed) / case.unevenness(matched), 0.8, "what is left of the planes' unevenness")


def render(case: Case, files: Sequence[Path]) -> None:
    """Every voxel is what the recipe makes of it, and nearer to the truth than it was."""
    for slab in files:
        recipe = Recipe.load(slab.parent / "recipe")
        first = start(slab)
        planes = slice(first, min(first + PLANES, len(case.observed)))
        mask, store = slab / "mask.ome.zarr", slab / "phantom.ome.zarr"
        inside = open_volume(mask, require_voxel_um=False, allow_missing_chunks=True).read(slice(None)) > 0
        expected = case.after(recipe, inside)[planes]
        found = open_volume(store, allow_missing_chunks=True).read(planes)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32 beside float64
        below(case.likeness(case.observed[planes], planes) + 0.02, case.likeness(found, planes), 1, "likeness")


def finish(case: Case, files: Sequence[Path]) -> None:
    """The store decodes to what was written, its gains are out, and the metrics say so."""
    (folder,) = files
    verify(folder)
    after = open_volume(folder / "phantom.ome.zarr").read(slice(None))
    inside = open_volume(folder / "mask.ome.zarr", require_voxel_um=False).read(slice(None)) > 0
    expected = case.after(Recipe.load(folder / "recipe.json"), inside)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)  # float32 beside float64
    below(0, case.unevenness(after) / case.unevenness(case.observed), 0.35, "what is left of the gains")
    numbers = json.loads((folder / "metrics.json").read_text())
    tissue, verdict = numbers["metrics"]["tissue"], numbers["verdict"]
    below(
        0, tissue["plane_mean_cv_after"] / tissue["plane_mean_cv_before"], 0.6, "what is left along Z, anatomy included"
    )
    below(0, abs(numbers["metrics"]["agarose"]["level_after"]), 0.02, "agarose")
    assert (verdict["status"], verdict["changed"]) == ("pass", True), verdict["sentence"]


def published(_case: Case, files: Sequence[Path]) -> None:
    """Every chunk and file is what its checksum says, also the RO-Crate's."""
    for folder in files:
        assert verify(folder).chunks > 0


def crate(case: Case, files: Sequence[Path]) -> None:
    """The RO-Crate is valid, and states the digests of the results that it is of."""
    with tempfile.TemporaryDirectory() as folder:
        outdir = Path(folder, "results")
        shutil.copytree(case.folder / "results", outdir)
        shutil.copytree(files[0], outdir, dirs_exist_ok=True)
        assert verify(outdir).samples == ("phantom",)
        name = outdir / "ro-crate-metadata.json"
        name.write_text(re.sub(r'"identifier": "[0-9a-f]', '"identifier": "x', name.read_text()))
        (outdir / "pipeline_info" / "ro-crate-metadata.json.sha256").write_text(crate_sum(outdir))
        with pytest.raises(N4flowError, match="names digest x"):
            verify(outdir)


CHECKS: dict[str, Callable[[Case, Sequence[Path]], None]] = {
    "PHANTOM": phantom,
    "INSPECT": inspect,
    "SHRINK": shrink,
    "TISSUE_MASK": tissue_mask,
    "N4_SECTIONS": fields,
    "N4_VOLUME": volume_field,
    "PROVE": prove,
    "HARMONIZE": harmonize,
    "PLANE_STATISTICS": plane_statistics,
    "INTENSITY": intensity,
    "RENDER": render,
    "FINISH": finish,
    "PUBLISH": published,
    "PROVENANCE": crate,
}


def make(folder: Path) -> None:
    """Make the phantom and, step by step, what every process is given."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    image, table = folder / "phantom.ome.zarr", folder / "phantom.sections.tsv"
    _run(f"phantom {image} --truth {folder}/truth")
    plan = f"--sections {table} --shrink 2 --sections-per-task 3 --slab-planes {PLANES}"
    _run(f"inspect {image} --sample phantom {plan} --answer {folder}/plan.json")
    frame = json.loads((folder / "plan.json").read_text())["frame"]  # without the padding, as in the workflow
    steps = []
    slabs = [(f"{z:06d}", f"--planes {z}:{min(z + PLANES, 40)}") for z in range(0, 40, PLANES)]
    for name in ("shrunken", "histograms", "slabs", "0", "1", "2"):
        (folder / name).mkdir()
    for name, planes in slabs:
        out = folder / "shrunken" / f"shrunken_{name}"
        steps.append(f"shrink {image} {planes} --shrink 2 --frame {frame} --out {out}.npz --json {out}.json")
    steps.append(
        f"tissue-mask {folder}/shrunken --sections {table} --voxel-um '50 25 25' --out {folder}/masks.npz"
        f" --json {folder}/masks.json"
    )
    common = f"--masks {folder}/masks.npz --sections {table} --voxel-um '50 25 25'"
    common += " --iterations 50,50,50,50 --tolerance 0.001 --backend cpu"
    for batch in ("0:3", "3:5"):
        name = f"20_bias_sections.{int(batch[0]):06d}"
        to = f"--out {folder}/0/{name}.npz --json {folder}/1/{name}.json"  # PROVE writes what is kept of the field to 1
        steps.append(f"n4-sections {folder}/shrunken {common} --batch {batch} {to}")
    given = f"{folder}/shrunken --masks {folder}/masks.npz --sections {table} --recipe {folder}/0"
    steps.append(f"prove {given} --out {folder}/evidence.npz --recipe-out {folder}/1 --json {folder}/1/prove.json")
    for name, planes in slabs:
        out = folder / "histograms" / f"histograms_{name}"
        given = f"--masks {folder}/masks.npz --recipe {folder}/1 --out {out}.npz --json {out}.json"
        steps.append(f"plane-statistics {image} {planes} {given}")
    given = f"{folder}/histograms --sections {table} --recipe {folder}/1 --evidence {folder}/evidence.npz"
    steps.append(f"intensity {given} --out {folder}/2")
    for step in steps:
        _run(step)
    for file in (folder / "1").iterdir():  # the last recipe holds the one before
        shutil.copy(file, folder / "2")
    for name, planes in slabs:
        given = f"--masks {folder}/masks.npz --recipe {folder}/2 --sample phantom --slab-planes {PLANES} --shrink 2"
        _run(f"render-slab {image} {planes} {given} --out {folder}/slabs/slab_{name} --json {folder}/slabs/render.json")
        shutil.move(folder / "slabs" / "render.json", folder / "slabs" / f"slab_{name}")
    (folder / "parameters.json").write_text(json.dumps({"input": "phantom", "shrink": 2, "slab_planes": PLANES}))
    given = f"--sample phantom --sections {table} --parameters {folder}/parameters.json --before {folder}/shrunken"
    given += f" --masks {folder}/masks.npz --slabs {folder}/slabs --numbers {folder}/histograms --recipe {folder}/2"
    given += f" --evidence {folder}/evidence.npz"
    _run(f"finish {image} {given} --out {folder}/results/phantom")


def _run(step: str) -> None:
    try:
        main(shlex.split(step))
    except SystemExit as end:
        if end.code:
            sys.exit(f"{step} ends with {end.code}")


def _expanded(masks: TissueSource, small: np.ndarray, case: Case) -> np.ndarray:
    """Return a mask at full resolution: two voxels for one in the frame, none around it."""
    assert masks.frame is not None
    whole = np.zeros((len(small), *case.observed.shape[1:]), bool)
    whole[:, *masks.frame.box] = small.repeat(2, 1).repeat(2, 2)
    return whole


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        try:
            CHECKS[sys.argv[1]](Case(Path(sys.argv[2])), [Path(file) for file in sys.argv[3:]])
        except AssertionError as wrong:
            sys.exit(f"{sys.argv[1]}: {wrong}")
