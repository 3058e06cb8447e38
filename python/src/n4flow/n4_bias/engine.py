"""From an image and a mask to a bias field: the checks, the backend, the clock."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from n4flow.compute.arrays import BACKENDS, probe_gpu
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.errors import GpuError, InputError, N4flowWarning
from n4flow.n4_bias import itk
from n4flow.n4_bias.cpu import fit as cpu
from n4flow.n4_bias.cpu.packing import pack
from n4flow.n4_bias.field import BiasField, unfitted
from n4flow.n4_bias.gpu import fit as gpu
from n4flow.n4_bias.problem import Solution, Survey, degenerate, pose
from n4flow.n4_bias.settings import FitSettings

log = logging.getLogger("n4flow")

# how each backend takes an image in, and how it fits it
ENGINES: dict[str, tuple[Callable[..., Any], Callable[..., Solution]]] = {
    "cpu": (pack, cpu.fit),
    "gpu": (gpu.pack, gpu.fit),
    "itk": (pose, itk.fit),
}


def choose_backend(backend: str) -> str:
    """Return the backend that fits: `cpu`, `gpu` or `itk`; `auto` is `gpu` where one works, and says once what it took.

    Raises
    ------
    InputError
        An unknown name.
    GpuError
        `gpu`, and none works.
    """
    if backend not in BACKENDS:
        msg = f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}"
        raise InputError(msg)
    if backend == "gpu":
        probe_gpu()
    return _automatic() if backend == "auto" else backend


@cache
def _automatic() -> str:
    try:
        info = probe_gpu()
    except GpuError as error:
        log.info("backend auto takes the cpu (%s)", error)
        return "cpu"
    log.info("backend auto takes the gpu: %s", info.name)
    return "gpu"


def fit(
    image: Any,
    mask: Any,
    weights: Any,
    *,
    controls: tuple[tuple[int, ...], ...],
    settings: FitSettings,
    backend: str,
    shape: Sequence[int],
    shrink: Sequence[int],
    voxel_um: Sequence[float] | None = None,
    name: str = "the image",
) -> BiasField:
    """Fit a bias field to an image that is shrunken already.

    Parameters
    ----------
    image, mask, weights : arrays of one shape
        On the host, or for the GPU on either side; `weights` may be None. Voxels of the mask that are not finite or not
        above 0 are left out and counted.
    controls : tuple of tuple of int
        Control points along each axis at each level.
    settings : FitSettings
    backend : str
    shape, shrink : sequence of int
        The full-size image, and its voxels to a sample of `image` along each axis.
    voxel_um : sequence of float, optional
        Full-size voxel in micrometres.
    name : str
        What a warning calls the image.

    Returns
    -------
    BiasField
        With `reason` set and a field of 1 where there is nothing to fit; a warning says so.
    """
    chosen = choose_backend(backend)
    start = time.perf_counter()
    prepare, run = ENGINES[chosen]

    def work(_voxels: int = 0) -> tuple[Survey, str | None, Solution | None]:
        prepared = prepare(image, mask, weights, settings.threads)
        reason = degenerate(prepared.survey, image.shape)
        return prepared.survey, reason, run(prepared, controls, settings) if reason is None else None

    survey, reason, solution = run_on_gpu(work, release=not on_device(image)) if chosen == "gpu" else work()
    facts: dict[str, Any] = {
        "reason": reason,
        "backend": chosen,
        "convergence": settings.convergence,
        "voxels": survey.voxels,
        "voxel_um": None if voxel_um is None else tuple(float(um) for um in voxel_um),
    }
    if solution is None:
        msg = f"{name}: no bias field was fitted ({reason}); its intensities are kept"
        warnings.warn(msg, N4flowWarning, stacklevel=3)
        return unfitted(shape, image.shape, shrink, seconds=time.perf_counter() - start, **facts)
    facts |= {"levels": solution.levels, "seconds": time.perf_counter() - start}
    return BiasField(solution.lattice.astype(np.float32), image.shape, tuple(shape), tuple(shrink), **facts)
