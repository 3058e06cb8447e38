"""Do corrections repair, and do they leave alone what needs nothing? Volumes with known truth, distorted, scored.

    python benchmarks/quality.py --out benchmarks/results/quality.json --pictures docs/images   # half an hour
    python benchmarks/quality.py --only "phantom 7" --cases plain "nothing wrong"               # a quick look
    python benchmarks/quality.py --mouse mouse_brain.tif                                        # and a real brain
    python benchmarks/quality.py --table benchmarks/results/quality.json                        # as Markdown

Anatomies: n4flow's phantom (its truth, undistorted), the MNI152 T1 template of the nilearn wheel (head, brain alone,
and brain with contrast inverted), and a volume given by --mouse. Settings of the method were chosen on the anatomies of
`TUNED` with seed 0; those of `KEPT` have seed 11 and were not used for that.

Each is distorted as a serial-section microscope does: shading that all planes share, shading and gain of each section,
attenuation with depth, jitter of planes, slow drift along Z, speckle, mosaic padding. docs/quality.md has the scores.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import resource
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from n4 import machine  # of the benchmark beside this one
from scipy import ndimage

import n4flow
from n4flow.chain import BiasSettings, fit_sections
from n4flow.correction import Where
from n4flow.errors import N4flowWarning
from n4flow.passes import TissueSource
from n4flow.phantom import Phantom
from n4flow.phantom_options import PhantomOptions
from n4flow.sections import Section, SectionTable
from n4flow.statistics import shrink_planes

Anatomy = tuple[np.ndarray, np.ndarray]  # truth, tissue


# ----------------------------------------------------------------------------------------------------------- anatomies


def phantom(seed: int, oblique: float = 0) -> Anatomy:
    """Return the truth of n4flow's phantom, 192 planes of 200 x 250 voxels."""
    options = PhantomOptions(
        sections=24,
        planes=8,
        size=(200, 250),
        voxel_um=(50, 40, 40),
        seed=seed,
        oblique=oblique,
        speckle=0,
        padding=False,
    )
    block = Phantom(options).planes(0, 192)
    return block.truth.copy(), block.tissue.copy()


def template(kind: str, axis: int) -> Anatomy:
    """Return the MNI152 template cut across an axis: 'head', 'brain' alone, or brain 'inverted'."""
    import nibabel
    import nilearn

    folder = Path(nilearn.__file__).parent / "datasets" / "data"

    def stored(name: str) -> np.ndarray:
        image = nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        return np.asarray(image.dataobj, np.float32)

    truth = stored("t1")
    if kind == "head":
        tissue = ndimage.binary_opening(truth > 50)
    else:
        grey, white = stored("gm"), stored("wm")
        tissue = ndimage.binary_opening(grey / grey.max() + white / white.max() > 0.5)
    if kind == "inverted":
        truth = 260 - truth
    truth = np.where(tissue, np.maximum(truth, 20), 8).astype(np.float32)
    return tuple(np.ascontiguousarray(np.moveaxis(array, axis, 0)) for array in (truth, tissue))


def mouse(path: Path, axis: int) -> Anatomy:
    """Return a real brain, smoothed by 1.5 voxels so that its own stripes are gone; its largest object is tissue."""
    from skimage.filters import threshold_otsu

    volume = n4flow.open_volume(path, require_voxel_um=False)
    raw = volume.read(slice(0, volume.shape[0])).astype(np.float32)
    truth, smooth = ndimage.gaussian_filter(raw, 1.5), ndimage.gaussian_filter(raw, 2)
    tissue = ndimage.binary_opening(smooth > np.exp(threshold_otsu(np.log(np.maximum(smooth, 1)))), iterations=2)
    labels, _count = ndimage.label(tissue)
    tissue = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    tissue &= (truth > 30) & (truth < 600)
    ends = slice(15, raw.shape[0] - 15)
    truth = np.clip(truth, 1, 600)[ends]
    return tuple(np.ascontiguousarray(np.moveaxis(array, axis, 0)) for array in (truth, tissue[ends]))


