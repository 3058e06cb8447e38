"""After the first image nothing is compiled any more, whatever the next one is like."""

import importlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import n4flow

MODULES = (
    "n4_bias.cpu.convergence_kernels", "n4_bias.cpu.level_kernels", "n4_bias.cpu.packing_kernels",
    "n4_bias.cpu.sharpening_kernels", "n4_bias.cpu.sweep_kernels", "n4_bias.evaluate_kernels",
    "n4_bias.shrink_kernels", "compute.simd",
)  # fmt: skip


def signatures() -> dict[str, int]:
    """How many signatures each compiled function of the fit has."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"n4flow.{name}")
        for item, value in vars(module).items():
            if isinstance(value, Dispatcher):
                found[f"{value.py_func.__module__}.{item}"] = len(value.signatures)
    return found


def test_one_signature_serves_every_image():
    rng = np.random.default_rng(0)
    image, options = rng.uniform(1, 2, (8, 16, 16)).astype(np.float32), {"iters": (1, 1), "backend": "cpu"}
    mask, weights = np.ones(image.shape, bool), np.ones_like(image)
    n4flow.n4(image, mask, weights=weights, shrink=(1, 2, 2), conv_threshold=0, threads=1, **options)
    before = signatures()
    for dtype, shape, threads in itertools.product(
        ("uint8", ">u2", "float64", "float32"), ((6, 20, 24), (20, 24)), (1, 2)
    ):
        image = rng.uniform(50, 60, shape).astype(dtype)
        image.flags.writeable = False
        flipped = image[..., ::-1]
        for given in (image, flipped):
            mask = given > 51
            mask.flags.writeable = False
            options = {"iters": (1, 1), "threads": threads}
            n4flow.n4(given, mask, **options, convergence="cv")
            n4flow.n4(given, mask, **options, weights=rng.random(shape))
            bias = n4flow.fit_bias(given, mask, **options, shrink=2)
            bias.log_field()
            bias.apply(given)
            bias.field()
    assert signatures() == before
    assert "n4flow.n4_bias.cpu.sweep_kernels.field_strip" in before


def test_compiling_is_announced_once_timed_apart_and_cached(tmp_path):
    code = "import logging, time; logging.basicConfig(level=20, format='%(message)s')\n"
    # a kernel of the evaluation alone: seconds, where all of them take half a minute
    code += "import numpy as np; from n4flow.compute import clock; from n4flow.n4_bias.evaluate import Evaluator\n"
    code += "import n4flow.compute.jit; passed, told = time.perf_counter(), clock.now()\n"
    code += "Evaluator(np.zeros((4, 4, 4)), [np.zeros(2)] * 3).log_field(np.empty((2, 2, 2), 'f4'))\n"
    code += "print(time.perf_counter() - passed, clock.now() - told, clock.compiling())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _time in range(2)
    ]
    first = said[0].stderr.splitlines()
    assert first[0] == "compiling kernels for this processor; this happens once and takes up to some minutes"
    assert all(line.startswith("compiling kernels: ") for line in first[1:])
    assert said[1].stderr == ""
    passed, told, compiling = map(float, said[0].stdout.split())
    assert passed == pytest.approx(told + compiling, abs=0.05)
    assert told < 0.5 * passed
    assert float(said[1].stdout.split()[2]) == 0
