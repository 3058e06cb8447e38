"""Score corrections on distorted volumes with known truth, and on volumes that need no correction.

    python benchmarks/quality.py --out benchmarks/results/quality.json --pictures docs/images   # half an hour
    python benchmarks/quality.py --only "phantom 7" --cases plain "nothing wrong"               # a quick look
    python benchmarks/quality.py --mouse mouse_brain.tif                                        # and a real brain
    python benchmarks/quality.py --out benchmarks/results/quality.json --resume --only - --fit-sides 512 256 192 128
    python benchmarks/quality.py --table benchmarks/results/quality.json                        # as Markdown

Anatomies: n4flow's phantom (its truth, undistorted), the MNI152 T1 template of the nilearn wheel (head, brain alone,
and brain with contrast inverted), and a volume given by --mouse. Settings of the method were chosen on the anatomies of
`TUNED` with seed 0; the anatomies of `KEPT` have seed 11 and were kept apart from that choice.

Each anatomy is distorted as by a serial-section microscope: shading that all planes share, shading and gain of each
section, attenuation with depth, jitter of planes, slow drift along Z, speckle, padding. docs/quality.md has the scores.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import resource
import time
import unittest.mock
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from n4 import machine  # benchmarks/n4.py, not a package
from quality_volumes import CASES, EVERYWHERE, KEPT, MORE, SEEDS, TUNED, Distorted, distort
from scipy import ndimage

import n4flow
from n4flow.corrections.base import Correction
from n4flow.corrections.proof import Evidence, proven_bias
from n4flow.corrections.recipe import Recipe
from n4flow.errors import N4flowWarning
from n4flow.masks.tissue_source import TissueSource
from n4flow.phantom.options import PhantomOptions
from n4flow.phantom.store import Phantom
from n4flow.pipeline.estimate import Inputs, match_histograms, n4_sections, n4_volume, prove, smooth_z
from n4flow.pipeline.parameters import resolve
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair
from n4flow.sections import SectionTable
from n4flow.statistics import measure as grids
from n4flow.statistics.measure import choose_shrink, plane_histograms, shrink_planes

# ---------------------------------------------------------------------------------------------------------- corrections


SETTINGS = resolve({"input": "-", "outdir": "-", "backend": "cpu"})

Made = tuple[np.ndarray, Sequence[Correction], Evidence | None]  # a result, its recipe, and what is proven


BIAS: dict[str, tuple[Callable[..., Correction], ...]] = {
    "sections": (n4_sections,),
    "volume": (n4_volume,),
    "two_pass": (n4_sections, n4_volume),
}


@lru_cache(1)
def fitted(volume: Distorted, bias: str) -> tuple[Inputs, Evidence]:
    """Return what the stages after N4 take of a volume, with whole bias fields, and what is proven."""
    tissue = TissueSource(volume.tissue, np.zeros(volume.truth.shape[1:], bool), 1)
    inputs = Inputs(volume.sections, shrink_planes(volume.observed, 1), tissue, voxel_um=dict.fromkeys("zyx", 1000.0))
    for stage in BIAS[bias]:
        inputs = replace(inputs, recipe=Recipe([*inputs.recipe, stage(inputs, SETTINGS)]))
    return inputs, prove(inputs, {**SETTINGS, "trust": "full"})[0]


def chain(trust: str, bias: str = "sections") -> Callable[[Distorted], Made]:
    """Return the default chain without normalisation: N4, what is proven, histogram matching, smoothing along Z."""
    settings = {**SETTINGS, "trust": trust}

    def run(volume: Distorted) -> Made:
        inputs, evidence = fitted(volume, bias)
        recipe = proven_bias(inputs.recipe, evidence) if trust == "proven" else list(inputs.recipe)
        histograms = plane_histograms(Recipe(recipe).apply(volume.observed), volume.tissue)
        for stage in (match_histograms, smooth_z):
            recipe.append(
                stage(replace(inputs, recipe=Recipe(recipe), evidence=evidence, histograms=histograms), settings)
            )
        return Recipe(recipe).apply(volume.observed, tissue=volume.tissue), recipe, evidence

    return run


def harmonized(mode: str) -> Callable[[Distorted], Made]:
    """Return the harmonisation in one of its modes, as a function of a volume."""

    def run(volume: Distorted) -> Made:
        corrected, fields = n4flow.harmonize(volume.observed, volume.tissue, volume.sections, mode=mode)
        return corrected, [fields], None

    return run


WAYS: dict[str, Callable[[Distorted], Made]] = {
    "nothing": lambda volume: (volume.observed, [], None),
    "full": chain("full"),
    "proven": chain("proven"),
    "proven, volume": chain("proven", "volume"),
    "proven, two_pass": chain("proven", "two_pass"),
    "safe": harmonized("safe"),
    "auto": harmonized("auto"),
    "oracle": lambda volume: (volume.observed / np.exp(volume.log_field), [], None),
    "oracle of safe": lambda volume: (volume.observed / np.exp(volume.log_field - volume.shared), [], None),
}
TABLED = ("nothing", "full", "proven", "safe", "oracle of safe", "auto")
PICTURED = ("nothing", "full", "proven", "safe", "auto", "oracle")


# --------------------------------------------------------------------------------------------------------------- scores


def score(volume: Distorted, corrected: np.ndarray) -> dict[str, float]:
    """Return r, contrast over truth's, variation within classes, mean step at cuts, and spread of plane means (log)."""
    from skimage.filters import threshold_otsu

    tissue, owner = volume.tissue, volume.sections.section_of_plane
    truth, result = (np.maximum(array[tissue], 1e-6).astype(np.float64) for array in (volume.truth, corrected))
    bright = truth > np.exp(threshold_otsu(np.log(truth[::7])))

    def contrast(values: np.ndarray) -> float:
        return float(np.log(values[bright].mean() / values[~bright].mean()))

    error = np.full(tissue.shape, np.nan, np.float32)
    error[tissue] = np.log(result / truth)
    counts = tissue.sum(axis=(1, 2))
    means = [np.nanmean(error[z]) for z in np.flatnonzero(counts >= 200)]
    steps = []
    for z in np.flatnonzero(np.diff(owner)):
        both = tissue[z] & tissue[z + 1]
        if both.sum() >= 200:
            steps.append(abs(np.median(error[z + 1][both] - error[z][both])))
    within = [result[part].std() / result[part].mean() for part in (bright, ~bright)]
    return {
        "r": float(np.corrcoef(truth, result)[0, 1]),
        "contrast": contrast(result) / contrast(truth),
        "within": float(np.mean(within)),
        "step": float(np.mean(steps)) if steps else 0.0,
        "band": float(np.std(means)),
        "moved": moved(volume, corrected),
    }


