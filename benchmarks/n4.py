"""Compare N4 of n4flow, SimpleITK and n4ax on the same volumes, with the same mask and parameters, in one run.

    python benchmarks/n4.py --out benchmarks/results/n4.json          # everything; SimpleITK takes minutes
    python benchmarks/n4.py --sizes half --skip n4ax                  # a quick look
    python benchmarks/n4.py --skip timed compared rest --brain BRAIN.tif --out benchmarks/results/n4_survey.json
    python benchmarks/n4.py --table benchmarks/results/n4.json        # the results as Markdown

n4flow does not require n4ax, which also runs on Python 3.11: `pip install "jax[cpu]"` and
`pip install --ignore-requires-python --no-deps n4ax`. Without it, its columns stay empty.

Times are medians of warm calls that end with the corrected image; ratios are ratios of medians. The difference of two
corrected images is the mean relative difference in the mask with the global scale removed, which N4 leaves free.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import n4flow

LEVELS, THRESHOLD = (50, 50, 50, 50), 1e-3
SIZES = {"half": 2, "full": 1}
SKIPPED = ("simpleitk", "n4ax", "timed", "compared", "survey", "rest")
MASKS = ("ellipsoid", "slab", "patches")
SUMMARY = ("median_percent", "percent_of_nine_in_ten", "largest_percent", "largest_voxel_percent")
SURVEY_SIZES = (200, 1000, 10_000, 30_000)  # numbers of voxels between which masks are summed up

Volume = tuple[np.ndarray, np.ndarray]  # image, mask


# ------------------------------------------------------------------------------------------------------------- volumes


def template(step: int) -> np.ndarray:
    """Return the MNI152 T1 template of the nilearn wheel, every `step`-th voxel of 1 mm."""
    import nibabel
    import nilearn

    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    stored = nibabel.load(Path(nilearn.__file__).parent / "datasets" / "data" / name)
    return np.ascontiguousarray(np.asarray(stored.dataobj).T[::step, ::step, ::step], np.float32)


def shaded(image: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return an image with a smooth synthetic field, and noise that takes its values off the 8-bit grid."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape], indexing="ij", sparse=True)
    log_field = 0.15 * x + 0.1 * y * z - 0.1 * z * z
    noise = 1 + 0.01 * np.random.default_rng(seed).standard_normal(image.shape)
    return (image * np.exp(log_field) * noise).astype(np.float32)


def timed_volumes(step: int) -> dict[str, Volume]:
    """Return the volumes that are timed: one with Otsu's mask and one with a synthetic field."""
    image = template(step)
    even = shaded(image)
    return {
        "template, Otsu mask": (image, n4flow.otsu_mask(image)),
        "template with a synthetic field": (even, even > 50),
    }


def compared_volumes() -> dict[str, Volume]:
    """Return smaller cases in which other implementations differ from ITK."""
    rng = np.random.default_rng(1)
    quarter, full = template(4), template(1)
    even = shaded(quarter)
    mask = even > 50
    corner = np.zeros(mask.shape, bool)
    corner[28:, 28:, 20:] = True
    first = even.copy()
    first[tuple(np.argwhere(mask)[0])] = 0.8 * even[mask].min()
    eight_bit = np.clip(np.round(even), 0, 255).astype(np.uint8)
    crop = np.maximum(even[10:35, 12:48, 10:40], 5)
    resampled = shaded(full)[: 40 * 4 : 4, 16:216, :]
    anisotropic = np.concatenate((resampled, resampled[..., : 300 - resampled.shape[2]][..., ::-1]), axis=2)
    slices = shaded(full)
    return {
        "2-D slice": (slices[90], slices[90] > 50),
        "2-D slice, Otsu mask": (full[90], n4flow.otsu_mask(full[90])),
        "anisotropic 40 x 200 x 300": (anisotropic, anisotropic > 50),
        "mask in one corner": (even, mask & corner),
        "holes in the mask": (even, mask & (rng.random(mask.shape) > 0.3)),
        "first masked voxel the minimum": (first, mask),
        "8-bit data": (eight_bit, eight_bit > 50),
        "no mask": (crop, np.ones(crop.shape, bool)),
        "upside down": (np.ascontiguousarray(quarter[::-1]), n4flow.otsu_mask(np.ascontiguousarray(quarter[::-1]))),
    }


# --------------------------------------------------------------------------------------------------------------- tools


