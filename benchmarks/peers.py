"""Compare bias fields with linumpy's two ways, on volumes with a known field; one table for docs/parity.md.

    python benchmarks/peers.py --linumpy FOLDER --mouse FILE --out benchmarks/results/peers.json
    python benchmarks/peers.py --table benchmarks/results/peers.json

FOLDER is a clone of github.com/linum-uqam/linumpy. Error is the coefficient of variation, over the tissue, of the
estimated field divided by the true one: 0 is perfect, and the first column is what doing nothing leaves. `cpu` and
`numpy` are linumpy's n4_correct (SimpleITK) and n4_correct_gpu without a GPU; `n4_correct` and `n4_correct_gpu` are
n4flow's functions of these names. All take the same call. Two passes are n4_correct_per_section and then the volume.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import quality_volumes as volumes
from n4 import machine  # benchmarks/n4.py, not a package

import n4flow

ANATOMIES = ("head", "brain", "phantom 1", "mouse")
PLANES = 48  # in six sections of eight
VOXEL_MM = (0.05, 0.05, 0.05)  # so that planes are about a centimetre wide
DISTANCES_MM = (2.0, 10.0)
SHRINK = 4


def examples(mouse: Path) -> dict[str, volumes.Distorted]:
    """Return the middle planes of each anatomy, distorted."""
    found = {}
    for name in ANATOMIES:
        truth, tissue = volumes.TUNED[name](mouse)
        middle = slice(len(truth) // 2 - PLANES // 2, len(truth) // 2 + PLANES // 2)
        found[name] = volumes.distort((truth[middle], tissue[middle]), volumes.PLAIN, seed=1)
    return found


def error(example: volumes.Distorted, field: np.ndarray) -> float:
    """Return the coefficient of variation of the estimated over the true field, within the tissue."""
    ratio = (field / np.exp(example.log_field))[example.tissue]
    return float(ratio.std() / ratio.mean())


def two_passes(one_pass: Any, sections: Any, example: volumes.Distorted, **options: Any) -> np.ndarray:
    """Return the field of each section and then of the volume."""
    parts = [one_pass(example.observed[s.planes], example.tissue[s.planes], **options) for s in sections]
    even, first = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return first * one_pass(even, example.tissue, **options)[1]


def measure(linumpy: Path, mouse: Path) -> list[dict[str, Any]]:
    """Return a row for each anatomy, distance and number of passes, with the error of each way."""
    sys.path.insert(0, str(linumpy))
    from linumpy.gpu.n4 import n4_correct_gpu
    from linumpy.intensity.bias_field import n4_correct

    ways: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
        "cpu": n4_correct,
        "numpy": partial(n4_correct_gpu, use_gpu=False),
        "n4_correct": n4flow.n4_correct,
        "n4_correct_gpu": partial(n4flow.n4_correct_gpu, use_gpu=False),
    }
    rows = []
    for name, example in examples(mouse).items():
        nothing = error(example, np.ones(example.observed.shape))
        for distance, passes in product(DISTANCES_MM, (1, 2)):
            options = {"spline_distance_mm": distance, "voxel_size_mm": VOXEL_MM, "shrink_factor": SHRINK}
            row: dict[str, Any] = {"anatomy": name, "distance_mm": distance, "passes": passes, "nothing": nothing}
            for way, function in ways.items():
                if passes == 1:
                    field = function(example.observed, example.tissue, **options)[1]
                else:
                    field = two_passes(function, example.sections, example, **options)
                row[way] = error(example, field)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


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
        print(table(json.loads(arguments.table.read_text(encoding="utf-8"))["rows"]))
        return
    results = {"machine": machine(), "rows": measure(arguments.linumpy, arguments.mouse)}
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results["rows"]))


if __name__ == "__main__":
    main()