TUNED = {
    "head": lambda _mouse: template("head", 1),
    "brain": lambda _mouse: template("brain", 1),
    "inverted": lambda _mouse: template("inverted", 1),
    "phantom 1": lambda _mouse: phantom(1),
    "mouse": lambda path: mouse(path, 0),
}
KEPT = {
    "brain, axial": lambda _mouse: template("brain", 2),
    "head, sagittal": lambda _mouse: template("head", 0),
    "inverted, axial": lambda _mouse: template("inverted", 2),
    "phantom 7": lambda _mouse: phantom(7),
    "phantom 3, tilted": lambda _mouse: phantom(3, 12),
    "mouse, horizontal": lambda path: mouse(path, 1),
}


# ---------------------------------------------------------------------------------------------------------- distortions


@dataclass(frozen=True)
class Distortion:
    """Sizes: standard deviations of the log; attenuation from end to end of a section; speckle of the intensity."""

    shared: float = 0.2
    section: float = 0.08
    attenuation: float = 0.5
    gain: float = 0.12
    slow: float = 0.08
    jitter: float = 0.03
    speckle: float = 0.04
    planes: int = 8
    oblique: float = 0


PLAIN = Distortion()
CASES = {
    "plain": PLAIN,
    "strong": Distortion(shared=0.3, section=0.13, attenuation=0.7, gain=0.2, slow=0.13, jitter=0.05),
    "mild": Distortion(shared=0.06, section=0.03, attenuation=0.15, gain=0.04, slow=0.02, jitter=0.01),
    "oblique cuts": replace(PLAIN, oblique=12),
    "long sections": replace(PLAIN, planes=40),
    "noisy": replace(PLAIN, speckle=0.15),
    "shared shading alone": Distortion(section=0, attenuation=0, gain=0, slow=0, jitter=0),
    "nothing wrong": Distortion(shared=0, section=0, attenuation=0, gain=0, slow=0, jitter=0),
}
EVERYWHERE = ("plain", "nothing wrong")
HARDER = ("plain", "strong", "noisy", "nothing wrong")
MORE = {"head": tuple(CASES), "brain, axial": HARDER, "phantom 7": HARDER}


@dataclass(frozen=True)
class Distorted:
    """A volume with truth: `observed` = `truth` exp(`log_field`) speckle, 0 in the padding; `shared` is part of it."""

    truth: np.ndarray
    tissue: np.ndarray
    observed: np.ndarray
    log_field: np.ndarray
    shared: np.ndarray
    sections: SectionTable