def moved(volume: Distorted, corrected: np.ndarray) -> float:
    """Return how far any voxel was moved (log), after a median of 3 x 3 x 3, brightness as a whole aside."""
    inside = ndimage.binary_erosion(volume.tissue, np.ones((3, 3, 3))) & (volume.observed > 0) & (corrected > 0)
    ratio = np.log(np.where(inside, corrected, 1)) - np.log(np.where(inside, volume.observed, 1))
    ratio = np.where(inside, ratio - np.median(ratio[inside]), 0)
    return float(np.abs(ndimage.median_filter(ratio, 3)[inside]).max()) if inside.any() else 0.0


def measure(volume: Distorted, ways: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the scores of corrections in `WAYS`, and a cut along Z of each result."""
    rows: dict[str, Any] = {}
    views, before = {"truth": view(volume.truth, volume.tissue)}, shrink_planes(volume.observed, 1)
    for name in ways:
        started = time.perf_counter()
        corrected, recipe, evidence = WAYS[name](volume)
        seconds = time.perf_counter() - started
        rows[name] = score(volume, corrected) | {"seconds": round(seconds, 2)}
        if recipe:
            pair = Pair(volume.sections, before, shrink_planes(corrected, 1), volume.tissue, None, recipe, evidence)
            numbers = pair_metrics(pair)
            rows[name] |= {part: numbers[part] for part in ("verdict", "applied", "facing", "change")}
            rows[name]["local_contrast"] = [numbers["contrast"][f"local_{which}"] for which in ("median", "worst")]
            rows[name]["numbers"] = [step.summary() for step in recipe if step.kind == "harmonization"]
        if name in PICTURED:
            views[name] = view(corrected, volume.tissue)
    return rows, views


def view(volume: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Return the middle row of every plane, as (Z, X), divided by the median of tissue."""
    return volume[:, volume.shape[1] // 2] / np.median(volume[tissue])


def picture(views: dict[str, np.ndarray], path: Path, title: str) -> None:
    """Draw a cut along Z of the truth and of every result, in one grey window."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(views), figsize=(2.1 * len(views), 2.4), layout="constrained")
    top = float(np.percentile(views["truth"][views["truth"] > 0], 99.5))
    for axis, (name, image) in zip(axes, views.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------- scale


def scale(planes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return seconds and memory of `auto` for stacks of sections of eight planes of 512 x 512 shrunken voxels."""
    import subprocess
    import sys

    found = []
    for count in planes:
        done = subprocess.run([sys.executable, "-c", SCALE, str(count)], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
        print(json.dumps(found[-1]), flush=True)
    return found


SCALE = """
import json, resource, sys, time
import numpy as np
from n4flow.corrections.harmonization.prepare import estimate_harmonization
from n4flow.sections import SectionTable
n = int(sys.argv[1])
rng = np.random.default_rng(0)
y, x = np.mgrid[-1:1:512j, -1:1:512j].astype(np.float32)
mean = np.empty((n, 512, 512), np.float32)
tissue = np.empty(mean.shape, bool)
for z in range(n):
    radius = 0.85 * np.sqrt(1 - (2 * z / n - 1) ** 2 * 0.8)
    r = np.hypot(y, x)
    tissue[z] = r < radius
    mean[z] = np.where(r < radius * (0.6 + 0.1 * np.sin(6 * np.arctan2(y, x) + z / 40)), 1.6, 1.0)
    mean[z] *= np.exp(0.3 * (z % 8 - 3.5) / 7 + 0.1 * np.sin(z // 8)) * rng.normal(1, 0.05, (512, 512))
valid = np.ones(mean.shape, np.float32)
small = [array[:16] for array in (mean, valid, tissue)]
estimate_harmonization(*small, SectionTable.equal(16, 2), mode="auto")  # kernels are loaded
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
estimate_harmonization(mean, valid, tissue, SectionTable.equal(n, n // 8), mode="auto")
print(json.dumps({"planes": n, "sections": n // 8, "seconds": round(time.perf_counter() - started, 1),
                  "shrunken_megabytes": round(mean.nbytes / 1e6),
                  "more_megabytes": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)}))
"""


# ------------------------------------------------------------------------------------------------------ grid of a fit

FIT_SEEDS = {"chosen on": (0, 1, 2), "kept apart": (11, 12, 13, 14)}


def fit_grid(sides: Sequence[int]) -> list[dict[str, Any]]:
    """Return by grid the rms error (log) of each section's bias field over tissue, and the CPU seconds of a fit.

    A grid has at most that many samples along a side; phantoms have sections of 8 planes of 1408 x 1548 voxels.
    """
    found = []
    for group, seed in ((group, seed) for group, seeds in FIT_SEEDS.items() for seed in seeds):
        block = Phantom(PhantomOptions(sections=4, planes=8, size=(1408, 1548), seed=seed)).planes(0, 32)
        shrink = choose_shrink(block.observed.shape)
        tissue = shrink_planes(block.tissue.astype(np.float32) + 1e-9, shrink).mean > 0.5
        truth = np.log(shrink_planes(block.bias.astype(np.float32), shrink).mean)
        source = TissueSource(tissue, np.zeros(tissue.shape[1:], bool), shrink)
        size = {"z": 50.0, "y": 25.0, "x": 25.0}
        inputs = Inputs(SectionTable.equal(32, 4), shrink_planes(block.observed, shrink), source, voxel_um=size)
        for side in sides:
            with unittest.mock.patch.object(grids, "FIT_SIDE", side):
                started = time.process_time()
                fields = n4_sections(inputs, SETTINGS)
                seconds = time.process_time() - started
            error = fields.shrunken_log_field(slice(0, 32), truth.shape[1:]) - truth
            errors = [float(error[part.planes][tissue[part.planes]].std()) for part in inputs.sections]
            found.append({"seeds": group, "seed": seed, "side": side, "errors": errors, "cpu_seconds": seconds / 4})
            print(json.dumps(found[-1]), flush=True)
    return found


# --------------------------------------------------------------------------------------------------------------- tables


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown: r / contrast over truth's / step at cuts for every correction."""
    lines = [f"| anatomy | case | {' | '.join(TABLED)} | oracle r |", "|---" * (len(TABLED) + 3) + "|"]
    for row in results["rows"]:
        cells = [
            f"{s['r']:.3f} / {s['contrast']:.3f} / {s['step']:.3f}"
            for s in (row["scores"][name] for name in TABLED if name in row["scores"])
        ]
        name = row["anatomy"] + ("" if row["tuned"] else " (kept apart)")
        case = row["case"] + (f", seed {row['seed']}" if row["anatomy"] in SEEDS else "")
        lines.append(f"| {name} | {case} | {' | '.join(cells)} | {row['scores']['oracle']['r']:.3f} |")
    if results.get("scale"):
        lines += ["", "| planes | sections | seconds | shrunken volume | memory on top |", "|---|---|---|---|---|"]
        for row in results["scale"]:
            sizes = f"{row['shrunken_megabytes']} MB | {row['more_megabytes']} MB"
            lines.append(f"| {row['planes']} | {row['sections']} | {row['seconds']} | {sizes} |")
    if fits := results.get("fit_grid"):
        lines += [
            "",
            "| samples a side | error, chosen on | error, kept apart | CPU seconds a section |",
            "|---" * 4 + "|",
        ]
        for side in dict.fromkeys(row["side"] for row in fits):
            rows = [row for row in fits if row["side"] == side]
            errors = [np.mean([row["errors"] for row in rows if row["seeds"] == group]) for group in FIT_SEEDS]
            seconds = np.median([row["cpu_seconds"] for row in rows])
            lines.append(f"| {side} | {errors[0]:.4f} | {errors[1]:.4f} | {seconds:.2f} |")
    return "\n".join(lines)


# The error of each score, as a function of the scores of a correction and of the oracle.
ERRORS: dict[str, Callable[[dict[str, float], dict[str, float]], float]] = {
    "r": lambda score, _best: -score["r"],
    "contrast": lambda score, _best: abs(score["contrast"] - 1),
    "within": lambda score, best: abs(score["within"] - best["within"]),
    "step": lambda score, _best: score["step"],
    "band": lambda score, _best: score["band"],
}
ROUNDING = 5e-4  # rounding error of a table with three decimals


def poorer(results: dict[str, Any]) -> str:
    """Return as Markdown the rows in which `safe` ends farther from truth than the distorted volume, in any score."""
    lines = ["| anatomy | case | score | nothing | safe | oracle of safe |", "|---" * 6 + "|"]
    for row in results["rows"]:
        scores = row["scores"]
        for name, error in ERRORS.items():
            nothing, safe = (error(scores[way], scores["oracle"]) for way in ("nothing", "safe"))
            if safe > nothing + ROUNDING:
                cells = " | ".join(f"{scores[way][name]:.3f}" for way in ("nothing", "safe", "oracle of safe"))
                lines.append(f"| {row['anatomy']} | {row['case']} | {name} | {cells} |")
    return "\n".join(lines)


def verdicts(results: dict[str, Any]) -> str:
    """Return as Markdown how often the verdict is right, over all rows.

    A result is right with an r of at least the distorted volume's, and contrast within 5 % of truth or nearer to it.
    """
    lines = ["| correction | rows | right | of these, pass | wrong | of these, look |", "|---" * 6 + "|"]
    for way in WAYS:
        judged: dict[bool, list[str]] = {True: [], False: []}
        for row in results["rows"]:
            found, nothing = row["scores"].get(way, {}), row["scores"]["nothing"]
            if "verdict" in found:
                off, before = abs(found["contrast"] - 1), abs(nothing["contrast"] - 1)
                right = found["r"] > nothing["r"] - ROUNDING and off < max(0.05, before) + ROUNDING
                judged[right].append(found["verdict"]["status"])
        right, wrong = judged[True], judged[False]
        if right + wrong:
            counts = len(right) + len(wrong), len(right), right.count("pass"), len(wrong), wrong.count("look")
            lines.append(f"| {way} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


@contextmanager
def alone(lock: Path | None) -> Any:
    """Hold a lock file, so that benchmarks with the same lock file run one at a time."""
    if lock is None:
        yield
        return
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--resume", action="store_true", help="keep what is there, and measure the rest")
    parser.add_argument("--table", type=Path, help="print the Markdown of stored results, and stop")
    parser.add_argument("--only", nargs="+", help="anatomies")
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="corrections, for a quick look")
    parser.add_argument("--mouse", type=Path, help="a volume of a real brain; no pictures are made of it")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--scale", type=int, nargs="*", default=[], help="planes of stacks that are timed")
    parser.add_argument("--fit-sides", type=int, nargs="*", default=[], help="grids that bias fields are fitted on")
    parser.add_argument("--lock", type=Path, help="lock file that is held while a case is measured")
    arguments = parser.parse_args()
    if arguments.table:
        stored = json.loads(arguments.table.read_text())
        print(table(stored), poorer(stored), verdicts(stored), sep="\n\n")
        return
    warnings.simplefilter("ignore", N4flowWarning)  # sections without tissue
    results: dict[str, Any] = {"machine": machine(), "rows": []}
    if arguments.resume and arguments.out.exists():
        results = json.loads(arguments.out.read_text())
    stored = {(row["anatomy"], row["case"], row["seed"]): row for row in results["rows"]}
    for tuned, anatomies in ((False, KEPT), (True, TUNED)):
        for name, build in anatomies.items():
            if (arguments.only and name not in arguments.only) or (
                name.startswith("mouse") and arguments.mouse is None
            ):
                continue
            anatomy = build(arguments.mouse)
            cases = arguments.cases or MORE.get(name, EVERYWHERE)
            for case, seed in product(cases, SEEDS.get(name, (0 if tuned else 11,))):
                row = stored.get((name, case, seed))
                ways = [way for way in arguments.ways if row is None or way not in row["scores"]]
                if not ways:
                    continue
                with alone(arguments.lock):
                    scores, views = measure(distort(anatomy, CASES[case], seed), ways)
                if row is None:
                    row = {"anatomy": name, "case": case, "seed": seed, "tuned": tuned, "scores": {}}
                    results["rows"].append(row)
                row["scores"] |= scores
                print(table({"rows": [row]}).splitlines()[-1], flush=True)
                if (
                    arguments.pictures
                    and set(PICTURED) <= set(ways)
                    and not name.startswith("mouse")
                    and case in EVERYWHERE
                ):
                    arguments.pictures.mkdir(parents=True, exist_ok=True)
                    label = f"{name} {case}".replace(",", "").replace(" ", "_")
                    picture(views, arguments.pictures / f"quality_{label}.png", f"{name}: {case}")
                if arguments.out:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    with alone(arguments.lock):
        results["scale"] = scale(tuple(arguments.scale)) or results.get("scale", [])
        results["fit_grid"] = fit_grid(arguments.fit_sides) or results.get("fit_grid", [])
    results["peak_megabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
