"""Fit a bias field with the backend that was chosen: checks, backend, time of the fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute import clock
from n4flow.compute.arrays import BACKENDS, probe_gpu
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.compute.progress import portion
from n4flow.errors import GpuError, InputError, N4flowWarning
from n4flow.n4_bias import itk
from n4flow.n4_bias.cpu import fit as cpu
from n4flow.n4_bias.cpu.packing import pack
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.gpu import fit as gpu
from n4flow.n4_bias.inputs import FitInput
from n4flow.n4_bias.problem import Solution, Survey, degenerate, make_problem
from n4flow.n4_bias.settings import FitSettings

log = logging.getLogger("n4flow")

DRIVER = Path("/dev/nvidiactl")  # Is there where a driver for NVIDIA's GPUs is, also in a container that is given one.
# Each backend has a function that prepares the image and one that fits it.
ENGINES: dict[str, tuple[Callable[..., Any], Callable[..., Solution]]] = {
    "cpu": (pack, cpu.fit),
    "gpu": (gpu.pack, gpu.fit),
    "itk": (make_problem, itk.fit),
}


def choose_backend(backend: str) -> str:
    """Return the backend to use: `cpu`, `gpu` or `itk`. `auto` is `gpu` if one works, else `cpu`.

    A GPU that `auto` takes is logged once, and so is one that does not work where CuPy is installed.

    Raises
    ------
    InputError
        The name is unknown.
    GpuError
        `backend` is 'gpu', and no GPU works.
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
        if DRIVER.exists() and find_spec("cupy"):  # without CuPy, nobody asked for a GPU
            log.warning("backend auto takes the cpu (%s)", error)
        return "cpu"
    log.info("backend auto takes the gpu: %s", info.name)
    return "gpu"


def fit(
    small: FitInput,
    *,
    controls: tuple[tuple[int, ...], ...],
    settings: FitSettings,
    backend: str,
    voxel_um: Sequence[float] | None = None,
    name: str = "the image",
) -> BiasField:
    """Fit a bias field to a shrunken image.

    Parameters
    ----------
    small : FitInput
        On the host, or for the gpu backend also on the device. Voxels of the mask that are not finite or not above 0
        are excluded and counted.
    controls : tuple of tuple of int
        Control points along each axis at each level.
    settings : FitSettings
    backend : str
    voxel_um : sequence of float, optional
        Full-size voxel in micrometres.
    name : str
        What a warning calls the image.

    Returns
    -------
    BiasField
        If there is nothing to fit, `reason` says why, the field is 1, and a warning is issued.
    """
    chosen = choose_backend(backend)
    start = clock.now()
    image = small.image
    prepare, run = ENGINES[chosen]

    def work(_voxels: int = 0) -> tuple[Survey, str | None, Solution | None]:
        prepared = prepare(*small[:3], settings.threads)
        reason = degenerate(prepared.survey, image.shape)
        return prepared.survey, reason, run(prepared, controls, settings) if reason is None else None

    with portion(sum(settings.iterations)):  # a level may end before its last iteration
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
        solution = Solution(np.zeros([1 if n == 1 else 4 for n in image.shape]), ())
    facts |= {"levels": solution.levels, "seconds": clock.now() - start}
    return BiasField(solution.lattice.astype(np.float32), image.shape, small.shape, small.shrink, **facts)