def run_n4flow(image: np.ndarray, mask: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the call that is timed, and one that gives log field and iterations."""

    def describe() -> tuple[np.ndarray, list[int]]:
        bias = n4flow.fit_bias(image, mask, iters=LEVELS, conv_threshold=THRESHOLD, backend="cpu", threads=threads)
        return bias.log_field(), [level.iterations for level in bias.levels]

    options = {"iters": LEVELS, "conv_threshold": THRESHOLD, "backend": "cpu", "threads": threads}
    return lambda: n4flow.n4(image, mask, **options), describe


def run_simpleitk(image: np.ndarray, mask: np.ndarray, threads: int) -> tuple[np.ndarray, list[int], float]:
    """Return log field, iterations and seconds of SimpleITK's filter."""
    import SimpleITK as sitk

    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(list(LEVELS))
    correction.SetConvergenceThreshold(THRESHOLD)
    correction.SetNumberOfThreads(threads)
    counts = [0] * len(LEVELS)

    def iterated() -> None:
        counts[correction.GetCurrentLevel()] += 1

    correction.AddCommand(sitk.sitkIterationEvent, iterated)
    given = sitk.GetImageFromArray(image.astype(np.float32)), sitk.GetImageFromArray(mask.astype(np.uint8))
    started = time.perf_counter()
    correction.Execute(*given)
    seconds = time.perf_counter() - started
    return sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(given[0])), counts, seconds


def run_n4ax(image: np.ndarray, mask: np.ndarray) -> Callable[[], Any]:
    """Return the call of n4ax that is timed; it returns the corrected image and the log field."""
    import jax
    import n4ax

    device = jax.numpy.asarray(image), jax.numpy.asarray(mask, jax.numpy.float32)

    def call() -> tuple[np.ndarray, np.ndarray]:
        options = {"iters": LEVELS, "over_relax": 1.0, "conv_threshold": THRESHOLD, "return_bias": True}
        return tuple(np.asarray(result) for result in n4ax.n4(*device, **options))

    return call


