"""Compare n4flow with linumpy on volumes whose truth is known: bias fields, and the whole correction of a stack.

    python benchmarks/peers.py --linumpy FOLDER --mouse FILE --out benchmarks/results/peers.json
    python benchmarks/peers.py --table benchmarks/results/peers.json

FOLDER is a clone of github.com/linum-uqam/linumpy. The error of a field is the coefficient of variation, over the
tissue, of the estimated field divided by the true one: 0 is perfect, and `nothing` is what doing nothing leaves. `cpu`
and `numpy` are linumpy's n4_correct (SimpleITK) and n4_correct_gpu without a GPU; `n4_correct` and `n4_correct_gpu` are
n4flow's functions of these names. All take the same call. Two passes are n4_correct_per_section and then the volume.
The settings of n4flow were chosen on the first three anatomies.

The whole correction is that of linumpy's `linum_correct_bias_field`, and of `n4flow.run` with the same settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import quality_volumes as volumes
from n4 import machine  # benchmarks/n4.py, not a package
from quality import score  # benchmarks/quality.py

import n4flow
from n4flow.errors import N4flowWarning

ANATOMIES = ("head", "brain", "phantom 1", "inverted, axial", "phantom 7", "mouse")
STACKS = ("brain, axial", "phantom 7")
# What N4 is for: smooth shading along the stack or, with two passes, shading and attenuation of each section, too.
DISTORTIONS = {
    1: replace(volumes.PLAIN, section=0, attenuation=0, gain=0, jitter=0),
    2: replace(volumes.PLAIN, gain=0, jitter=0),
}
PLANES = 48  # in six sections of eight
VOXEL_MM = (0.05, 0.05, 0.05)  # so that planes are about a centimetre wide
DISTANCES_MM = (2.0, 10.0)
SHRINK = 4


def example(name: str, mouse: Path, how: volumes.Distortion) -> volumes.Distorted:
    """Return the middle planes of an anatomy, distorted."""
    truth, tissue = (volumes.TUNED | volumes.KEPT)[name](mouse)
    middle = slice(len(truth) // 2 - PLANES // 2, len(truth) // 2 + PLANES // 2)
    return volumes.distort((truth[middle], tissue[middle]), how, seed=1)


def error(volume: volumes.Distorted, field: np.ndarray) -> float:
    """Return the coefficient of variation of the estimated over the true field, within the tissue."""
    ratio = (field / np.exp(volume.log_field))[volume.tissue]
    return float(ratio.std() / ratio.mean())


def two_passes(one_pass: Any, volume: volumes.Distorted, **options: Any) -> np.ndarray:
    """Return the field of each section and then of the volume."""
    parts = [one_pass(volume.observed[s.planes], volume.tissue[s.planes], **options) for s in volume.sections]
    even, first = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return first * one_pass(even, volume.tissue, **options)[1]


def fields(mouse: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each anatomy, distance and number of passes, with the error of each way."""
    from linumpy.gpu.n4 import n4_correct_gpu
    from linumpy.intensity.bias_field import n4_correct

    ways: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
        "cpu": n4_correct,
        "numpy": partial(n4_correct_gpu, use_gpu=False),
        "n4_correct": n4flow.n4_correct,
        "n4_correct_gpu": partial(n4flow.n4_correct_gpu, use_gpu=False),
    }
    for name, passes, distance in product(ANATOMIES, DISTORTIONS, DISTANCES_MM):
        volume = example(name, mouse, DISTORTIONS[passes])
        options = {"spline_distance_mm": distance, "voxel_size_mm": VOXEL_MM, "shrink_factor": SHRINK}
        row: dict[str, Any] = {"anatomy": name, "passes": passes, "mm": distance}
        row["nothing"] = error(volume, np.ones(volume.observed.shape))
        for way, function in ways.items():
            if passes == 1:
                row[way] = error(volume, function(volume.observed, volume.tissue, **options)[1])
            else:
                row[way] = error(volume, two_passes(function, volume, **options))
        yield row


def linumpys(volume: volumes.Distorted) -> np.ndarray:
    """Return what `linum_correct_bias_field` makes of a volume, with matching of planes and smoothing of 2 planes."""
    from linumpy.intensity import bias_field, normalization

    count, options = len(volume.sections), {"voxel_size_mm": VOXEL_MM, "shrink_factor": SHRINK}
    even, _levels = normalization.normalize_volume(volume.observed, normalization.get_agarose_mask(volume.observed)[0])
    mask = bias_field.compute_tissue_mask(even, n_serial_slices=count)
    even = normalization.apply_histogram_matching(even, None, 512, 0.005)
    even = normalization.apply_zprofile_smoothing(even, mask, 2)
    even, _field = bias_field.n4_correct_per_section(even, count, mask, spline_distance_mm=2, **options)
    even, _field = bias_field.n4_correct(even, mask, spline_distance_mm=10, **options)
    return np.where(mask, even, 0)


def ours(volume: volumes.Distorted, **settings: Any) -> np.ndarray:
    """Return what `n4flow.run` makes of a volume with linumpy's settings, and others."""
    from n4flow.io.writers import write_volume

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "stack.ome.zarr"
        write_volume(store, volume.observed, voxel_um=tuple(1000 * mm for mm in VOXEL_MM))
        done = n4flow.run(store, Path(folder) / "results", sections=len(volume.sections), **LIKE_LINUMPY | settings)
        return n4flow.open_volume(done.samples[0].store).read(slice(None))


LIKE_LINUMPY: dict[str, Any] = {
    "bias": "two_pass",
    "spline_section_um": 2000,
    "spline_volume_um": 10000,
    "shrink": SHRINK,
    "backend": "cpu",
    "match": "plane",
    "n_bins": 512,
    "tissue_threshold": 0.005,
    "smooth_z": 2,
    "outside": "zero",
}


def stacks(mouse: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each anatomy and way, with the scores of the corrected stack."""
    ways: dict[str, Callable[[volumes.Distorted], np.ndarray]] = {
        "nothing": lambda volume: volume.observed,
        "linumpy": linumpys,
        "n4flow, its settings, trust full": partial(ours, trust="full"),
        "n4flow, its settings": ours,
        "n4flow, defaults": partial(ours, **dict.fromkeys(LIKE_LINUMPY) | {"backend": "cpu"}),
    }
    for name in STACKS:
        volume = example(name, mouse, volumes.PLAIN)
        for way, function in ways.items():
            found = score(volume, function(volume))
            yield {"anatomy": name, "way": way, **{part: found[part] for part in ("r", "contrast", "step")}}


def told(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows, each printed when it is there."""
    found = []
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = (
            f"{value:.3f}" if isinstance(value, float) and name != "distance_mm" else f"{value}"
            for name, value in row.items()
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments; measure, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linumpy", type=Path, help="folder of linumpy's repository")
    parser.add_argument("--mouse", type=Path, help="a real brain, a TIFF")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--table", type=Path, help="print the Markdown table of a file of results, and stop")
    arguments = parser.parse_args()
    if arguments.table:
        stored = json.loads(arguments.table.read_text(encoding="utf-8"))
        print(table(stored["fields"]), table(stored["stacks"]), sep="\n\n")
        return
    warnings.simplefilter("ignore", N4flowWarning)
    sys.path.insert(0, str(arguments.linumpy))
    results: dict[str, Any] = {"machine": machine(), "fields": told(fields(arguments.mouse))}
    results["stacks"] = told(stacks(arguments.mouse))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results["fields"]), table(results["stacks"]), sep="\n\n")


if __name__ == "__main__":
    main()
