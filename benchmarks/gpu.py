"""Run the tests of N4 on one NVIDIA GPU, then compare it with n4ax (JAX) and with n4flow's CPU engine, in one run.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json       # everything, in less than ten minutes
    python benchmarks/gpu.py --skip tests n4ax --sizes small         # a quick look

n4flow does not require n4ax: `pip install "jax[cuda12]"` and
`pip install --ignore-requires-python --no-deps n4ax`. Where it is not installed, the results say so.

Warm times are medians after a first call. *Device to device*, a call begins with image and mask on the device and ends
when the corrected image is there. *From the host*, it begins and ends with NumPy arrays; the lower limit beside it is
the time that the bus alone needs for the same bytes through page-locked memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import n4flow
from n4flow.compute.arrays import probe_gpu

ROOT = Path(__file__).resolve().parent.parent
ITERATIONS, THRESHOLD = (50, 50, 30, 20), 1e-3
SIZES = {  # shape, shrink
    "small": ((256, 176, 256), 1),
    "medium": ((400, 512, 512), 2),
    "large": ((256, 1024, 1024), 4),
}
TESTS = (
    "python/tests/n4_bias/test_gpu.py",
    "python/tests/compute/test_gpu.py",
    "python/tests/corrections/test_fused.py",
)
TEST_SECONDS = 180
REPEATS = 9
SWEEP_BYTES = 8  # moved per voxel and iteration: the index is read; the logarithm is read and the index is written


def phantom(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an ellipsoid of two tissues with fine structure, noise and a smooth field, float32, and its mask."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    mask = z * z + y * y + x * x < 0.9
    inner = np.sin(11 * x + 3 * z) + np.sin(13 * y) > 0.3
    image = np.where(inner, np.float32(150), np.float32(95))
    image *= np.exp(0.2 * x + 0.15 * y * z - 0.1 * z * z)
    image *= 1 + np.float32(0.03) * rng.standard_normal(shape, np.float32)
    return np.where(mask, image, np.float32(2)), mask


def seconds_of(call: Callable[[], Any], wait: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Return the seconds of the first call, and of repeated ones."""
    taken = []
    for _repeat in range(repeats + 1):
        wait()
        started = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - started)
    return {"first_seconds": taken[0], "median_seconds": statistics.median(taken[1:]), "best_seconds": min(taken[1:])}


