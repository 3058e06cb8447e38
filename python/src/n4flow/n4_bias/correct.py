"""N4 with a knot distance in millimetres, at full size: of a volume, or of each of its sections."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import array_module, as_mask, takes_arrays, to_numpy
from n4flow.compute.gpu import on_device
from n4flow.compute.threads import thread_count
from n4flow.errors import InputError
from n4flow.n4_bias import engine
from n4flow.n4_bias.api import fit_spaced
from n4flow.n4_bias.field import check_out
from n4flow.n4_bias.inputs import prepare
from n4flow.n4_bias.settings import FitSettings, fit_settings
from n4flow.n4_bias.shrink import Factors
from n4flow.sections import Section, SectionsLike, SectionTable

GPU_ITERATIONS = (25, 25, 25)  # linumpy's default of its GPU function


@takes_arrays
def n4_correct(
    vol: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    shrink_factor: Factors = 4,
    n_iterations: Sequence[int] | int | None = None,
    spline_distance_mm: float = 10.0,
    voxel_size_mm: Sequence[float] = (1.0, 1.0, 1.0),
    backend: str = "cpu",
    out: NDArray[Any] | None = None,
    bias_out: NDArray[Any] | None = None,
    threads: int | None = None,
    name: str = "the image",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correct a volume with N4; a drop-in replacement of linumpy's function that honours the voxel size of each axis.

    Parameters
    ----------
    vol : (Z, Y, X) or (Y, X) array, real or integer, NumPy or CuPy
    mask : array of the same shape, optional
        Voxels where it is not 0 are fitted; by default all of them.
    shrink_factor : int or sequence of int
        See `fit_bias`.
    n_iterations : sequence of int, optional
        Maximum number of iterations at each level; four levels of 50 by default.
    spline_distance_mm : float
        Distance of the first level's control points: max(4, round(extent / distance)) of them along each axis. The
        spans of an axis double from level to level up to four, and as long as they are not finer than its samples: a
        thin section has few along Z. A warning says when the knots are as fine as voxels or anatomy.
    voxel_size_mm : sequence of float
        Voxel size in the order of the axes, (z, y, x). A 2-D image uses the last two.
    backend : {'cpu', 'gpu', 'auto', 'itk'}
    out, bias_out : float arrays of the shape of `vol`, optional
        Arrays for the results, which share no memory; either may be `vol`.
    threads : int, optional
        By default every core that this process may use. The result does not depend on it.
    name : str
        What a warning calls the image.

    Returns
    -------
    corrected, bias_field : float32 arrays, or `out` and `bias_out`
        At full size, with vol = corrected x bias_field. The mean log field over the mask is 0.

    Raises
    ------
    InputError
        A knot distance that does not fit the image, shapes that do not match, or an option out of range.
    """
    settings = fit_settings(n_iterations, threads)
    lattice = (shrink_factor, spline_distance_mm, voxel_size_mm)
    return _corrected(vol, mask, *lattice, settings, backend, out, bias_out, name)