def smooth_fields(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Return (count, Y, X) products of cosines of order 0 to 2, of mean 0 and standard deviation 1."""
    orders = np.arange(3)
    rows = np.cos(np.pi * orders[:, None] * (np.arange(height) + 0.5) / height)
    columns = np.cos(np.pi * orders[:, None] * (np.arange(width) + 0.5) / width)
    order = np.add.outer(orders, orders)
    weights = np.where((order > 0) & (order <= 3), 1 / np.maximum(order, 1), 0)
    fields = np.einsum("nab,ay,bx->nyx", rng.standard_normal((count, 3, 3)) * weights, rows, columns)
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def distort(anatomy: Anatomy, how: Distortion, seed: int) -> Distorted:
    """Cut an anatomy into sections and image it."""
    rng = np.random.default_rng(seed)
    truth, tissue = anatomy
    if how.oblique:
        outside = float(truth[~tissue].min())
        turn = {"angle": how.oblique, "axes": (0, 2), "reshape": False, "order": 1}
        truth = ndimage.rotate(truth, cval=outside, **turn)
        tissue = ndimage.rotate(tissue.astype(np.float32), **turn) > 0.5
    n_z, n_y, n_x = truth.shape
    n_s = max(1, round(n_z / how.planes))
    edges = np.round(np.linspace(0, n_z, n_s + 1)).astype(int)
    cuts = itertools.pairwise(int(edge) for edge in edges)
    sections = SectionTable([Section(f"s{i:03d}", a, b) for i, (a, b) in enumerate(cuts)], n_z)
    owner = sections.section_of_plane
    depth = (np.arange(n_z) - edges[owner]) / max(np.diff(edges).max() - 1, 1) - 0.5

    def standard(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / max(values.std(), 1e-9)

    shared, tilt = smooth_fields(rng, 2, n_y, n_x)
    own = how.section * smooth_fields(rng, n_s, n_y, n_x)
    gain = how.gain * standard(rng.standard_normal(n_s))
    place = (np.arange(n_z) + 0.5) / n_z
    waves = (rng.standard_normal() / k * np.cos(np.pi * k * place + rng.uniform(0, 6)) for k in range(1, 5))
    plane = gain[owner] + how.slow * standard(sum(waves)) + how.jitter * rng.standard_normal(n_z)
    log_field = own[owner]
    log_field += how.shared * shared + plane.astype(np.float32)[:, None, None]
    log_field -= (how.attenuation * depth).astype(np.float32)[:, None, None] * (1 + 0.2 * tilt)
    observed = truth * np.exp(log_field)
    shape = 1 / how.speckle**2
    observed *= rng.standard_gamma(shape, observed.shape, np.float32) / np.float32(shape)
    outside = np.zeros(truth.shape, bool)
    for section in sections:  # the mosaic ends elsewhere in every section
        top, bottom, left, right = rng.integers(0, max(2, int(0.05 * n_y)), 4)
        part = outside[section.planes]
        part[:, :top], part[:, n_y - bottom :], part[:, :, :left], part[:, :, n_x - right :] = True, True, True, True
    observed[outside] = 0
    return Distorted(truth, tissue & ~outside, observed, log_field, how.shared * shared, sections)


# ---------------------------------------------------------------------------------------------------------- corrections


def classic(volume: Distorted) -> np.ndarray:
    """Return what the usual chain makes of it: N4 of each section, histogram matching, smoothing along Z."""
    shrunken = shrink_planes(volume.observed, 1)
    tissue = TissueSource(volume.tissue, np.zeros(volume.truth.shape[1:], bool), 1)
    everything = (0, len(volume.sections))
    settings = BiasSettings(None, (50, 50, 50, 50), 1e-3, "cpu", None)
    voxel_um = dict.fromkeys("zyx", 1000.0)
    bias = fit_sections(shrunken, tissue, volume.sections, everything, voxel_um, settings)
    even = bias.apply(volume.observed.copy(), Where(0, 0, 0, volume.truth.shape))
    matched = n4flow.apply_histogram_matching(even, volume.sections, 256, mask=volume.tissue)
    return n4flow.apply_zprofile_smoothing(matched, volume.tissue, 2.0, sections=volume.sections)


def harmonized(mode: str) -> Callable[[Distorted], Any]:
    """Return the correction of a mode."""
    return lambda volume: n4flow.harmonize(volume.observed, volume.tissue, volume.sections, mode=mode)


WAYS: dict[str, Callable[[Distorted], Any]] = {
    "nothing": lambda volume: volume.observed,
    "classic": classic,
    "safe": harmonized("safe"),
    "auto": harmonized("auto"),
    "full": harmonized("full"),
    "oracle": lambda volume: volume.observed / np.exp(volume.log_field),
    "oracle of safe": lambda volume: volume.observed / np.exp(volume.log_field - volume.shared),
}
TABLED = ("nothing", "classic", "safe", "oracle of safe", "auto", "full")


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
    }


def measure(volume: Distorted) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the scores of every way, and a plane and a cut along Z of each."""
    rows: dict[str, Any] = {}
    views = {"truth": view(volume.truth, volume.tissue)}
    for name, way in WAYS.items():
        started = time.perf_counter()
        made = way(volume)
        seconds = time.perf_counter() - started
        corrected, fields = made if isinstance(made, tuple) else (made, None)
        rows[name] = score(volume, corrected) | {"seconds": round(seconds, 2)}
        if fields is not None:
            rows[name]["numbers"] = fields.summary()
        if name != "oracle of safe":
            views[name] = view(corrected, volume.tissue)
    return rows, views


def view(volume: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Return the middle row of every plane, as (Z, X), over the median of tissue."""
    return volume[:, volume.shape[1] // 2] / np.median(volume[tissue])


def picture(views: dict[str, np.ndarray], path: Path, title: str) -> None:
    """Draw a cut along Z of truth and of every way, in one grey window."""
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
from n4flow.harmonization import estimate_harmonization
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


# --------------------------------------------------------------------------------------------------------------- tables


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown: r / contrast over truth's / step at cuts for every way."""
    lines = [f"| anatomy | case | {' | '.join(TABLED)} | oracle r |", "|---" * (len(TABLED) + 3) + "|"]
    for row in results["rows"]:
        cells = [
            f"{s['r']:.3f} / {s['contrast']:.3f} / {s['step']:.3f}" for s in (row["scores"][name] for name in TABLED)
        ]
        name = row["anatomy"] + ("" if row["tuned"] else " (kept apart)")
        lines.append(f"| {name} | {row['case']} | {' | '.join(cells)} | {row['scores']['oracle']['r']:.3f} |")
    if results.get("scale"):
        lines += ["", "| planes | sections | seconds | shrunken volume | memory on top |", "|---|---|---|---|---|"]
        for row in results["scale"]:
            sizes = f"{row['shrunken_megabytes']} MB | {row['more_megabytes']} MB"
            lines.append(f"| {row['planes']} | {row['sections']} | {row['seconds']} | {sizes} |")
    return "\n".join(lines)


@contextmanager
def alone(lock: Path | None) -> Any:
    """Hold a lock file while the machine is shared with others that do the same."""
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
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, and measure the rest")
    parser.add_argument("--table", type=Path, help="print the Markdown of stored results, and stop")
    parser.add_argument("--only", nargs="+", help="anatomies")
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--mouse", type=Path, help="a real brain, of which no picture is made")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--scale", type=int, nargs="*", default=[], help="planes of stacks that are timed")
    parser.add_argument("--lock", type=Path, help="lock file that is held for one case at a time")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    warnings.simplefilter("ignore", N4flowWarning)  # sections without tissue
    results: dict[str, Any] = {"machine": machine(), "rows": []}
    if arguments.resume and arguments.out.exists():
        results = json.loads(arguments.out.read_text())
    done = {(row["anatomy"], row["case"]) for row in results["rows"]}
    for tuned, anatomies in ((False, KEPT), (True, TUNED)):
        for name, build in anatomies.items():
            if (arguments.only and name not in arguments.only) or (
                name.startswith("mouse") and arguments.mouse is None
            ):
                continue
            anatomy = build(arguments.mouse)
            for case in arguments.cases or MORE.get(name, EVERYWHERE):
                if (name, case) in done:
                    continue
                with alone(arguments.lock):
                    scores, views = measure(distort(anatomy, CASES[case], 0 if tuned else 11))
                results["rows"].append({"anatomy": name, "case": case, "tuned": tuned, "scores": scores})
                print(table({"rows": results["rows"][-1:]}).splitlines()[-1], flush=True)
                if arguments.pictures and not name.startswith("mouse") and case in EVERYWHERE:
                    label = f"{name} {case}".replace(",", "").replace(" ", "_")
                    picture(views, arguments.pictures / f"quality_{label}.png", f"{name}: {case}")
                if arguments.out:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    with alone(arguments.lock):
        results["scale"] = scale(tuple(arguments.scale))
    results["peak_megabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