def seconds_of(call: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of repeated calls after one call as a warm-up."""
    call()
    taken = []
    for _repeat in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def difference_percent(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Return the mean relative difference of two corrected images in percent: global scale removed, and kept."""
    d = (a.astype(np.float64) - b)[mask]
    return tuple(100 * float(np.abs(np.expm1(x)).mean()) for x in (d - d.mean(), d))


# --------------------------------------------------------------------------------------------------------- comparisons


def compare(name: str, volume: Volume, arguments: argparse.Namespace, *, timed: bool) -> dict[str, Any]:
    """Run the tools on one volume; return its row of the results."""
    image, mask = volume
    call, describe = run_n4flow(image, mask, arguments.threads)
    ours, iterations = describe()
    row: dict[str, Any] = {
        "volume": name,
        "shape": list(image.shape),
        "masked_voxels": int(mask.sum()),
        "n4flow": {"iterations": iterations},
    }
    if timed:
        row["n4flow"] |= summary(seconds_of(call, arguments.repeats))
    if "simpleitk" not in arguments.skip:
        reference, counts, taken = run_simpleitk(image, mask, arguments.threads)
        without, kept = difference_percent(ours, reference, mask)
        row["simpleitk"] = {"iterations": counts, "median_seconds": taken, "calls": 1}
        row["n4flow"] |= {"difference_percent": without, "difference_with_scale_percent": kept}
        if timed:
            row["n4flow"]["times_faster_than_simpleitk"] = taken / row["n4flow"]["median_seconds"]
    if timed and "n4ax" not in arguments.skip:
        theirs = run_n4ax(image, mask)
        row["n4ax"] = summary(seconds_of(theirs, max(2, arguments.repeats // 4)))
        row["n4flow"]["times_faster_than_n4ax"] = row["n4ax"]["median_seconds"] / row["n4flow"]["median_seconds"]
        if "simpleitk" in row:
            row["n4ax"]["difference_percent"] = difference_percent(theirs()[1], reference, mask)[0]
    print(json.dumps(row), flush=True)
    return row


def summary(taken: list[float]) -> dict[str, Any]:
    """Return median and best of some seconds."""
    return {"median_seconds": statistics.median(taken), "best_seconds": min(taken), "calls": len(taken)}


def anatomies(brain: Path | None) -> dict[str, np.ndarray]:
    """Return the images of the survey: template, phantom, and the brain in a TIFF where one is given."""
    from n4flow.phantom.options import PhantomOptions
    from n4flow.phantom.volume import PhantomVolume

    phantom = PhantomVolume(PhantomOptions())
    images = {"template": shaded(template(2)), "phantom": phantom.observed(0, phantom.shape[0]).astype(np.float32)}
    if brain:
        import tifffile

        images["brain"] = tifffile.imread(brain)[::2, ::2, ::2].astype(np.float32)
    return images


def random_mask(tissue: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return 200 to 30,000 voxels of the tissue around a random one: an ellipsoid, a slab or scattered patches."""
    from scipy.ndimage import gaussian_filter

    wanted = int(np.exp(rng.uniform(np.log(200), np.log(30_000))))
    voxels = np.argwhere(tissue)
    stretch = rng.uniform(0.5, 1.5, 3)
    if kind == "slab":
        stretch[rng.integers(3)] = 6
    distance = np.linalg.norm((voxels - voxels[rng.integers(len(voxels))]) * stretch, axis=1)
    chosen = voxels[np.argsort(distance)[: wanted if kind != "patches" else 3 * wanted]]
    if kind == "patches":
        smooth = gaussian_filter(rng.standard_normal(tissue.shape), 1.5)[tuple(chosen.T)]
        chosen = chosen[np.argsort(smooth)[:wanted]]
    mask = np.zeros(tissue.shape, bool)
    mask[tuple(chosen.T)] = True
    return mask


def survey(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how fields and iterations agree with SimpleITK on random masks, and SimpleITK with itself.

    SimpleITK runs a second time on the image moved by one unit in the last place of float32, up or down at random:
    what that changes is decided by rounding alone.
    """
    images = anatomies(arguments.brain)
    tissues = {name: n4flow.otsu_mask(image) for name, image in images.items()}
    rows = []
    for seed in range(arguments.survey):
        rng = np.random.default_rng(100 + seed)
        name, kind = list(images)[seed % len(images)], MASKS[seed // len(images) % len(MASKS)]
        mask = random_mask(tissues[name], kind, rng)
        margin = rng.integers(2, 9, (3, 2))
        box = tuple(
            slice(max(int(found.min() - before), 0), int(found.max() + after) + 1)
            for found, (before, after) in zip(mask.nonzero(), margin, strict=True)
        )
        image, mask = np.ascontiguousarray(images[name][box]), np.ascontiguousarray(mask[box])
        moved = np.nextafter(image, np.where(rng.random(image.shape) < 0.5, 0, np.inf).astype(np.float32))
        ours, counts = run_n4flow(image, mask, arguments.threads)[1]()
        reference, theirs, _seconds = run_simpleitk(image, mask, arguments.threads)
        again, again_counts, _seconds = run_simpleitk(moved, mask, arguments.threads)
        rows.append({"image": name, "mask": kind, "shape": list(image.shape), "masked_voxels": int(mask.sum())})
        rows[-1] |= {"simpleitk_iterations": theirs}
        rows[-1] |= {"n4flow": {"iterations": counts} | differences(ours, reference, mask)}
        rows[-1] |= {"simpleitk_moved": {"iterations": again_counts} | differences(again, reference, mask)}
        print(json.dumps(rows[-1]), flush=True)
    return {"masks": len(rows), "summary": summary_of(rows), "rows": rows}


def differences(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return mean, root mean square and largest relative difference in percent, with the global scale removed."""
    d = (a.astype(np.float64) - b)[mask]
    off = 100 * np.abs(np.expm1(d - d.mean()))
    return {
        "mean_percent": float(off.mean()),
        "rms_percent": float(np.sqrt((off**2).mean())),
        "largest_percent": float(off.max()),
    }


def summary_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the distribution of the mean differences of masks of similar size whose iterations are SimpleITK's."""
    lines = []
    for low, high in pairwise(SURVEY_SIZES):
        some = [row for row in rows if low <= row["masked_voxels"] < high]
        line: dict[str, Any] = {"voxels": [low, high], "masks": len(some)}
        for tool in ("n4flow", "simpleitk_moved"):
            equal = [row[tool] for row in some if row[tool]["iterations"] == row["simpleitk_iterations"]]
            line[tool] = {"equal_iterations": len(equal)}
            if equal:
                means = [row["mean_percent"] for row in equal]
                worst = max(row["largest_percent"] for row in equal)
                shares = (float(np.median(means)), float(np.quantile(means, 0.9)), max(means), worst)
                line[tool] |= dict(zip(SUMMARY, shares, strict=True))
        lines.append(line)
    return lines


def over_relaxed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return iterations of steps 1.8 times as large, and how far from plain N4 they end."""
    rows = []
    for name, (image, mask) in timed_volumes(2).items():
        plain, quick = (n4flow.fit_bias(image, mask, over_relax=a, threads=arguments.threads) for a in (1.0, 1.8))
        counts = [sum(level.iterations for level in bias.levels) for bias in (plain, quick)]
        difference = difference_percent(quick.log_field(), plain.log_field(), mask)[0]
        rows.append({"volume": name, "iterations": counts, "difference_percent": difference})
    return rows


def apply_against_copy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds to correct a large volume by a field, and those of a plain copy with the same threads."""
    n = arguments.apply_size
    image = np.random.default_rng(0).random((n, n, n), np.float32)
    out = np.empty_like(image)
    small = shaded(template(4))
    bias = n4flow.fit_bias(small, small > 50, iters=(5, 5, 5, 5))
    bias = type(bias)(bias.lattice, bias.grid_shape, image.shape, tuple(n / m for m in bias.grid_shape))

    def copy() -> None:
        cuts = [n * i // (4 * arguments.threads) for i in range(4 * arguments.threads + 1)]
        with ThreadPoolExecutor(arguments.threads) as pool:
            list(pool.map(lambda a, b: np.copyto(out[a:b], image[a:b]), cuts[:-1], cuts[1:]))

    calls = {
        "copy": copy,
        "in_place": lambda: bias.apply(out, out, threads=arguments.threads),
        "to_another_array": lambda: bias.apply(image, out, threads=arguments.threads),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _repeat in range(arguments.repeats):  # in turn, so that other load on the machine affects all of them
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    ratios = {
        f"{name}_over_copy": statistics.median(a / c for a, c in zip(taken[name], taken["copy"], strict=True))
        for name in calls
        if name != "copy"
    }
    return {"voxels": image.size} | {name: summary(seconds) for name, seconds in taken.items()} | ratios


def same_for_any_threads(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return whether 1, 2, 3 and 4 threads give the same bits."""
    del arguments
    image, mask = timed_volumes(2)["template, Otsu mask"]
    fields = [n4flow.fit_bias(image, mask, threads=threads) for threads in (1, 2, 3, 4)]
    return {"threads": [1, 2, 3, 4], "bit_equal": all(np.array_equal(fields[0].lattice, f.lattice) for f in fields)}


PEAK = """
import json, sys, numpy as np, n4flow
from pathlib import Path
image, mask = np.load(sys.argv[1]), np.load(sys.argv[2])
n4flow.n4(image[::8, ::8, ::8].copy(), mask[::8, ::8, ::8].copy(), iters=(1, 1), threads=2)  # kernels are loaded
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
def now():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = now()
bias = n4flow.fit_bias(image, mask, iters=(5, 5, 5, 5), conv_threshold=0, threads=2)
print(json.dumps({"masked_voxels": int(mask.sum()), "bytes_above_the_input": peak() - before,
                  "bytes_per_masked_voxel": (peak() - before) / int(mask.sum())}))
"""

FIRST = """
import json, time
started = time.perf_counter()
import sys, numpy as np, n4flow
image, mask = np.load(sys.argv[1]), np.load(sys.argv[2])
n4flow.n4(image, mask, threads=2)
print(json.dumps({"seconds": time.perf_counter() - started}))
"""


def in_new_processes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what needs a process of its own to be measured: memory, the first call, and compilation."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for size, step in SIZES.items():
            image, mask = timed_volumes(step)["template with a synthetic field"]
            paths[size] = [str(Path(folder) / f"{size}_{name}.npy") for name in ("image", "mask")]
            np.save(paths[size][0], image)
            np.save(paths[size][1], mask)

        def run(code: str, size: str, **environment: str) -> dict[str, Any]:
            command = [sys.executable, "-c", code, *paths[size]]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
            )
            return json.loads(done.stdout)

        firsts = [run(FIRST, "half")["seconds"] for _repeat in range(max(3, arguments.repeats // 2))]
        compiled = run(FIRST, "half", NUMBA_CACHE_DIR=str(Path(folder) / "cache"))
        return {
            "memory": run(PEAK, "full"),
            "first_call_cached": summary(firsts) | {"what": "python -c 'import n4flow; n4(half size)', in all"},
            "first_call_compiling": compiled,
        }


def machine() -> dict[str, Any]:
    """Return the machine and the versions, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
        name = f"{lines[0]}, {len(os.sched_getaffinity(0))} cores, {vectors}" if lines else name
    tools = ("n4flow", "numpy", "numba", "simpleitk", "jax", "n4ax")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": name,
        "memory_gib": round(memory),
        "system": f"{platform.system()} on {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            tool: version(tool)
            for tool in tools
            if tool != "n4ax" or importlib.util.find_spec("n4ax")
            if tool != "jax" or importlib.util.find_spec("jax")
        },
        "load_average_at_start": round(os.getloadavg()[0], 1),
    }


# --------------------------------------------------------------------------------------------------------------- tables


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| volume | voxels in mask | n4flow | SimpleITK | n4ax | faster than both | from SimpleITK | iterations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["timed"]:
        ours, itk, ax = row["n4flow"], row.get("simpleitk", {}), row.get("n4ax", {})
        theirs = f"{ax['median_seconds']:.2f} s" if ax else ""
        lines.append(
            f"| {row['size']}, {row['volume']} | {row['masked_voxels']} | {1000 * ours['median_seconds']:.1f} ms "
            f"| {itk.get('median_seconds', float('nan')):.1f} s | {theirs} "
            f"| {ours.get('times_faster_than_simpleitk', 0):.0f}x, {ours.get('times_faster_than_n4ax', 0):.1f}x "
            f"| {ours.get('difference_percent', float('nan')):.5f} % | {_counts(ours, itk)} |"
        )
    lines += ["", "| case | masked voxels | difference from SimpleITK | iterations |", "|---|---|---|---|"]
    for row in results["compared"]:
        lines.append(
            f"| {row['volume']} | {row['masked_voxels']} | {row['n4flow']['difference_percent']:.5f} % "
            f"| {_counts(row['n4flow'], row['simpleitk'])} |"
        )
    lines += [
        "",
        "| voxels in mask | from SimpleITK | masks | same counts | median | nine in ten | largest | largest voxel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in results.get("survey", {"summary": []})["summary"]:
        for tool, name in (("n4flow", "n4flow"), ("simpleitk_moved", "SimpleITK, input moved")):
            row = line[tool]
            shares = (row.get(key, float("nan")) for key in SUMMARY)
            cells = ["{} to {}".format(*line["voxels"]), name, line["masks"], row["equal_iterations"]]
            cells += [f"{share:.5f} %" for share in shares]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _counts(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    made = ", ".join(map(str, ours["iterations"]))
    same = ours["iterations"] == theirs.get("iterations", ours["iterations"])
    return made if same else f"{made} (SimpleITK {', '.join(map(str, theirs['iterations']))})"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--table", type=Path, help="print the Markdown of stored results, and stop")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--skip", nargs="+", choices=SKIPPED, default=[])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--survey", type=int, default=100, help="masks of the survey")
    parser.add_argument("--brain", type=Path, help="a TIFF volume for the survey, beside template and phantom")
    parser.add_argument("--apply-size", type=int, default=640, help="voxels along each axis of the volume corrected")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    if importlib.util.find_spec("n4ax") is None and "n4ax" not in arguments.skip:
        print("n4ax is not installed: left out", flush=True)
        arguments.skip = [*arguments.skip, "n4ax"]
    settings = {"iterations": list(LEVELS), "threshold": THRESHOLD, "threads": arguments.threads}
    results: dict[str, Any] = {"machine": machine(), "settings": settings, "timed": [], "compared": []}
    for size in arguments.sizes if "timed" not in arguments.skip else ():
        for name, volume in timed_volumes(SIZES[size]).items():
            results["timed"].append({"size": size} | compare(name, volume, arguments, timed=True))
    if not {"compared", "simpleitk"} & set(arguments.skip):
        for name, volume in compared_volumes().items():
            results["compared"].append(compare(name, volume, arguments, timed=False))
    if not {"survey", "simpleitk"} & set(arguments.skip):
        results["survey"] = survey(arguments)
        print(json.dumps(results["survey"]["summary"], indent=1), flush=True)
    if "rest" not in arguments.skip:
        for name, measure in (
            ("over_relax_1.8", over_relaxed),
            ("apply", apply_against_copy),
            ("threads", same_for_any_threads),
            ("process", in_new_processes),
        ):
            results[name] = measure(arguments)
            print(json.dumps({name: results[name]}), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