@takes_arrays
def n4_correct_gpu(
    vol: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    shrink_factor: Factors = 4,
    n_iterations: Sequence[int] | int | None = None,
    spline_distance_mm: float = 10.0,
    voxel_size_mm: Sequence[float] = (1.0, 1.0, 1.0),
    n_bins: int = 200,
    fwhm_log: float = 0.15,
    wiener_noise: float = 0.01,
    convergence_tol: float = 1e-3,
    use_gpu: bool = True,
    out: NDArray[Any] | None = None,
    bias_out: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correct a volume on the GPU, or with `use_gpu=False` on the CPU; see `n4_correct`.

    Algorithm and defaults are the same on both; `n_iterations` is three levels of 25 by default.

    Raises
    ------
    GpuError
        `use_gpu`, and no GPU works.
    """
    counts = GPU_ITERATIONS if n_iterations is None else n_iterations
    settings = fit_settings(counts, threshold=convergence_tol, bins=n_bins, fwhm=fwhm_log, wiener=wiener_noise)
    lattice = (shrink_factor, spline_distance_mm, voxel_size_mm)
    return _corrected(vol, mask, *lattice, settings, "gpu" if use_gpu else "cpu", out, bias_out)


@takes_arrays
def n4_correct_per_section(
    vol: ArrayLike,
    n_serial_slices: SectionsLike,
    mask: ArrayLike | None = None,
    *,
    n_processes: int | None = 1,
    **options: Any,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correct each section of a volume by itself.

    Parameters
    ----------
    vol : (Z, Y, X) array
    n_serial_slices : int or section table
        A count (cuts at round(i * Z / count)), a SectionTable, a path to one, or a sequence of
        Section. A section whose flag is not `ok` keeps its intensities.
    mask : array of the same shape, optional
        Voxels where it is not 0 are fitted; by default all of them.
    n_processes : int, optional
        Number of sections that are fitted in parallel, by threads (compiled code releases the GIL); None takes every
        core that this process may use. The result does not depend on it.
    **options
        Options of `n4_correct`.

    Returns
    -------
    corrected, bias_field : see `n4_correct`
    """
    values = to_numpy(vol)
    sections = SectionTable.coerce(n_serial_slices, values.shape[0])
    selected = None if mask is None else as_mask(to_numpy(mask), values.shape)
    given = options.pop("out", None), options.pop("bias_out", None)
    check_results(values, *given)
    corrected, field = (_result(a, values.shape, name) for a, name in zip(given, ("out", "bias_out"), strict=True))

    n_processes = thread_count(n_processes)
    if n_processes > 1:
        options.setdefault("threads", max(1, thread_count(None) // n_processes))

    def correct(section: Section) -> None:
        planes = section.planes
        if not section.usable:
            corrected[planes], field[planes] = values[planes], 1
            return
        part = None if selected is None else selected[planes]
        results: dict[str, Any] = {"out": corrected[planes], "bias_out": field[planes]}
        n4_correct(values[planes], part, **results, name=f"section {section.id}", **options)

    with ThreadPoolExecutor(n_processes) as pool:
        list((pool.map if n_processes > 1 else map)(correct, sections))
    xp = array_module(vol)
    return xp.asarray(corrected), xp.asarray(field)


def _corrected(
    vol: Any,
    mask: Any,
    shrink: Factors,
    distance_mm: float,
    voxel_mm: Sequence[float],
    settings: FitSettings,
    backend: str,
    out: Any,
    bias_out: Any,
    name: str = "the image",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the corrected image and the field at full size, fitted with knots `distance_mm` apart and centred."""
    chosen = engine.choose_backend(backend)
    check_results(vol, out, bias_out)
    mask = np.ones(vol.shape, bool) if mask is None else mask
    small = prepare(vol, mask, None, shrink, chosen, settings.threads)
    voxel_um = [1000.0 * float(mm) for mm in voxel_mm][-len(small.shape) :]
    if len(voxel_um) != len(small.shape) or min(voxel_um) <= 0:
        msg = f"voxel_size_mm must be above 0 along each of the {len(small.shape)} axes, got {tuple(voxel_mm)}"
        raise InputError(msg)
    spline_um, threads = 1000.0 * distance_mm, settings.threads
    bias = fit_spaced(small, voxel_um=voxel_um, spline_um=spline_um, settings=settings, backend=chosen, name=name)
    if on_device(vol):
        return bias.apply(vol, out), bias.field(out=bias_out, gpu=True)  # in this order, as below
    corrected, field = _result(out, bias.shape, "out"), _result(bias_out, bias.shape, "bias_out")
    if bias.backend == "gpu":
        bias.apply_through_gpu(np.asarray(vol), corrected, field)
    else:
        bias.apply(np.asarray(vol), corrected, threads=threads)
        bias.field(out=field, threads=threads)  # last, because `bias_out` may be `vol`
    return corrected, field


def check_results(vol: Any, out: Any, bias_out: Any) -> None:
    """Check that results which are written piece by piece do not overwrite what is still read.

    Raises
    ------
    InputError
        `out` and `bias_out` share memory, or one of them shares a part of the memory of `vol` and is not `vol`.
    """
    if _share(out, bias_out):
        msg = "out and bias_out share memory, so that one result would overwrite the other; give two arrays"
        raise InputError(msg)
    for name, result in (("out", out), ("bias_out", bias_out)):
        if _share(vol, result) and (_address(vol), vol.strides) != (_address(result), result.strides):
            msg = f"{name} shares memory with vol, but is another view of it; give vol itself or another array"
            raise InputError(msg)


def _share(a: Any, b: Any) -> bool:
    """Return whether two arrays on the same side, host or device, share memory."""
    xp = array_module(a)
    return isinstance(a, xp.ndarray) and isinstance(b, xp.ndarray) and bool(xp.shares_memory(a, b))


def _address(array: Any) -> int:
    return int((array.__cuda_array_interface__ if on_device(array) else array.__array_interface__)["data"][0])


def _result(given: Any, shape: Sequence[int], name: str) -> np.ndarray:
    return np.empty(tuple(shape), np.float32) if given is None else check_out(given, shape, name)
