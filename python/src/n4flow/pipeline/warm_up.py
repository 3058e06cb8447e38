"""Compile every kernel once, by using it: for a container image, or after an install."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import N4flowWarning
from n4flow.n4_bias.api import n4
from n4flow.phantom.options import PhantomOptions
from n4flow.phantom.store import Phantom
from n4flow.pipeline.run import run

DTYPES = ("uint8", "uint16", "float32")  # what stores hold; each is a compilation of its own


def warm_up() -> dict[str, Any]:
    """Run the chain and N4 on tiny volumes of every common data type, so that numba's cache holds every kernel.

    Returns
    -------
    dict
        `compiled_seconds` by data type.
    """
    seconds = {}
    logging.getLogger("n4flow").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", N4flowWarning)
        for dtype in DTYPES:
            started = time.perf_counter()
            # wide enough for a deeper level and for chunks at an edge
            phantom = Phantom(PhantomOptions(sections=2, planes=4, size=(48, 300), dtype=dtype))
            image = Path(folder) / f"{dtype}.ome.zarr"
            phantom.write(image)
            chain: dict[str, Any] = {
                "iterations": "2,2",
                "backend": "cpu",
                "sections": 2,
                "shrink": 2,
                "dtype": "input",
            }
            run(image, Path(folder) / dtype, bias="two_pass", **chain)
            run(image, Path(folder) / f"{dtype}_harmonized", harmonize="auto", **chain)
            plane = phantom.observed(0, 1)[0].astype(np.float32)
            n4(plane, plane > 0, iters=(2, 2), backend="cpu")
            if dtype == DTYPES[-1]:  # from here on every type is float32
                run(image, Path(folder) / "background", background_radius_um=500, **chain)
            seconds[dtype] = round(time.perf_counter() - started, 1)
    return {"compiled_seconds": seconds}