def differences(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return the mean and largest difference of two corrected images in the mask, in percent, from their log fields."""
    d = (a.astype(np.float64) - b)[mask]
    free = np.abs(np.expm1(d - d.mean()))
    return {
        "mean_percent": 100 * float(free.mean()),
        "largest_percent": 100 * float(free.max()),
        "mean_with_scale_percent": 100 * float(np.abs(np.expm1(d)).mean()),
    }


def bandwidth() -> dict[str, float]:
    """Return the rates of a plain copy on the device and of copies over the bus, in GB/s."""
    import cupy
    import cupyx

    wait = cupy.cuda.Device().synchronize
    n = 1 << 28
    a, b = cupy.ones(n, cupy.float32), cupy.empty(n, cupy.float32)
    copy = seconds_of(lambda: cupy.copyto(b, a), wait, REPEATS)["best_seconds"]
    host = cupyx.empty_pinned(n, np.float32)
    there = seconds_of(lambda: a.set(host), wait, 3)["best_seconds"]
    back = seconds_of(lambda: a.get(out=host), wait, 3)["best_seconds"]
    return {
        "device_copy_gb_s": 8e-9 * n / copy,
        "host_to_device_gb_s": 4e-9 * n / there,
        "device_to_host_gb_s": 4e-9 * n / back,
    }


def run_tests() -> dict[str, Any]:
    """Run the tests that need a device; return pytest's last line and its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *TESTS]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return {"code": None, "summary": f"not done after {TEST_SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    return {"code": done.returncode, "summary": lines[-1] if lines else done.stderr.strip()[-300:]}


def measure(name: str, arguments: argparse.Namespace, rates: dict[str, float]) -> dict[str, Any]:
    """Return the measurements of one size."""
    import cupy

    shape, shrink = SIZES[name]
    image, mask = phantom(shape)
    options: dict[str, Any] = {"iters": ITERATIONS, "conv_threshold": THRESHOLD, "shrink": shrink}
    wait, pool = cupy.cuda.Device().synchronize, cupy.get_default_memory_pool()
    there = cupy.asarray(image), cupy.asarray(mask)
    pool.free_all_blocks()
    before = pool.total_bytes()
    device = seconds_of(lambda: n4flow.n4(*there, backend="gpu", **options), wait, REPEATS)
    device["peak_bytes_beside_the_input"] = pool.total_bytes() - before
    fits = [n4flow.fit_bias(*there, backend="gpu", **options) for _repeat in range(2)]
    fit_seconds = seconds_of(lambda: n4flow.fit_bias(*there, backend="gpu", **options), wait, REPEATS)
    counts = [level.iterations for level in fits[0].levels]
    masked = fits[0].voxels.masked
    effective = 1e-9 * SWEEP_BYTES * masked * sum(counts) / fit_seconds["median_seconds"]
    row: dict[str, Any] = {
        "size": name,
        "shape": list(shape),
        "shrink": shrink,
        "fitted_voxels": masked,
        "iterations": counts,
        "two_runs_equal": bool(np.array_equal(fits[0].lattice, fits[1].lattice) and fits[0].levels == fits[1].levels),
        "gpu_device_to_device": device,
        "gpu_fit": fit_seconds
        | {"effective_gb_s": effective, "share_of_device_copy": effective / rates["device_copy_gb_s"]},
    }
    host = seconds_of(lambda: n4flow.n4(image, mask, backend="gpu", **options), wait, 3)
    floor = 1e-9 * image.nbytes * (1 / rates["host_to_device_gb_s"] + 1 / rates["device_to_host_gb_s"])
    row["gpu_from_host"] = host | {"bus_floor_seconds": floor}
    if "cpu" not in arguments.skip:
        cpu = n4flow.fit_bias(image, mask, backend="cpu", **options)
        row["cpu"] = seconds_of(lambda: n4flow.n4(image, mask, backend="cpu", **options), wait, 2)
        row["cpu"] |= {"iterations": [level.iterations for level in cpu.levels]}
        row["difference_from_cpu"] = differences(fits[0].log_field(), cpu.log_field(), mask)
        row["gpu_times_faster_than_cpu"] = row["cpu"]["median_seconds"] / device["median_seconds"]
    if "n4ax" not in arguments.skip and name != "large":
        row["n4ax"] = run_n4ax(image, mask, shrink)
        if "median_seconds" in row["n4ax"]:
            row["gpu_times_faster_than_n4ax"] = row["n4ax"]["median_seconds"] / device["median_seconds"]
    print(json.dumps(row), flush=True)
    return row


def run_n4ax(image: np.ndarray, mask: np.ndarray, shrink: int) -> dict[str, Any]:
    """Return the seconds of n4ax on the same device with the same parameters; n4ax cannot shrink."""
    if importlib.util.find_spec("n4ax") is None or importlib.util.find_spec("jax") is None:
        return {"skipped": "n4ax is not installed"}
    import jax
    import n4ax

    if jax.default_backend() != "gpu":
        return {"skipped": f"this JAX computes on {jax.default_backend()}"}
    if shrink != 1:
        return {"skipped": "n4ax has no shrink"}
    there = jax.device_put(image), jax.device_put(mask.astype(np.float32))
    options = {"iters": ITERATIONS, "over_relax": 1.0, "conv_threshold": THRESHOLD}
    taken = seconds_of(lambda: jax.block_until_ready(n4ax.n4(*there, **options)), lambda: None, REPEATS)
    return taken | {"version": version("n4ax"), "jax": version("jax")}


def compare_with_simpleitk() -> dict[str, Any]:
    """Return how far GPU and CPU are from SimpleITK, which is slow: the image is half the small one along each axis."""
    import SimpleITK as sitk

    image, mask = phantom(tuple(n // 2 for n in SIZES["small"][0]))
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(list(ITERATIONS))
    correction.SetConvergenceThreshold(THRESHOLD)
    counts = [0] * len(ITERATIONS)

    def iterated() -> None:
        counts[correction.GetCurrentLevel()] += 1

    correction.AddCommand(sitk.sitkIterationEvent, iterated)
    given = sitk.GetImageFromArray(image), sitk.GetImageFromArray(mask.astype(np.uint8))
    started = time.perf_counter()
    correction.Execute(*given)
    row: dict[str, Any] = {"shape": list(image.shape), "simpleitk_seconds": time.perf_counter() - started}
    reference = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(given[0]))
    row["simpleitk_iterations"] = counts
    for backend in ("gpu", "cpu"):
        bias = n4flow.fit_bias(image, mask, iters=ITERATIONS, conv_threshold=THRESHOLD, backend=backend)
        row[backend] = {"iterations": [level.iterations for level in bias.levels]}
        row[backend] |= differences(bias.log_field(), reference, mask)
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Measure, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--skip", nargs="+", choices=["tests", "n4ax", "cpu", "simpleitk"], default=[])
    arguments = parser.parse_args()
    started = time.perf_counter()
    # n4ax shares the device, so JAX must not reserve most of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    info = probe_gpu()
    import cupy

    results: dict[str, Any] = {
        "gpu": info.name,
        "driver_cuda": info.driver,
        "cupy": cupy.__version__,
        "n4flow": version("n4flow"),
        "processors": len(os.sched_getaffinity(0)),
        "settings": {"iterations": ITERATIONS, "threshold": THRESHOLD},
    }
    if "tests" not in arguments.skip:
        results["tests"] = run_tests()
        print(json.dumps(results["tests"]), flush=True)
    results["rates"] = bandwidth()
    cupy.get_default_memory_pool().free_all_blocks()
    results["sizes"] = [measure(name, arguments, results["rates"]) for name in arguments.sizes]
    if "simpleitk" not in arguments.skip:
        results["simpleitk"] = compare_with_simpleitk()
    results["seconds"] = time.perf_counter() - started
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"{arguments.out}: {results['seconds']:.0f} s")


if __name__ == "__main__":
    main()
